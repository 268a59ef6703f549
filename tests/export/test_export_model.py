"""`export_model` on tiny checkpoints: what it publishes, and that it publishes nothing when a check fails."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxkit.artifact import Invocation, ModelDir
from onnxkit.errors import GateFailed, InputError, OnnxkitError, UnsafeError, UsageError
from onnxkit.export import ExportOptions, ExportReport, export_model, levels
from onnxkit.graph import portable
from onnxkit.graph.files import load_model
from onnxkit.graph.regions import find_regions
from onnxkit.measure import verify_model
from onnxkit.runtime import RuntimeOptions, open_session
from tests.heard import Heard

Tiny = Callable[[str], Path]


def export(source: Path, out: Path, **options: Any) -> ExportReport:
    return export_model(source, out, ExportOptions(**options))


@pytest.fixture(scope="module")
def exported(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("exported") / "bert"
    invocation = Invocation(stage="export", argv=("onnxkit", "export", "bert"), options={"token": "secret"})
    return out, export_model(tiny("bert"), out, invocation=invocation)


def test_the_report(exported: tuple[Path, ExportReport]) -> None:
    out, report = exported
    assert (report.task, report.level, report.model_class) == ("feature-extraction", "L1", "BertModel")
    assert report.graphs[0].regions == {"mask": 1, "attention": 3, "gelu": 3}
    assert (report.trials[0].attentions, report.trials[0].attention_calls) == (3, 3)
    assert {file.name for file in report.files} >= {
        "model.onnx",
        "config.json",
        "tokenizer.json",
        "reference.npz",
    }
    assert report.size_bytes == (out / "model.onnx").stat().st_size
    assert report.seconds.keys() >= {"load", "trace", "convert", "write", "verify"}
    assert report.total_s > 0
    assert report.to_dict()["level"] == "L1"


def test_verified_on_padded_shapes(exported: tuple[Path, ExportReport]) -> None:
    _, report = exported
    check = report.verification
    assert check is not None
    assert check.passed
    assert check.worst <= check.tolerance == 1e-4
    assert {"batch 1", "batch 4", "right padding", "left padding", "length 1"} < set(check.cases)
    assert all(row.finite for row in report.checks)


def test_the_graph_is_plain(exported: tuple[Path, ExportReport]) -> None:
    model = onnx.load(exported[0] / "model.onnx")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.graph.value_info
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"encoder.layer.1.attention.self.query", "encoder.layer.2.output.dense"} < set(names)
    kinds = {node.op_type for node in model.graph.node}
    assert {"LayerNormalization", "Erf", "Softmax"} < kinds
    assert not kinds & {"Gelu", "Identity", "Dropout", "Constant"}


def test_axes_have_names(exported: tuple[Path, ExportReport]) -> None:
    _, report = exported
    axes = ("batch_size", "sequence_length")
    assert [(spec.name, spec.dtype, spec.shape) for spec in report.graphs[0].inputs] == [
        (name, "int64", axes) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(spec.name, spec.shape) for spec in report.graphs[0].outputs] == [
        ("last_hidden_state", (*axes, 32))
    ]


def test_regions_are_found_in_the_file(exported: tuple[Path, ExportReport]) -> None:
    regions = find_regions(load_model(exported[0] / "model.onnx"))
    assert [region.op for region in regions].count("attention") == 3
    attention = next(region for region in regions if region.op == "attention")
    assert attention.id == "encoder.layer.0.attention.self#attention"
    assert attention.attrs["layout"] == "bsh"


def test_the_manifest_says_how(exported: tuple[Path, ExportReport]) -> None:
    model = ModelDir.open(exported[0])
    assert model.manifest is not None
    assert model.manifest.verified is not None
    (entry,) = model.manifest.history
    assert (entry.stage, entry.argv[:2]) == ("export", ("onnxkit", "export"))
    assert entry.input_digest.startswith("sha256:")
    assert entry.measured["level"] == "L1"
    assert "secret" not in (exported[0] / "onnxkit.json").read_text()


def test_verify_repeats_the_check_later(exported: tuple[Path, ExportReport]) -> None:
    report = verify_model(exported[0], runtime=RuntimeOptions(threads=1))
    assert report.passed
    assert (exported[0] / "reference.npz").stat().st_size <= 2_000_000


def test_sentence_embeddings(tiny_sentence_model: Path, tmp_path: Path) -> None:
    report = export(tiny_sentence_model, tmp_path / "out")
    assert (report.task, report.level) == ("sentence-similarity", "L1")
    assert [(spec.name, len(spec.shape)) for spec in report.graphs[0].outputs] == [
        ("sentence_embedding", 2), ("last_hidden_state", 3),
    ]  # fmt: skip
    assert (tmp_path / "out" / "2_Dense" / "config.json").is_file()
    session = open_session(tmp_path / "out" / "model.onnx", RuntimeOptions(threads=1))
    ids = np.array([[1, 9, 8, 7, 2], [1, 9, 2, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": ids * 0}
    embedding = session.run(feeds)["sentence_embedding"]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)


def test_features_of_a_sentence_model_alone(tiny_sentence_model: Path, tmp_path: Path) -> None:
    report = export(tiny_sentence_model, tmp_path / "out", task="feature-extraction", verify=False)
    assert [spec.name for spec in report.graphs[0].outputs] == ["last_hidden_state"]


def test_unverified_says_so(tiny: Tiny, tmp_path: Path) -> None:
    heard = Heard()
    report = export_model(tiny("bert"), tmp_path / "out", ExportOptions(verify=False), progress=heard)
    assert report.verification is None
    assert any("not verified" in text for text in heard.warnings)
    model = ModelDir.open(tmp_path / "out")
    assert model.manifest is not None
    assert model.manifest.verified is None


def test_a_difference_publishes_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "lowest", lambda dtype: 0.0)  # masks that do not mask
    monkeypatch.setattr(levels, "LEVELS", {"trace": ("L1",)})
    with pytest.raises(
        GateFailed, match=r"worst in output last_hidden_state of case '.* padding'"
    ) as failure:
        export(tiny("bert"), tmp_path / "out", exporter="trace")
    assert list(tmp_path.iterdir()) == []
    report = failure.value.report
    assert report.level is None
    assert not report.verification.passed
    assert [trial.level for trial in report.trials] == ["L1"]


@pytest.mark.slow
def test_a_model_that_draws_random_numbers_is_refused_for_that(tmp_path: Path) -> None:
    import transformers

    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    config = transformers.ViTMAEConfig(**size, image_size=32, patch_size=8)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path / "mae")
    with pytest.raises(InputError, match="draws random numbers: PyTorch's own outputs differ"):
        export(tmp_path / "mae", tmp_path / "out", exporter="trace")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_attention_in_blocks_becomes_full_attention_with_a_warning(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    config = transformers.BigBirdConfig(
        **size, vocab_size=64, max_position_embeddings=64, block_size=4, num_random_blocks=1
    )
    transformers.BigBirdModel(config).save_pretrained(tmp_path / "bird")
    heard = Heard()
    options = ExportOptions(exporter="native", task="feature-extraction")
    export_model(tmp_path / "bird", tmp_path / "out", options, progress=heard)
    assert any(
        "full attention, which PyTorch gives texts of up to 28 tokens" in said for said in heard.warnings
    )
    full = transformers.BigBirdModel.from_pretrained(tmp_path / "bird", attention_type="original_full").eval()
    ids = torch.arange(5, 55)[None]
    with torch.no_grad():
        expected = full(ids).last_hidden_state.numpy()
    session = open_session(tmp_path / "out" / "model.onnx", RuntimeOptions(threads=1))
    feeds = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 50), np.int64)}
    feeds["token_type_ids"] = np.zeros((1, 50), np.int64)
    got = session.run({spec.name: feeds[spec.name] for spec in session.inputs})["last_hidden_state"]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_native_exporter_steps_in(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "lowest", lambda dtype: 0.0)
    report = export(tiny("bert"), tmp_path / "out")
    assert report.level == "L3"
    assert [trial.accepted for trial in report.trials] == [False, False, True]
    assert "not within" in report.trials[0].reason


def test_weights_that_are_missing_are_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks weights .* classifier\.weight"):
        export(tiny("bert"), tmp_path / "out", task="text-classification")
    assert list(tmp_path.iterdir()) == []


def changed(source: Path, target: Path, **settings: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 5}, r"lacks weights .*encoder\.layer\.3\.attention"),
        ({"hidden_size": 64}, r"weights and config differ: .* the config says \[128, 64\]"),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_act": "nonsense"}, "nonsense"),
    ],
)
def test_a_config_that_does_not_fit(
    settings: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    source = changed(tiny("bert"), tmp_path / "source", **settings)
    with pytest.raises(InputError, match=message):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"task": "text-clasification"}, UsageError),
        ({"task": "image-to-text"}, UsageError),
        ({"task": "text-generation"}, InputError),
        ({"opset": 17}, UsageError),
        ({"opset": 99}, UsageError),
        ({"dtype": "int8"}, UsageError),
        ({"exporter": "magic"}, UsageError),
        ({"task": "sentence-similarity"}, InputError),
        ({"task": "image-classification"}, InputError),
    ],
)
def test_options_that_do_not_apply(
    options: dict[str, Any], kind: type[OnnxkitError], tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(kind):
        export(tiny("bert"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        export(tiny("bert"), tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


def test_remote_code_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    source = changed(tiny("bert"), tmp_path / "source", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(UnsafeError):
        export(source, tmp_path / "out")


def test_pickled_weights_need_consent(tiny: Tiny, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    source = changed(tiny("bert"), tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(UnsafeError, match="--allow-pickle"):
        export(source, tmp_path / "out")
    report = export(source, tmp_path / "out", allow_pickle=True)
    assert (report.level, report.verification is not None) == ("L1", True)


def test_a_slow_tokenizer_becomes_a_fast_one(tiny: Tiny, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = changed(tiny("bert"), tmp_path / "source")
    vocabulary = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (source / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    export(source, tmp_path / "out", verify=False)
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode("ab").ids == [vocabulary[word] for word in ("[CLS]", "a", "##b", "[SEP]")]


def test_no_tokenizer_is_a_warning(tiny: Tiny, tmp_path: Path) -> None:
    source = changed(tiny("bert"), tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    heard = Heard()
    export_model(source, tmp_path / "out", ExportOptions(verify=False), progress=heard)
    assert any("has no tokenizer" in text for text in heard.warnings)


def test_sharded_weights(tiny: Tiny, tmp_path: Path) -> None:
    from transformers import AutoModel

    source = changed(tiny("bert"), tmp_path / "source")
    model = AutoModel.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="40KB")
    assert len(list(source.glob("model-*-of-*.safetensors"))) > 1
    assert export(source, tmp_path / "out").level == "L1"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_types_keep_float32_at_the_boundary(dtype: Any, tiny: Tiny, tmp_path: Path) -> None:
    report = export(tiny("vit"), tmp_path / "out", dtype=dtype)
    assert {spec.dtype for spec in (*report.graphs[0].inputs, *report.graphs[0].outputs)} == {"float32"}
    check = report.verification
    assert check is not None
    assert check.tolerance == {"fp16": 1e-2, "bf16": 5e-2}[dtype]
    weights = [w for w in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if len(w.dims) == 2]
    assert {w.data_type for w in weights} == {
        getattr(onnx.TensorProto, {"fp16": "FLOAT16", "bf16": "BFLOAT16"}[dtype])
    }


@pytest.mark.parametrize("name", ["modernbert", "clip-text"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_half_type_behind_causal_and_window_masks_stays_finite(
    name: str, dtype: Any, tiny: Tiny, tmp_path: Path
) -> None:
    assert export(tiny(name), tmp_path / "out", dtype=dtype, exporter="trace").level == "L1"


@pytest.mark.parametrize("opset", [20, 26])
def test_newer_opsets(opset: int, tiny: Tiny, tmp_path: Path) -> None:
    report = export(tiny("bert"), tmp_path / "out", opset=opset)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [entry.version for entry in model.opset_import] == [opset]
    assert report.graphs[0].regions == {"mask": 1, "attention": 3, "gelu": 3}
    assert len(find_regions(load_model(tmp_path / "out" / "model.onnx"))) == 7


@pytest.mark.slow
def test_libraries_stay_silent(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("torch.onnx").level
    export(tiny("bert"), tmp_path / "out", exporter="native")
    assert capfd.readouterr().out == ""
    assert logging.getLogger("torch.onnx").level == before


def test_a_tied_projection_keeps_one_copy_of_the_embedding(tiny: Tiny, tmp_path: Path) -> None:
    report = export(tiny("bert-mlm"), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    vocabulary = [w for w in model.graph.initializer if 128 in w.dims and len(w.dims) == 2]
    assert len(vocabulary) == 1
    assert report.level == "L1"


def test_a_reason_that_levels_share_is_said_once(tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(self: levels.Workshop, part: Any, level: str) -> Any:
        raise ValueError("needs a heart" if level != "L2" else "needs a brain")

    monkeypatch.setattr(levels.Workshop, "make", refuse)
    said = "L1, L3: ValueError: needs a heart; L2: ValueError: needs a brain"
    with pytest.raises(InputError, match=said):
        export(tiny("bert"), tmp_path / "out")
