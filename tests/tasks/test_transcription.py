"""Encoder-decoders that read a recording whole: what they are fed, and what they say."""

from __future__ import annotations

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.errors import InputError, UsageError
from onnxkit.tasks import task_for
from onnxkit.tasks.transcription import Transcription
from tests.speech import RATE, Said, save_transcriber, tone, transcriber_dir

WAVE = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False}
BANKS = {"feature_extractor_type": "Speech2TextFeatureExtractor", "num_mel_bins": 20}


@pytest.fixture
def moonshine(tmp_path):
    return transcriber_dir(tmp_path / "model", WAVE, model_type="moonshine")


@pytest.fixture
def speech2text(tmp_path):
    return transcriber_dir(
        tmp_path / "model", BANKS, model_type="speech_to_text", max_source_positions=100, num_conv_layers=2
    )


def test_a_waveform_as_it_is(moonshine):
    task = task_for(moonshine)
    assert isinstance(task, Transcription)
    samples = tone(0.5)
    row = task.encode({"audio": samples})
    np.testing.assert_array_equal(row.features["input_values"], samples)
    assert row.features["attention_mask"].tolist() == [1] * len(samples)
    assert row.extra.ids.tolist() == [2]
    record = task.decode_completion([Said(tokens=(6, 7, 2))], row, 1)
    assert record == {
        "text": "w0w1", "finish_reason": "stop", "new_tokens": 3, "score": 0.0, "duration_s": 0.5
    }  # fmt: skip


def test_rows_are_padded_with_silence(speech2text):
    task = task_for(speech2text)
    rows = [task.encode({"audio": tone(seconds)}) for seconds in (0.5, 0.25)]
    feeds = task.collate(rows)
    frames = [row.length for row in rows]
    assert feeds["input_features"].shape == (2, frames[0], 20)
    assert feeds["attention_mask"].sum(axis=1).tolist() == frames
    assert not feeds["input_features"][1, frames[1] :].any()


def test_what_is_too_long_or_too_short(moonshine):
    task = task_for(moonshine)
    with pytest.raises(InputError, match=r"65\.0 s are longer than the 64 s that the model reads at once"):
        task.encode({"audio": np.zeros(65 * RATE, np.float32)})
    with pytest.raises(InputError, match="894 samples are too short"):
        task.encode({"audio": np.zeros(894, np.float32)})
    assert task.encode({"audio": np.zeros(895, np.float32)}).length == 895


def test_positions_limit_the_recording(speech2text):
    with pytest.raises(InputError, match=r"4\.1 s are longer than the 4 s"):
        task_for(speech2text).encode({"audio": tone(4.1)})


def test_the_language_that_is_written(speech2text):
    assert task_for(speech2text, language="fr").generation == {"forced_bos_token_id": 5}
    with pytest.raises(UsageError, match="it writes de, fr"):
        task_for(speech2text, language="en")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moonshine-speech", "speech2text-speech"])
def test_transcripts_equal_transformers(name, tmp_path):
    """Of recordings of four lengths in one batch; transformers hears each alone."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from onnxkit.export import export_model

    model = save_transcriber(tmp_path / "checkpoint", name)
    export_model(str(tmp_path / "checkpoint"), tmp_path / "model")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "checkpoint")
    recordings = [tone(seconds, seed=index) for index, seconds in enumerate((1.0, 2.3, 0.7, 1.0))]
    expected = []
    for samples in recordings:
        heard = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            tokens = model.generate(**heard, max_new_tokens=20)[0].tolist()
        expected.append("".join(f"w{token}" for token in tokens if token > 2))
    records = Predictor(tmp_path / "model", max_new_tokens=20)(recordings)
    assert [record["text"] for record in records] == expected
    assert len(set(expected)) == 4
    assert [record["duration_s"] for record in records] == [1.0, 2.3, 0.7, 1.0]
