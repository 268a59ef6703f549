"""CTC: words from frames, chunks of long recordings, batches, vocabularies; all against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.tasks.ctc import Ctc
from onnxkit.tasks.ctc_vocabulary import CtcVocabulary, load_vocabulary
from tests.speech import HOP, LETTERS, RATE, ctc_dir, tone


def frames_of(samples, weights):
    """Return the best token of each frame, by hand."""
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    windows = np.lib.stride_tricks.sliding_window_view(normal, 400)[::HOP]
    return (windows @ weights.T).argmax(axis=1)


def test_frames_become_words(tmp_path):
    folder, weights = ctc_dir(tmp_path)
    predictor = Predictor(folder)
    assert isinstance(predictor.task, Ctc)
    recordings = [tone(1.2, seed=4), tone(0.3, seed=1), tone(0.9, seed=2)]
    for samples, record in zip(recordings, predictor(recordings), strict=True):
        expected = predictor.task.vocabulary.text(frames_of(samples, weights).tolist())
        assert record["text"] == expected
        assert record["duration_s"] == len(samples) / RATE
        assert expected


def test_long_recordings_are_read_in_chunks_without_their_ends(tmp_path):
    folder, weights = ctc_dir(tmp_path)
    predictor = Predictor(folder, timestamps=True)
    samples = tone(71.0)
    [record] = predictor([samples])
    kept = []
    for start in range(0, len(samples), 20 * RATE):
        chunk = samples[start : start + 30 * RATE]
        last = start + 30 * RATE >= len(samples)
        ids = frames_of(chunk, weights)[: round(len(chunk) / HOP)]
        kept.extend(ids[250 if start else 0 : None if last else 1250].tolist())
        if last:
            break
    assert record["text"] == predictor.task.vocabulary.text(kept)
    assert record["segments"][-1]["end_s"] <= 71.0
    assert all(one["end_s"] - one["start_s"] <= 6.0 or " " not in one["text"] for one in record["segments"])
    assert " ".join(one["text"] for one in record["segments"]).split() == record["text"].split()


@pytest.mark.parametrize(
    ("masked", "group", "rows"), [(True, False, None), (False, False, 1), (True, True, 1)]
)
def test_rows_share_a_run_only_where_padding_changes_nothing(tmp_path, masked, group, rows):
    folder, _ = ctc_dir(tmp_path, masked=masked, group=group)
    assert Ctc(ModelDir.open(folder)).fixed_batch == rows


@pytest.mark.parametrize(
    "said",
    [
        *({"kind": kind} for kind in ("wav2vec2-conformer", "data2vec-audio", "sew", "sew-d")),
        {"adapter": True},
    ],
)
def test_rows_of_models_that_read_past_the_mask_run_alone(tmp_path, said):
    folder, _ = ctc_dir(tmp_path, **said)
    assert Ctc(ModelDir.open(folder)).fixed_batch == 1


def test_what_ctc_does_not_have(tmp_path):
    folder, _ = ctc_dir(tmp_path)
    with pytest.raises(UsageError, match="no option 'language'; it takes timestamps"):
        Predictor(folder, language="de")
    with pytest.raises(InputError, match="sample 0: 399 samples are too short"):
        Predictor(folder)([np.zeros(399, np.float32)])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "conv_kernel": [400, 2]}))
    with pytest.raises(InputError, match="conv_stride, lists of one length"):
        Predictor(folder)
    (folder / "config.json").write_text('{"architectures": ["Wav2Vec2ForCTC"]}')
    with pytest.raises(InputError, match="does not say how many samples make a frame"):
        Predictor(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(InputError, match=r"vocab\.json: missing"):
        Predictor(folder)


def test_repetitions_blanks_and_delimiters():
    vocabulary = CtcVocabulary(tokens=dict(enumerate(LETTERS)))
    ids = [LETTERS.index(one) for one in ["|", "a", "a", "<pad>", "a", "|", "|", "<pad>", "b", "c", "c", "|"]]
    assert vocabulary.text(ids) == "aa bc"
    assert vocabulary.words(ids) == [("aa", 1, 5), ("bc", 8, 11)]
    assert vocabulary.text([]) == ""
    assert vocabulary.words([0, 0]) == []


def test_vocabularies_of_several_languages(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"a": 0}, "deu": {"ä": 0, "|": 1}}))
    with pytest.raises(InputError, match="a file of several languages needs target_lang"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"target_lang": "deu", "do_lower_case": true}')
    (tmp_path / "added_tokens.json").write_text('{"<s>": 2}')
    assert load_vocabulary(tmp_path).tokens == {0: "ä", 1: "|", 2: "<s>"}
    (tmp_path / "tokenizer_config.json").write_text('{"target_lang": "fra"}')
    with pytest.raises(InputError, match="has no language 'fra'"):
        load_vocabulary(tmp_path)


@pytest.fixture(scope="module")
def their_tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("ctc") / "vocab.json"
    path.write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    return transformers.Wav2Vec2CTCTokenizer(str(path))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(LETTERS) - 1), max_size=30))
def test_text_and_words_equal_transformers_tokenizer(their_tokenizer, ids):
    vocabulary = CtcVocabulary(tokens=dict(enumerate(LETTERS)))
    theirs = their_tokenizer.decode(ids, output_word_offsets=True)
    assert vocabulary.text(ids) == theirs.text
    words = [(one["word"], one["start_offset"], one["end_offset"]) for one in theirs.word_offsets]
    assert vocabulary.words(ids) == words


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Wav2Vec2", "Hubert"])
def test_transcripts_equal_transformers_pipeline(tmp_path, architecture):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from onnxkit.export import export_model
    from tests.tiny_models import BY_NAME

    torch.manual_seed(0)
    checkpoint = tmp_path / "checkpoint"
    tokens = ["<pad>", *"abcdefghijklmnopqrstuvwxyz'"]
    norm = "layer" if architecture == "Wav2Vec2" else "group"
    settings = {**BY_NAME["wav2vec2"].settings, "vocab_size": 28, "feat_extract_norm": norm}
    config = getattr(transformers, f"{architecture}Config")(**settings)
    model = getattr(transformers, f"{architecture}ForCTC")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn_like(parameter))
        frames = model(torch.from_numpy(tone(3.0))[None]).logits.argmax(-1).flatten()
    tokens[int(frames.bincount().argsort()[-2])] = (
        "|"  # a random model says few tokens: one of them parts words
    )
    model.save_pretrained(checkpoint)
    (checkpoint / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(checkpoint / "vocab.json"), bos_token=None, eos_token=None
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    tokenizer.save_pretrained(checkpoint)
    extractor.save_pretrained(checkpoint)
    export_model(str(checkpoint), tmp_path / "model")
    theirs = transformers.pipeline(
        "automatic-speech-recognition", model=model, tokenizer=tokenizer, feature_extractor=extractor
    )
    recordings = [tone(seconds, seed=seed) for seed, seconds in enumerate((2.0, 5.3, 70.2))]
    records = Predictor(tmp_path / "model")(recordings)
    for samples, record in zip(recordings, records, strict=True):
        chunks = {"chunk_length_s": 30} if len(samples) > 30 * RATE else {}
        assert record["text"] == theirs(samples.copy(), **chunks)["text"]
    assert any(" " in record["text"] for record in records)
