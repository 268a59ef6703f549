from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoModelForCausalLM

from onnxkit.errors import EnvironmentProblem, InputError, UsageError
from onnxkit.export import export_model, gguf
from onnxkit.export.checkpoint import Access, open_checkpoint
from onnxkit.runtime import open_session
from tests.export.gguf_files import HEAD, KV_HEADS, llama, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", llama(), kind=GGMLQuantizationType.F32)


def test_the_graph_computes_what_the_file_holds(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", llama(), kind=GGMLQuantizationType.Q8_0)
    report = export_model(file, tmp_path / "out")
    assert (report.task, report.model_class) == ("text-generation", "LlamaForCausalLM")
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {one.name for one in report.files}
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).eval()
    ids = np.array([[5, 6, 7, 8, 9]])
    session = open_session(tmp_path / "out" / "model.onnx")
    past = {
        spec.name: np.zeros((1, KV_HEADS, 0, HEAD), np.float32)
        for spec in session.inputs
        if spec.name.startswith("past")
    }
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(5)[None]}
    feeds = {spec.name: known[spec.name] for spec in session.inputs if spec.name in known}
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
        exact = llama()(torch.from_numpy(ids)).logits.numpy()
    logits = session.run({**feeds, **past})["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    # Dequantized from 8 bits: near the weights that went into the file, and not the same.
    assert 1e-4 < np.abs(logits - exact).max() / np.abs(exact).max() < 0.05


def test_config_and_tokenizer_come_from_the_file(file: Path) -> None:
    checkpoint = open_checkpoint(str(file), Access())
    assert checkpoint.settings["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.settings["num_key_value_heads"] == KV_HEADS
    assert checkpoint.weight_files == ()
    assert checkpoint.load_arguments()["gguf_file"] == "tiny.gguf"


def test_the_digest_is_the_files(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    before = open_checkpoint(str(copy), Access()).digest()
    assert before == open_checkpoint(str(file), Access()).digest()
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(bytes(content))
    assert open_checkpoint(str(copy), Access()).digest() != before


def test_rotary_factors_that_transformers_ignores_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", llama(), kind=GGMLQuantizationType.F32, rotary=True)
    with pytest.raises(InputError, match="rotary frequencies"):
        open_checkpoint(str(file), Access())


def test_a_damaged_file_is_refused(file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"short\.gguf"):
        open_checkpoint(str(short), Access())
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no weights at all, only text")
    with pytest.raises(InputError, match="not GGUF"):
        open_checkpoint(str(other), Access())


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", llama(), kind=GGMLQuantizationType.F32, merges=["a ?b"])
    with pytest.raises(InputError, match="no tokenizer"):
        gguf.write_gguf_companions(file, {"architectures": ["LlamaForCausalLM"]}, tmp_path)


def test_a_foreign_architecture_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "odd.gguf", "rwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="rwkv7"):
        open_checkpoint(str(tmp_path / "odd.gguf"), Access())


def test_options_of_a_repository_do_not_apply(file: Path) -> None:
    with pytest.raises(UsageError, match="--revision"):
        open_checkpoint(str(file), Access(revision="main"))


def test_a_missing_package_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(EnvironmentProblem, match=r"onnxkit\[export,gguf\]"):
        open_checkpoint(str(file), Access())
