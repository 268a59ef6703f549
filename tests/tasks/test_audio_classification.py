"""Labels of recordings, and the spectrograms of one length; both against transformers."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxkit import Predictor
from onnxkit.errors import InputError
from onnxkit.tasks.audio_classification import AudioClassification
from onnxkit.tasks.fixed_windows import Spectrogram, WhisperWindow
from tests.heard import Heard
from tests.model_dirs import save_graph
from tests.speech import RATE, tone

PATH = Path("preprocessor_config.json")
LABELS = ("loud", "soft", "silent")


def loudness_dir(folder: Path) -> Path:
    """A model whose logits are the mean power of a recording's own samples, its opposite, and 0."""
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["input_values", "input_values"], ["squares"]),
        helper.make_node("Mul", ["squares", "real"], ["own"]),
        helper.make_node("ReduceSum", ["own", "axis"], ["sum"]),
        helper.make_node("ReduceSum", ["real", "axis"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["power"]),
        helper.make_node("Mul", ["power", "signs"], ["logits"]),
    ]
    save_graph(
        folder / "model.onnx",
        nodes,
        inputs={
            "input_values": (TensorProto.FLOAT, ["n", "samples"]),
            "attention_mask": (TensorProto.INT64, ["n", "samples"]),
        },
        outputs={"logits": ["n", 3]},
        weights={"axis": np.array([1]), "signs": np.array([[1.0, -1.0, 0.0]], np.float32)},
    )
    config = {
        "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForSequenceClassification"],
        "id2label": dict(enumerate(LABELS)),
    }  # fmt: skip
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def test_recordings_of_unequal_length_get_their_own_labels(tmp_path):
    predictor = Predictor(loudness_dir(tmp_path), batch_size=4)
    assert isinstance(predictor.task, AudioClassification)
    recordings = [tone(0.4), 3.0 * tone(0.1), np.full(77, 0.5, np.float32)]
    records = predictor(recordings)
    powers = np.array([np.mean(samples.astype(np.float64) ** 2) for samples in recordings])
    weights = np.exp(powers[:, None] * [1.0, -1.0, 0.0])
    for record, row in zip(records, weights / weights.sum(1, keepdims=True), strict=True):
        assert record["label"] == "loud"
        got = {one["label"]: one["score"] for one in record["scores"]}
        np.testing.assert_allclose([got[label] for label in LABELS], row, atol=1e-5)


def test_labels_are_judged(tmp_path):
    predictor = Predictor(loudness_dir(tmp_path), top_k=1)
    samples = [{"audio": tone(0.2), "label": "loud"}, {"audio": tone(0.2), "label": "soft"}]
    metric = predictor.task.metric(predictor(samples), samples)
    assert metric is not None and (metric.name, metric.value, metric.count) == ("accuracy", 0.5, 2)


def test_too_short_a_recording_is_named(tmp_path):
    folder = loudness_dir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2]}  # a frame of 10 + 5 * (3 + 2 - 1) = 30
    (folder / "config.json").write_text(json.dumps(config))
    predictor = Predictor(folder)
    assert len(predictor([tone(0.5)[:30]])) == 1
    with pytest.raises(InputError, match="sample 0: 29 samples are too short for a frame of the model"):
        predictor([tone(0.5)[:29]])


@pytest.mark.parametrize(
    "settings", [{}, {"num_mel_bins": 40, "max_length": 64}, {"max_length": 50, "do_normalize": False}]
)
@pytest.mark.parametrize("seconds", [0.031, 0.5, 12.0])
def test_spectrograms_of_one_length(settings, seconds):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ASTFeatureExtractor(**settings)
    samples = tone(seconds)
    right = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    extractor = Spectrogram.parse(json.loads(theirs.to_json_string()), PATH)
    found, real = extractor(samples)
    assert found.dtype == np.float32 and found.shape == right.shape and real.all()
    assert len(found) == extractor.length(len(samples)) == len(real)
    np.testing.assert_allclose(found, right, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 31.0])
def test_whispers_window(seconds):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor()
    right = theirs(tone(seconds), sampling_rate=RATE, return_tensors="np")["input_features"][0]
    found, _ = WhisperWindow.parse(json.loads(theirs.to_json_string()), PATH)(tone(seconds))
    np.testing.assert_allclose(found, right, atol=1e-4)


@pytest.mark.parametrize("given", [{"mean": "low"}, {"std": 0}, {"std": float("nan")}, {"max_length": 0}])
def test_settings_of_spectrograms_that_make_no_sense(given):
    with pytest.raises(InputError, match=r"preprocessor_config\.json: "):
        Spectrogram.parse(given, PATH)


def test_what_is_cut_is_said(tmp_path):
    folder, heard = loudness_dir(tmp_path), Heard()
    extractor = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 100, "num_mel_bins": 8}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    save_graph(
        folder / "model.onnx",
        [helper.make_node("ReduceMean", ["input_values", "axis"], ["logits"], keepdims=0)],
        inputs={"input_values": (TensorProto.FLOAT, ["n", 100, 8])},
        outputs={"logits": ["n", 8]},
        weights={"axis": np.array([1])},
    )
    predictor = Predictor(folder, progress=heard)
    records = predictor([tone(0.5), tone(1.2)])
    assert len(records) == 2
    assert heard.warnings == [
        "1 of 2 recordings were longer than the 1.015 seconds that are read, and were cut there"
    ]
    with pytest.raises(InputError, match="sample 1: 300 samples are too short for a frame of 400"):
        predictor([tone(0.5), tone(0.5)[:300]])


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "NONE"))
        file.writeframes((samples * 32_767).astype("<i2").tobytes())


def test_recordings_that_came_cut_are_read_and_said(tmp_path):
    folder, heard = loudness_dir(tmp_path / "model"), Heard()
    paths = [tmp_path / f"{name}.wav" for name in ("whole", "first", "second")]
    for path in paths:
        write_wav(path, tone(2.0))
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[: 44 + 2 * 12_000])
    whole, first, second = Predictor(folder, progress=heard)(paths)
    assert heard.warnings == [
        f"{paths[1]}: cut short: its header promises 2.00 s of sound, 0.75 s are there and were read; "
        "so it is with 1 more of the recordings"
    ]
    assert first["scores"] == second["scores"] != whole["scores"]
    again = Heard()
    assert Predictor(folder, progress=again)(paths[2:]) == [{**second, "index": 0}]
    assert again.warnings == [
        f"{paths[2]}: cut short: its header promises 2.00 s of sound, 0.75 s are there and were read"
    ]


CHECKPOINTS = {
    "Wav2Vec2ForSequenceClassification": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "conv_dim": (16, 16, 16, 16), "conv_kernel": (10, 8, 4, 4), "conv_stride": (5, 4, 4, 4),
        "num_feat_extract_layers": 4, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer", "do_stable_layer_norm": True, "use_weighted_layer_sum": True,
    },
    "ASTForAudioClassification": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_length": 128, "num_mel_bins": 32,
    },
    "WhisperForAudioClassification": {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHECKPOINTS)
def test_scores_equal_transformers_pipeline(tmp_path, architecture):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from onnxkit.export import export_model

    family = architecture.partition("For")[0]
    torch.manual_seed(0)
    labels = dict(enumerate(("yes", "no", "up", "down")))
    config = getattr(transformers, f"{family}Config")(
        **CHECKPOINTS[architecture], id2label=labels, label2id={name: key for key, name in labels.items()}
    )
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn_like(parameter))
    extractor = {
        "Wav2Vec2": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        "AST": lambda: transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128),
        "Whisper": transformers.WhisperFeatureExtractor,
    }[family]()
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    export_model(str(tmp_path / "checkpoint"), tmp_path / "model")
    theirs = transformers.pipeline("audio-classification", model=model, feature_extractor=extractor, top_k=4)
    recordings = [tone(seconds, seed=seed) for seed, seconds in enumerate((0.5, 1.9, 0.9))]
    records = Predictor(tmp_path / "model")(recordings)
    for samples, record in zip(recordings, records, strict=True):
        right = {one["label"]: one["score"] for one in theirs(samples.copy())}
        got = {one["label"]: one["score"] for one in record["scores"]}
        assert got == pytest.approx(right, abs=1e-4)
        assert max(right.values()) - min(right.values()) > 0.01
