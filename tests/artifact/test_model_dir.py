from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxkit.artifact import Invocation, ModelDir, copy_companions, seal
from onnxkit.errors import InputError, UnsafeError, UsageError
from tests.artifact.conftest import build_model

Foreign = Callable[..., Path]
_CONFIG = {"architectures": ["BertModel"], "model_type": "bert"}


def test_a_directory_of_ours(ours: Path) -> None:
    model = ModelDir.open(ours)
    assert model.task == "feature-extraction"
    assert model.model_file == ours / "model.onnx"
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert model.inputs[0].dtype == "int64" and model.outputs[0].shape == ("batch", "seq", 4)
    assert model.companion_names() == ("config.json", "tokenizer.json")
    assert model.size_bytes == (ours / "model.onnx").stat().st_size
    assert model.verify_digests() == ("config.json", "model.onnx", "tokenizer.json")
    assert ModelDir.open(ours / "model.onnx") == model
    assert ModelDir.open(str(ours), task="sentence-embedding").task == "sentence-similarity"


def test_what_is_of_one_graph_only_does_not_travel(foreign: Foreign, model_bytes: bytes) -> None:
    """`export.json` tells transformers' loader the types and the weights file of the exported graph."""
    names = ("config.json", "export.json", "2_Dense/model.safetensors")
    root = foreign({**dict.fromkeys(names, b"{}"), "model.onnx": model_bytes, "model.onnx.data": b""})
    seal(
        root, task="default", components={"model": "model.onnx"}, parent=None, verified=None, measured={},
        invocation=Invocation(stage="export", argv=("onnxkit", "export", "a", "b"), options={}),
    )  # fmt: skip
    assert ModelDir.open(root).companion_names() == ("2_Dense/model.safetensors", "config.json")


def test_the_digest_names_content_not_place(ours: Path, tmp_path: Path) -> None:
    before = ModelDir.open(ours).digest()
    assert before.startswith("sha256:") and len(before) == 71
    moved = ours.rename(tmp_path / "moved")
    assert ModelDir.open(moved).digest() == before
    (moved / "note.txt").write_text("the user's own file is no part of the model")
    assert ModelDir.open(moved).digest() == before


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json"])
def test_one_byte_mutated_is_a_refusal(ours: Path, name: str) -> None:
    data = bytearray((ours / name).read_bytes())
    data[-1] ^= 1
    (ours / name).write_bytes(data)
    try:
        model = ModelDir.open(ours)  # the size is right; a graph or a config may be damaged, though
    except InputError as error:
        assert name in str(error)
        return
    for check in (model.verify_digests, model.digest):
        with pytest.raises(InputError, match=f"{name}.*differs"):
            check()


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json"])
def test_sizes_are_checked_on_opening(ours: Path, name: str) -> None:
    with (ours / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=f"{name}.*bytes"):
        ModelDir.open(ours)
    (ours / name).unlink()
    with pytest.raises(InputError, match=f"{name}.*no such file"):
        ModelDir.open(ours)


def test_a_manifest_cannot_point_outside(ours: Path) -> None:
    text = (ours / "onnxkit.json").read_text()
    (ours / "onnxkit.json").write_text(text.replace('"tokenizer.json"', '"../secret"'))
    (ours.parent / "secret").write_text("{}")
    with pytest.raises(UnsafeError, match="stay inside"):
        ModelDir.open(ours)


@pytest.mark.parametrize("change", [{"components": {}}, {"files": {}}, {"schema": 99}])
def test_damaged_manifests(ours: Path, change: dict[str, Any]) -> None:
    data = json.loads((ours / "onnxkit.json").read_text())
    (ours / "onnxkit.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(InputError, match=r"onnxkit\.json"):
        ModelDir.open(ours)


@pytest.mark.parametrize(
    ("files", "graph"),
    [
        (["model.onnx", "model_quantized.onnx", "onnx/model.onnx"], "model.onnx"),
        (["onnx/model.onnx", "onnx/model_O2.onnx", "other.onnx"], "onnx/model.onnx"),
        (["model_fp16.onnx"], "model_fp16.onnx"),
        (["onnx/model_qint8.onnx"], "onnx/model_qint8.onnx"),
    ],
)
def test_where_the_graph_is_found(foreign: Foreign, model_bytes: bytes, files: list[str], graph: str) -> None:
    root = foreign({"config.json": _CONFIG, **dict.fromkeys(files, model_bytes)})
    model = ModelDir.open(root)
    assert model.path == root and model.model_file == root / graph
    assert model.task == "feature-extraction" and model.manifest is None and model.config == _CONFIG
    assert model.verify_digests() == () and model.digest().startswith("sha256:")


ENCODER = build_model({"input_ids": ["b", "s"]}, {"last_hidden_state": ["b", "s", 4]}).SerializeToString()
FIRST = build_model(
    {"input_ids": ["b", "s"], "encoder_hidden_states": ["b", "e", 4]}, {"logits": ["b", "s", 9]}
).SerializeToString()
LATER = build_model(
    {"input_ids": ["b", "s"], "past_key_values.0.decoder.key": ["b", 1, "p", 4]}, {"logits": ["b", "s", 9]}
).SerializeToString()


@pytest.mark.parametrize("folder", ["", "onnx/"])
def test_an_encoder_decoder_of_another_tool(foreign: Foreign, folder: str) -> None:
    files = {
        "encoder_model.onnx": ENCODER,
        "decoder_model.onnx": FIRST,
        "decoder_with_past_model.onnx": LATER,
    }
    named = {folder + name: content for name, content in files.items()}
    model = ModelDir.open(foreign({**named, "config.json": {}}))
    assert {name: part.file for name, part in model.components.items()} == {
        part: f"{folder}{part}_model.onnx" for part in ("encoder", "decoder", "decoder_with_past")
    }
    assert model.task == "text2text-generation"
    assert model.weight_files == tuple(sorted(named))
    with pytest.raises(InputError, match="no single graph to run"):
        _ = model.model_file


def test_one_of_its_graphs_alone(foreign: Foreign) -> None:
    root = foreign({"encoder_model.onnx": ENCODER, "decoder_model.onnx": FIRST})
    model = ModelDir.open(root / "encoder_model.onnx")
    assert (list(model.components), model.task) == (["model"], "feature-extraction")


def test_a_decoder_with_a_past_generates_text(foreign: Foreign) -> None:
    past = {"input_ids": ["b", "s"], "past_key_values.0.key": ["b", 1, "p", 4]}
    graph = build_model(past, {"logits": ["b", "s", 9]}).SerializeToString()
    assert ModelDir.open(foreign({"model.onnx": graph})).task == "text-generation"


def test_an_input_with_a_default_need_not_be_fed(foreign: Foreign) -> None:
    graph = build_model({"input_ids": ["b", "s"], "num_logits_to_keep": []}, {"logits": ["b", "s", 9]})
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0), "num_logits_to_keep"))
    model = ModelDir.open(foreign({"model.onnx": graph.SerializeToString()}))
    assert [spec.name for spec in model.inputs] == ["input_ids"]


def test_several_graphs_are_listed(foreign: Foreign, model_bytes: bytes) -> None:
    root = foreign(dict.fromkeys(["text_model.onnx", "vision_model.onnx"], model_bytes))
    with pytest.raises(InputError, match=r"text_model\.onnx, vision_model\.onnx.*name one"):
        ModelDir.open(root)
    assert ModelDir.open(root / "text_model.onnx").model_file == root / "text_model.onnx"


def test_a_file_in_the_onnx_folder_belongs_to_the_directory_above(
    foreign: Foreign, model_bytes: bytes
) -> None:
    root = foreign({"config.json": _CONFIG, "tokenizer.json": {}, "onnx/model_O2.onnx": model_bytes})
    model = ModelDir.open(root / "onnx" / "model_O2.onnx")
    assert model.path == root and model.config == _CONFIG
    assert model.companion_names() == ("config.json", "tokenizer.json")


def test_a_bare_file_needs_nothing_beside_it(foreign: Foreign, model_bytes: bytes) -> None:
    root = foreign({"net.onnx": model_bytes})
    (root / "unrelated").symlink_to("/etc/passwd")
    model = ModelDir.open(root / "net.onnx")
    assert model.config == {} and model.companion_names() == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": _CONFIG, "model.safetensors": b"x"}, "checkpoint without.*onnxkit export"),
        ({"pytorch_model.bin": b"x"}, "onnxkit export"),
        ({"notes.txt": "x"}, "holds no ONNX file"),
        ({}, "no files in it"),
        ({"model.onnx": b"damaged"}, r"model\.onnx"),
        ({"model.onnx": b""}, r"model\.onnx"),
    ],
)
def test_directories_without_a_model(foreign: Foreign, files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelDir.open(foreign(files))


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or directory$"):
        ModelDir.open(tmp_path / "gone")
    with pytest.raises(InputError, match="onnxkit export org/name OUT"):
        ModelDir.open("org/name")
    for text in ("a sentence in the place of a directory. " * 20, "a\0b"):
        with pytest.raises(InputError, match="no such file or directory"):
            ModelDir.open(text)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match="neither"):
        ModelDir.open(tmp_path / "x.txt")
    with pytest.raises(UsageError, match="unknown task"):
        ModelDir.open(tmp_path, task="nonsense")


def test_damaged_config_and_link_out(foreign: Foreign, model_bytes: bytes) -> None:
    root = foreign({"model.onnx": model_bytes, "config.json": "{"})
    with pytest.raises(InputError, match=r"config\.json"):
        ModelDir.open(root)
    (root / "config.json").unlink()
    (root / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeError, match="leads out"):
        ModelDir.open(root)


def test_external_data_counts_as_weights(foreign: Foreign, model_bytes: bytes, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(model_bytes)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    root = foreign({"onnx/model.onnx": model.SerializeToString(), "onnx/weights": bytes(16)})
    opened = ModelDir.open(root)
    assert opened.weight_files == ("onnx/model.onnx", "onnx/weights")
    assert opened.size_bytes == 16 + (root / "onnx/model.onnx").stat().st_size
    (root / "onnx/weights").write_bytes(bytes(15))
    with pytest.raises(InputError, match="truncated"):
        ModelDir.open(root)


def test_companions_travel_and_the_rest_stays(foreign: Foreign, model_bytes: bytes, tmp_path: Path) -> None:
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    ]
    travel = [
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "LICENSE", "README.md",
        "added_tokens.json", "chat_template.jinja", "config.json", "config_sentence_transformers.json",
        "generation_config.json", "merges.txt", "preprocessor_config.json", "reference.npz",
        "sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt",
    ]  # fmt: skip
    stay = [
        "model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.gguf",
        "model.onnx.data",
        ".gitattributes", ".git/config", "calibration.jsonl", "evaluation.jsonl", "eval.json", "train.csv",
        "test.json",
        "onnxkit.json.bak", "modeling_custom.py", "model.safetensors.index.json", "trainer_state.json",
        "images/1.png", "2_Dense/pytorch_model.bin", "optimizer.pt", "all_results.json",
    ]  # fmt: skip
    files = {**dict.fromkeys([*travel, *stay], b"{}"), "modules.json": modules, "model.onnx": model_bytes}
    root = foreign(files)
    expected = sorted([*travel, "modules.json"])
    assert list(ModelDir.open(root).companion_names()) == expected
    for number, source in enumerate((ModelDir.open(root), root)):
        target = tmp_path / f"copy{number}"
        target.mkdir()
        copy_companions(source, target)
        assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == expected


def test_links_of_a_hub_cache_are_copied_as_files(tmp_path: Path, model_bytes: bytes) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, data in (("model.onnx", model_bytes), ("config.json", b"{}")):
        (blobs / name).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    model = ModelDir.open(snapshot)
    (tmp_path / "out").mkdir()
    copy_companions(model, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").is_symlink()


def test_opening_leaves_nothing_open_and_nothing_written(ours: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in ours.rglob("*"))
    ModelDir.open(ours).verify_digests()
    assert sorted((p, p.stat().st_mtime_ns) for p in ours.rglob("*")) == before
    assert np.all([p.is_file() for p, _ in before])
