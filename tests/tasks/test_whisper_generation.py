"""Whisper from checkpoint to transcript: exported, run by the engine, and equal to transformers' generate."""

from __future__ import annotations

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.tasks.whisper import Whisper
from tests.speech import RATE, save_whisper, tone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = 40
TIMESTAMPS = range(WORDS + 12, WORDS + 12 + 1501)
TINY = {
    "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
}  # fmt: skip


def exported(folder, **settings):
    from onnxkit.export import export_model

    model = save_whisper(folder / "checkpoint", **settings)
    export_model(str(folder / "checkpoint"), folder / "model")
    return folder / "model", model


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("timed"))


@pytest.fixture(scope="module")
def untimed(tmp_path_factory):
    """A random model would say timestamps where they are not asked for: here it must not."""
    return exported(tmp_path_factory.mktemp("untimed"), suppress_tokens=[3, *TIMESTAMPS])


def reference(model, samples, *, timestamps, **asked):
    """Return the words and the segments of transformers' generate."""
    long = {"truncation": False, "padding": "longest"} if len(samples) > 30 * RATE else {}
    features = transformers.WhisperFeatureExtractor()(
        samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **long
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = model.generate(
        **features, return_segments=True, return_timestamps=timestamps or bool(long), **asked
    )
    torch.set_num_threads(threads)
    first = model.generation_config.eos_token_id
    duration = len(samples) / RATE
    segments = []
    for segment in made["segments"][0]:
        text = "".join(f"w{token}" for token in segment["tokens"].tolist() if token < first)
        start, end = (min(float(segment[key]), duration) for key in ("start", "end"))
        segments.append({"start_s": round(start, 3), "end_s": round(end, 3), "text": text})
    return "".join(one["text"] for one in segments), [one for one in segments if one["text"]]


def check(folder, model, seconds, *, timestamps=False, language=None, translate=False):
    samples = tone(seconds, seed=int(seconds))
    asked = {
        "task": "translate" if translate else "transcribe",
        **({"language": language} if language else {}),
    }
    text, segments = reference(model, samples, timestamps=timestamps, **asked)
    predictor = Predictor(folder, language=language, timestamps=timestamps, translate=translate)
    [record] = predictor([samples])
    assert record["text"] == text
    assert len(set(text.split("w"))) > 2  # it said different words
    assert record["language"] == (language or record["language"])
    if timestamps:
        assert record["segments"] == segments


@pytest.mark.slow
@pytest.mark.parametrize("translate", [False, True])
@pytest.mark.parametrize("language", [None, "de", "fr"])
def test_short_audio(untimed, language, translate):
    check(*untimed, 7.0, language=language, translate=translate)


@pytest.mark.slow
@pytest.mark.parametrize("language", [None, "de"])
def test_a_whole_window_with_timestamps(timed, language):
    check(*timed, 30.0, timestamps=True, language=language)


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("seconds", [65.0, 94.37])
def test_long_audio(timed, seconds, timestamps):
    check(*timed, seconds, timestamps=timestamps)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [2, 3])
def test_beams(timed, beams):
    samples = tone(65.0, seed=65)
    asked = {"language": "fr", "task": "transcribe", "num_beams": beams}
    text, segments = reference(timed[1], samples, timestamps=True, **asked)
    [record] = Predictor(timed[0], language="fr", timestamps=True, num_beams=beams)([samples])
    assert (record["text"], record["segments"]) == (text, segments)


@pytest.mark.slow
def test_several_recordings_are_transcribed_together(timed):
    recordings = [tone(seconds, seed=seed) for seed, seconds in enumerate((40.0, 3.0, 65.0, 30.0))]
    alone = Predictor(timed[0], timestamps=True, batch_size=1)(recordings)
    assert Predictor(timed[0], timestamps=True, batch_size=3)(recordings) == alone


@pytest.mark.slow
def test_silent_windows_are_those_that_transformers_skips(tmp_path, monkeypatch):
    thresholds = {"no_speech_threshold": 1.2e-5, "logprob_threshold": -0.75}
    folder, model = exported(tmp_path, **thresholds)
    samples = np.concatenate([tone(45.0, seed=seed) for seed in (1, 2)])
    asked = {**thresholds, "temperature": 0.0, "language": "de", "task": "transcribe"}
    text, segments = reference(model, samples, timestamps=True, **asked)
    judged, verdicts = Whisper._judged, []

    def watched(*arguments):
        verdicts.append(judged(*arguments))
        return verdicts[-1]

    monkeypatch.setattr(Whisper, "_judged", watched)
    [record] = Predictor(folder, timestamps=True, language="de")([samples])
    assert (record["text"], record["segments"]) == (text, segments)
    assert {silent for silent, _ in verdicts} == {True, False}


@pytest.mark.slow
def test_the_shape_of_tiny(tmp_path):
    folder, model = exported(tmp_path, words=50_257, limit=448, scale=8.0, shape=TINY, max_length=24)
    check(folder, model, 4.0, timestamps=False, language="en")
    check(folder, model, 62.0, timestamps=True)
