"""Decoders exported from disk, and the traps that others fell into: each is a test on ONNX Runtime.

A dropped mask, a missing bias, positions of the first row for every row, a window cut at the wrong end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from onnxkit.errors import InputError
from onnxkit.export import ExportOptions, adapters, export_model
from onnxkit.export.decoder import decoder_part, run_decoder
from onnxkit.export.trace import empty_model
from onnxkit.graph.files import load_model
from onnxkit.graph.regions import find_regions
from onnxkit.runtime import RuntimeOptions, open_session

Array = np.ndarray[Any, Any]
LAYERS = 8
LLM = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 64, "num_hidden_layers": LAYERS, "vocab_size": 128, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Graph:
    """An exported decoder, fed by names."""

    def __init__(self, directory: Path) -> None:
        self.model = load_model(directory / "model.onnx")
        self.session = open_session(directory / "model.onnx", RuntimeOptions(threads=1))
        self.caches = [v for v in self.model.graph.inputs if str(v.name).startswith("past_key_values")]

    def last(self, ids: Array, mask: Array, count: int) -> Array:
        """The last `count` logits of a prompt."""
        binding = self.session.binding()
        for name, array in {**self.feeds(ids, mask), "num_logits_to_keep": np.array(count)}.items():
            binding.feed(name, array)
        binding.fetch_value("logits")
        binding.run()
        logits: Array = binding.values()["logits"].numpy()
        return logits

    def feeds(self, ids: Array, mask: Array, past: dict[str, Array] | None = None) -> dict[str, Array]:
        """With an empty past unless given, and positions as transformers counts them."""
        rows, length = ids.shape
        places = np.where(mask == 0, 0, np.cumsum(mask, axis=1) - 1)[:, -length:]
        empty = {str(v.name): np.zeros((rows, 2, 0, 8), dtype=np.float32) for v in self.caches}
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places, **(past or empty)}
        return {name: np.ascontiguousarray(array) for name, array in feeds.items()}

    def __call__(self, ids: Array, mask: Array, past: dict[str, Array] | None = None, **more: Array) -> Any:
        out = self.session.run({**self.feeds(ids, mask, past), **more})
        present = {n.replace("present", "past_key_values"): a for n, a in out.items() if n != "logits"}
        return out["logits"], present


def exported(tmp: Path, config: Any, **options: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp / "checkpoint")
    given = ExportOptions(task="text-generation", verify=False, exporter="trace", **options)
    export_model(tmp / "checkpoint", tmp / "out", given)
    return tmp / "out"


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A Mistral of eight layers with a window of six tokens."""
    config = transformers.MistralConfig(**LLM, sliding_window=6)
    return Graph(exported(tmp_path_factory.mktemp("mistral"), config))


@pytest.fixture(scope="module")
def reference(windowed: Graph) -> Any:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**LLM, sliding_window=6)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokens(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(3, 128, shape)


def test_layers_are_cloned_and_named_as_the_checkpoint_names_them(windowed: Graph) -> None:
    graph = windowed.model.graph
    names = set(graph.initializers)
    for layer in range(LAYERS):
        assert f"model.layers.{layer}.mlp.up_proj.weight" in names
    assert len(names & {"lm_head.weight", "model.embed_tokens.weight"}) == 1  # tied, and stored once
    found = [region.op for region in find_regions(windowed.model)]
    assert {op: found.count(op) for op in found} == {
        "attention": LAYERS, "mask": 1, "rms_norm": 2 * LAYERS + 1, "rotary": 2 * LAYERS,
    }  # fmt: skip
    layers = {region.id.split(".")[2] for region in find_regions(windowed.model) if region.op == "attention"}
    assert layers == {str(layer) for layer in range(LAYERS)}


def test_the_mask_is_there(windowed: Graph) -> None:
    names = [str(v.name) for v in windowed.model.graph.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert names[-1] == "num_logits_to_keep"
    mask = windowed.model.graph.inputs[1]
    assert mask.uses()
    assert [str(size) for size in mask.shape or ()] == ["batch_size", "total_sequence_length"]


def test_left_padding_changes_nothing(windowed: Graph) -> None:
    """The bias: without it keys of padding would be looked at."""
    ids, mask = tokens(3, 9), np.ones((3, 9), dtype=np.int64)
    mask[1, :4], mask[2, :7] = 0, 0
    together, _ = windowed(ids, mask)
    for row, start in ((0, 0), (1, 4), (2, 7)):
        alone, _ = windowed(ids[row : row + 1, start:], mask[row : row + 1, start:])
        np.testing.assert_allclose(together[row, start:], alone[0], atol=1e-5)


def test_every_row_has_its_own_positions(windowed: Graph) -> None:
    ids, mask = tokens(2, 5), np.ones((2, 5), dtype=np.int64)
    places = np.stack([np.arange(5), np.arange(20, 25)])
    together, _ = windowed(ids, mask, position_ids=places)
    for row in range(2):
        one = slice(row, row + 1)
        alone, _ = windowed(ids[one], mask[one], position_ids=places[one])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_the_window_ends_where_pytorchs_does(windowed: Graph, reference: Any) -> None:
    """In a whole prompt, and over a cache that is kept whole: only the mask knows the window."""
    ids, mask = tokens(1, 16), np.ones((1, 16), dtype=np.int64)
    whole, present = windowed(ids, mask)
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    assert {a.shape[2] for a in present.values()} == {16}
    pieces, past = [], None
    for first, end in ((0, 3), (3, 10), (10, 11), (11, 16)):
        logits, past = windowed(ids[:, first:end], mask[:, :end], past)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=1e-5)


def test_a_chunk_of_several_rows_continues_padded_prompts(windowed: Graph) -> None:
    ids, mask = tokens(3, 12), np.ones((3, 12), dtype=np.int64)
    mask[1, :2], mask[2, :5] = 0, 0
    whole, _ = windowed(ids, mask)
    _, past = windowed(ids[:, :8], mask[:, :8])
    rest, _ = windowed(ids[:, 8:], mask, past)
    np.testing.assert_allclose(rest, whole[:, 8:], atol=1e-5)


def test_the_last_logits_alone(windowed: Graph) -> None:
    ids, mask = tokens(2, 6), np.ones((2, 6), dtype=np.int64)
    whole, _ = windowed(ids, mask)
    for count in (1, 2, 6):
        last = windowed.last(ids, mask, count)
        np.testing.assert_allclose(last, whole[:, -count:], atol=1e-6)


def test_half_types_keep_the_cache_in_their_type(tmp_path: Path) -> None:
    settings = {**LLM, "num_hidden_layers": 2}
    out = exported(tmp_path, transformers.Gemma2Config(**settings, sliding_window=6), dtype="fp16")
    graph = load_model(out / "model.onnx").graph
    types = {str(v.name).split(".")[0]: str(v.dtype) for v in [*graph.inputs, *graph.outputs]}
    assert types == {
        "input_ids": "INT64", "attention_mask": "INT64", "position_ids": "INT64",
        "past_key_values": "FLOAT16", "present": "FLOAT16", "num_logits_to_keep": "INT64", "logits": "FLOAT",
    }  # fmt: skip


@pytest.mark.slow
def test_attention_by_hand_is_traced_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XGLM multiplies its own scores: without its adapter no region, but the same inputs and numbers."""
    monkeypatch.delitem(adapters.ADAPTERS, "XGLMAttention")
    config = transformers.XGLMConfig(
        d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, vocab_size=128, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.XGLMForCausalLM(config).eval().save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(task="text-generation", exporter="trace")
    report = export_model(tmp_path / "checkpoint", tmp_path / "out", options)
    assert report.level == "L1"
    assert report.verification is not None
    assert report.verification.passed
    found = find_regions(load_model(tmp_path / "out" / "model.onnx"))
    assert not [region for region in found if region.op == "attention"]


def test_recurrent_states_are_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=128)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(InputError, match="keeps other states than keys and values"):
        export_model(tmp_path / "mamba", tmp_path / "out", ExportOptions(task="text-generation"))


def test_a_decoder_without_a_cache_is_refused(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=16)
    transformers.OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path / "gpt")
    with pytest.raises(InputError, match="OpenAIGPTLMHeadModel takes no past keys and values"):
        export_model(tmp_path / "gpt", tmp_path / "out", ExportOptions(task="text-generation"))


def test_convolutional_layers_are_refused_by_their_name(tmp_path: Path) -> None:
    config = transformers.Lfm2Config(
        hidden_size=32, num_hidden_layers=2, vocab_size=128, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    transformers.Lfm2ForCausalLM(config).save_pretrained(tmp_path / "lfm2")
    with pytest.raises(InputError, match=r"keeps other states than keys and values .*\(layers of conv\)"):
        export_model(tmp_path / "lfm2", tmp_path / "out", ExportOptions(task="text-generation"))


@pytest.mark.parametrize("kept", [0, 2])
def test_the_traced_function_is_what_pytorch_computes(kept: int) -> None:
    """`run_decoder` in eager PyTorch equals the model's own cache and `logits_to_keep`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**LLM, "num_hidden_layers": 2})
    model = transformers.LlamaForCausalLM(config).eval()
    part = decoder_part(empty_model(type(model)._from_config, config, dtype=torch.float32), torch.float32)
    ids = torch.tensor(tokens(2, 7))
    inputs = {
        given.name: torch.zeros([2 if axis == "batch_size" else 0 if axis == "past_sequence_length" else axis
                                 for axis in given.axes])
        for given in part.signature.inputs if given.name.startswith("past")
    }  # fmt: skip
    inputs |= {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "num_logits_to_keep": torch.tensor(kept),
    }
    with torch.no_grad():
        got = run_decoder(model, inputs)
        expected = model(input_ids=ids, use_cache=True, logits_to_keep=kept)
    torch.testing.assert_close(got["logits"], expected.logits)
    for layer, cached in enumerate(expected.past_key_values.layers):
        torch.testing.assert_close(got[f"present.{layer}.key"], cached.keys)
        torch.testing.assert_close(got[f"present.{layer}.value"], cached.values)


def test_a_config_with_unequal_layers_is_traced_whole(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    """Gemma 3 alternates windows and two rotary tables."""
    source = tiny("gemma3-lm")
    assert len(set(json.loads((source / "config.json").read_text())["layer_types"])) == 2
    report = export_model(source, tmp_path / "out", ExportOptions(task="text-generation", exporter="trace"))
    assert report.verification is not None
    assert report.verification.passed
    masks = [r for r in find_regions(load_model(tmp_path / "out" / "model.onnx")) if r.op == "mask"]
    assert sorted(region.attrs["window"] for region in masks) == [0, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {
            "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 2.5, 3.0, 4.0], "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda scaling: str(scaling["rope_type"]),
)  # fmt: skip
def test_rotary_tables_below_and_beyond_the_trained_length(scaling: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **LLM, "num_hidden_layers": 2, "rope_parameters": {"rope_theta": 10000.0, **scaling},
        "max_position_embeddings": 16 if scaling["rope_type"] == "dynamic" else 64,
    }  # fmt: skip
    config = transformers.LlamaConfig(**settings)
    graph = Graph(exported(tmp_path, config))
    for length in (9, 30):
        torch.manual_seed(0)
        reference = transformers.LlamaForCausalLM(
            config
        ).eval()  # dynamic tables remember what they have seen
        ids = tokens(1, length)
        logits, _ = graph(ids, np.ones_like(ids))
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)
