"""What bad input gets: the documented exit code, one line, the old output untouched, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.harness import DIGITS, LANGID, Artifact, fails, snapshot, succeed

Copy = Callable[[Path], Path]


def small_model(opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Return y = x @ w with w float32 [4, 4]."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bare model file."""
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


def truncate(path: Path, share: float = 0.5) -> None:
    """Cut the end off a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["optimize", "quantize", "run", "profile", "verify", "inspect"])
def test_a_missing_path(command: str, untouched: Path) -> None:
    missing = untouched / "missing"
    more = {"optimize": [untouched / "new"], "quantize": [untouched / "new"], "run": ["a text"]}
    fails(3, command, missing, *more.get(command, []), says=[str(missing)])


def test_a_missing_checkpoint(untouched: Path) -> None:
    fails(3, "export", untouched / "missing", untouched / "new", says=["missing"])


@pytest.mark.parametrize("command", ["run", "profile", "verify", "inspect"])
def test_a_file_that_is_no_model(command: str, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    fails(3, command, text, *(["a text"] if command == "run" else []), says=["notes.txt"])


@pytest.mark.parametrize("command", ["run", "profile", "verify", "inspect"])
def test_a_folder_without_a_model(command: str, tmp_path: Path) -> None:
    fails(3, command, tmp_path, *(["a text"] if command == "run" else []), says=[tmp_path.name])


def test_a_checkpoint_that_is_a_file(tmp_path: Path, untouched: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    fails(3, "export", file, untouched / "new")


# --- names ------------------------------------------------------------------------------------------


def test_an_unknown_command() -> None:
    fails(2, "quantise", says=["quantise", "quantize"])


def test_an_unknown_option() -> None:
    fails(2, "quantize", "a", "b", "--calibraton", "c", says=["--calibraton", "--calibration"])


def test_an_unknown_scheme() -> None:
    fails(2, "quantize", "a", "b", "--scheme", "int8-dinamic", says=["int8-dinamic", "int8-dynamic"])


def test_an_unknown_task(langid: Artifact, untouched: Path) -> None:
    fails(2, "run", langid.path, "hello", "--task", "text-clasification", says=["text-classification"])
    fails(
        2, "export", LANGID, untouched / "new", "--task", "text-clasification", says=["text-classification"]
    )


def test_an_unknown_provider(langid: Artifact) -> None:
    fails(2, "run", langid.path, "hello", "--ep", "cdua", says=["cdua", "cuda"])


def test_a_task_that_the_model_does_not_have(langid: Artifact) -> None:
    fails(3, "run", langid.path, "hello", "--task", "question-answering")
    fails(3, "run", langid.path, "hello", "--task", "image-classification")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "DIR", "x", "--output", "y.npz"],
        ["run", "DIR", "x", "--json", "--jsonl"],
        ["run", "DIR", "x", "--pair", "a", "b"],
        ["run", "DIR", "x", "--column", "text=t"],
        ["run", "DIR", "--question", "q"],
        ["run", "DIR", "x", "--pooling", "cls"],
        ["run", "DIR"],
        ["run", "DIR", "--inputs", "x.npz", "--top-k", "2"],
        ["run", "DIR", "--inputs", "x.npz", "--overwrite"],
        ["run", "DIR", "--inputs", "x.npz", "--output", "none/y.npz"],
        ["run", "DIR", "x", "--top-k", "0"],
        ["quantize", "DIR", "OUT", "--samples", "3"],
        ["quantize", "DIR", "OUT", "--scheme", "int8-static"],
        ["quantize", "DIR", "OUT", "--exclude", "nothing-is-called-so"],
        ["quantize", "DIR", "OUT", "--exclude", "("],
        ["optimize", "DIR", "OUT", "--disable-fusion", "nosuch"],
        ["optimize", "DIR", "OUT", "-O7"],
        ["profile", "DIR", "--runs", "3", "--seconds", "1"],
        ["profile", "DIR", "--batch", "1,x"],
        ["profile", "DIR", "--overwrite"],
        ["profile", "DIR", "--trace", "none/t.json"],
        ["profile", "DIR", "--trace", "t.json", "--no-operators"],
    ],
)
def test_an_option_that_does_not_apply_or_makes_no_sense(
    words: list[str], langid: Artifact, untouched: Path
) -> None:
    places = {"DIR": str(langid.path), "OUT": str(untouched / "new")}
    fails(2, *(places.get(word, word) for word in words))


# --- weights and graphs -----------------------------------------------------------------------------


def test_a_checkpoint_without_weights(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    (checkpoint / "model.safetensors").unlink()
    fails(3, "export", checkpoint, untouched / "new", says=["weights"])


def test_truncated_safetensors(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    truncate(checkpoint / "model.safetensors")
    fails(3, "export", checkpoint, untouched / "old", "--overwrite", says=["model.safetensors"])


def test_safetensors_that_are_none(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 4096)
    fails(3, "export", checkpoint, untouched / "new", says=["model.safetensors"])


def test_a_damaged_config(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    truncate(checkpoint / "config.json")
    fails(3, "export", checkpoint, untouched / "new", says=["config.json"])


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
@pytest.mark.parametrize("command", ["run", "optimize", "quantize", "profile", "inspect", "verify"])
def test_a_damaged_graph(command: str, damage: str, copied: Copy, langid: Artifact, untouched: Path) -> None:
    model = copied(langid.path)
    graph = model / "model.onnx"
    size = graph.stat().st_size
    graph.write_bytes(
        {"truncated": graph.read_bytes()[: size // 2], "empty": b"", "garbage": b"\xff" * size}[damage]
    )
    more = {
        "optimize": [untouched / "old", "--overwrite"],
        "quantize": [untouched / "old", "--overwrite"],
        "run": ["hello"],
    }
    fails(3, command, model, *more.get(command, []), says=["model.onnx"])


@pytest.mark.parametrize("command", ["run", "profile", "inspect"])
def test_truncated_external_data(command: str, tmp_path: Path) -> None:
    onnx.save(
        small_model(), tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    words = [command, tmp_path, *(["--inputs", tmp_path / "x.npz"] if command == "run" else [])]
    succeed(*words)
    truncate(tmp_path / "model.onnx.data")
    fails(3, *words, says=["model.onnx.data"])


def test_a_changed_file_is_found_by_verify(copied: Copy, langid: Artifact) -> None:
    model = copied(langid.path)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.swapcase())
    fails(3, "verify", model, says=["config.json"])


@pytest.mark.parametrize(("opset", "ir", "said"), [(28, 14, "14"), (28, 10, "28"), (999, 8, "999")])
def test_an_opset_past_the_installed_onnxruntime(opset: int, ir: int, said: str, tmp_path: Path) -> None:
    onnx.save(small_model(opset, ir), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    fails(3, "run", tmp_path, "--inputs", tmp_path / "x.npz", says=[said, "onnxruntime"])


def test_exporting_to_an_opset_past_the_installed_onnxruntime(untouched: Path) -> None:
    fails(2, "export", LANGID, untouched / "new", "--opset", "99", says=["99"])


def test_a_newer_manifest_is_refused(copied: Copy, langid: Artifact) -> None:
    model = copied(langid.path)
    manifest = json.loads((model / "onnxkit.json").read_text())
    (model / "onnxkit.json").write_text(json.dumps({**manifest, "schema": 99}))
    fails(3, "run", model, "hello", says=["99", "onnxkit.json"])


def test_a_model_that_is_quantized_already(dynamic: Artifact, untouched: Path) -> None:
    fails(3, "quantize", dynamic.path, untouched / "new", says=["already"])


# --- unsafe -----------------------------------------------------------------------------------------


def test_remote_code_is_refused(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    fails(6, "export", checkpoint, untouched / "new", says=["config.json", "--trust-remote-code"])


def test_pickled_weights_are_refused(copied: Copy, untouched: Path) -> None:
    checkpoint = copied(LANGID)
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    fails(6, "export", checkpoint, untouched / "new", says=["--allow-pickle"])


def test_a_link_that_leads_out_is_refused(copied: Copy, langid: Artifact, tmp_path: Path) -> None:
    model = copied(langid.path)
    (tmp_path / "elsewhere.json").write_bytes((model / "config.json").read_bytes())
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "elsewhere.json")
    fails(6, "run", model, "hello", says=["config.json"])


# --- samples ----------------------------------------------------------------------------------------


def test_a_missing_tokenizer(copied: Copy, langid: Artifact) -> None:
    model = copied(langid.path)
    (model / "tokenizer.json").unlink()
    fails(3, "run", model, "hello", says=["tokenizer.json"])
    (model / "onnxkit.json").unlink()
    fails(3, "run", model, "hello", says=["tokenizer"])


def test_an_image_that_is_none(digits: Artifact, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    for content in (b"", b"this is a text", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        picture.write_bytes(content)
        fails(3, "run", digits.path, picture, says=["cat.png"])
    fails(3, "run", digits.path, tmp_path / "missing.png", says=["missing.png"])


def test_raw_tensors_that_do_not_fit(small: Path, tmp_path: Path) -> None:
    tensors = tmp_path / "x.npz"
    for arrays in (
        {"z": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((4,), np.float32)},
        {"x": np.zeros((1, 4), np.float32), "more": np.zeros(1)},
        {},
    ):
        np.savez(tensors, **arrays)
        fails(3, "run", small, "--inputs", tensors, "--output", tmp_path / "y.npz")
    assert not (tmp_path / "y.npz").exists()


def test_an_npz_that_is_none(small: Path, tmp_path: Path) -> None:
    tensors = tmp_path / "x.npz"
    for content in (b"", b"no archive"):
        tensors.write_bytes(content)
        fails(3, "run", small, "--inputs", tensors, says=["x.npz"])
    np.savez(tensors, x=np.array([{"pickled": 1}], dtype=object))
    fails(6, "run", small, "--inputs", tensors, says=["x.npz"])


def test_a_text_past_the_models_length_is_cut_with_a_warning(langid: Artifact) -> None:
    done = succeed("run", langid.path, "Wort " * 5000, "--json")
    assert len(done.document["warnings"]) == 1
    assert "warning:" in done.err and "cut" in done.err


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.csv"])
def test_an_empty_file(name: str, langid: Artifact, tmp_path: Path, untouched: Path) -> None:
    empty = tmp_path / name
    empty.write_text("")
    fails(3, "run", langid.path, "--file", empty, says=[name])
    fails(
        3, "quantize", langid.path, untouched / "new", "--scheme", "int8-static", "--calibration", empty,
        says=[name],
    )  # fmt: skip


def test_a_line_that_is_no_json(langid: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "hallo"}\n{"text": \n')
    fails(3, "run", langid.path, "--file", file, "--jsonl", says=["x.jsonl:2"])


def test_a_column_that_is_not_there(langid: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"sentence": "hallo"}\n')
    fails(3, "run", langid.path, "--file", file, says=["sentence", "--column"])
    succeed("run", langid.path, "--file", file, "--column", "text=sentence")


def test_inputs_of_the_wrong_kind(langid: Artifact, digits: Artifact) -> None:
    fails(2, "run", langid.path, "--question", "q", "--context", "c")
    fails(2, "run", digits.path, "--pair", "a", "b")
    fails(3, "run", digits.path, "just words", says=["just words"])


# --- environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "profile", "verify"])
def test_cuda_that_cannot_be_used(command: str, langid: Artifact) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    more = ["hello"] if command == "run" else []
    fails(
        4, command, langid.path, *more, "--ep", "cuda", env=hidden, says=["CUDAExecutionProvider", "--ep cpu"]
    )


# --- outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export", "optimize", "quantize"])
def test_an_output_that_exists(command: str, langid: Artifact, untouched: Path) -> None:
    source = LANGID if command == "export" else langid.path
    fails(2, command, source, untouched / "old", says=["old", "--overwrite"])


@pytest.mark.parametrize("command", ["export", "optimize", "quantize"])
def test_an_output_that_is_a_link_or_a_file(command: str, langid: Artifact, tmp_path: Path) -> None:
    source = LANGID if command == "export" else langid.path
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("x")
    before = snapshot(tmp_path)
    assert fails_somehow(command, source, tmp_path / "link", "--overwrite") in (2, 6)
    assert fails_somehow(command, source, tmp_path / "file", "--overwrite") in (2, 5)
    assert snapshot(tmp_path) == before


def fails_somehow(*words: str | Path) -> int:
    """Return the exit code of a run that must fail with one line."""
    from tests.e2e.harness import run

    done = run(*words)
    assert done.code != 0 and len(done.errors) == 1, done.err
    return done.code


def test_files_that_exist_are_not_replaced(small: Path, langid: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((2, 4), np.float32))
    (tmp_path / "y.npz").write_bytes(b"old")
    (tmp_path / "trace.json").write_bytes(b"old")
    words = ("run", small, "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    fails(2, *words, says=["y.npz", "--overwrite"])
    fails(2, "profile", langid.path, "--trace", tmp_path / "trace.json", says=["trace.json"])
    assert (tmp_path / "y.npz").read_bytes() == (tmp_path / "trace.json").read_bytes() == b"old"
    succeed(*words, "--overwrite")
    with np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_array_equal(arrays["y"], np.ones((2, 4), np.float32))


def test_a_failure_under_json_is_a_document(tmp_path: Path) -> None:
    done = fails(3, "run", tmp_path / "missing", "hello", "--json")
    assert done.document["error"]["code"] == 3
    assert f"error: {done.document['error']['message']}" == done.errors[0]


def test_digits_checkpoint_needs_no_tokenizer(digits: Artifact) -> None:
    assert digits.done.document["result"]
    assert not (DIGITS / "tokenizer.json").exists()
