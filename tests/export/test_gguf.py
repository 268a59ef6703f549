from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from onnxkit.errors import EnvironmentProblem, InputError, UsageError
from onnxkit.export import export_model, gguf
from onnxkit.export.checkpoint import Access, open_checkpoint
from onnxkit.runtime import open_session

HEADS, KV_HEADS, HEAD, LAYERS, WIDTH = 4, 2, 8, 2, 32
PIECES = [*map(chr, (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))), "ab", "abc"]
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    "model.layers": "blk",
}  # fmt: skip


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, head_dim=HEAD,
            num_key_value_heads=KV_HEADS, intermediate_size=64, vocab_size=len(PIECES) + 2, eos_token_id=1,
            bos_token_id=0, max_position_embeddings=64, rms_norm_eps=1e-5, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotated projection in llama.cpp's order: pairs beside each other, not in halves."""
    return weight.reshape(heads, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind: GGMLQuantizationType,
    rotary: bool = False,
    merges: Sequence[str] = ("a b", "ab c"),
) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(PIECES) + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *PIECES])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        array, own = tensor.numpy(), name.removesuffix(".weight")
        for theirs, mine in _NAMES.items():
            own = own.replace(theirs, mine)
        if "attn_q" in own or "attn_k" in own:
            array = _interleaved(array, HEADS if "attn_q" in own else KV_HEADS)
        plain = array.ndim == 1
        stored = array if plain else quants.quantize(array, kind)
        writer.add_tensor(f"{own}.weight", stored, raw_dtype=None if plain else kind)
    if rotary:
        writer.add_tensor("rope_freqs.weight", np.ones(HEAD // 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _write(tmp_path / "tiny.gguf", _llama(), kind=GGMLQuantizationType.F32)


def test_the_graph_computes_what_the_file_holds(tmp_path: Path) -> None:
    file = _write(tmp_path / "tiny.gguf", _llama(), kind=GGMLQuantizationType.Q8_0)
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
        exact = _llama()(torch.from_numpy(ids)).logits.numpy()
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
    file = _write(tmp_path / "tiny.gguf", _llama(), kind=GGMLQuantizationType.F32, rotary=True)
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
    file = _write(tmp_path / "tiny.gguf", _llama(), kind=GGMLQuantizationType.F32, merges=["a ?b"])
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
