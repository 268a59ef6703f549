from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxkit.artifact import Component
from onnxkit.artifact.genai import GENAI_NAME, check_genai, fit_genai_config
from onnxkit.errors import InputError, UsageError
from onnxkit.progress import Progress
from onnxkit.runtime import TensorSpec
from tests.heard import Heard

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 99,
}  # fmt: skip


def graph_of(*, layers: int = 2, sizes: Mapping[int, int] | None = None, extra: str = "") -> Component:
    def spec(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="int64", shape=shape)

    names = ["input_ids", "attention_mask", "position_ids", *([extra] if extra else [])]
    inputs = [spec(name, "batch_size", "sequence_length") for name in names]
    for layer in range(layers):
        size = (sizes or {}).get(layer, 8)
        inputs += [
            spec(f"past_key_values.{layer}.{kind}", "batch_size", 2, "past", size)
            for kind in ("key", "value")
        ]
    return Component(file="model.onnx", inputs=tuple(inputs), outputs=(spec("logits", "b", "s", 128),))


def _directory(path: Path, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def fit(path: Path, graph: Component, **given: bool) -> None:
    fit_genai_config(path, graph, **{"shared": False, "cuda": False, "wanted": True, **given})


def _content(path: Path) -> Any:
    return json.loads((path / GENAI_NAME).read_text())


def test_the_shape_of_the_cache_comes_from_thegraph_of(tmp_path: Path) -> None:
    fit(_directory(tmp_path, CONFIG), graph_of(layers=3))
    model, search = _content(tmp_path)["model"], _content(tmp_path)["search"]
    decoder = model["decoder"]
    facts = [decoder[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_size")]
    assert facts == [3, 2, 8]
    assert model["vocab_size"] == 128
    assert model["context_length"] == search["max_length"] == 64
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 2, 2)
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert search["past_present_share_buffer"] is False


def test_generation_config_comes_before_config(tmp_path: Path) -> None:
    generation = {"eos_token_id": [5, 6], "pad_token_id": 0, "do_sample": True, "top_p": 0.9, "top_k": None}
    fit(_directory(tmp_path, CONFIG, generation), graph_of(), shared=True)
    content = _content(tmp_path)
    assert (content["model"]["eos_token_id"], content["model"]["pad_token_id"]) == ([5, 6], 0)
    search = content["search"]
    assert (search["do_sample"], search["top_p"], search["top_k"]) == (True, 0.9, 50)
    assert search["past_present_share_buffer"] is True


def test_a_long_context_does_not_reserve_all_of_its_memory(tmp_path: Path) -> None:
    config = {**CONFIG, "max_position_embeddings": 131072}
    fit(_directory(tmp_path, config), graph_of(), shared=True)
    assert _content(tmp_path)["model"]["context_length"] == 131072
    assert _content(tmp_path)["search"]["max_length"] == 4096


def test_gpt2s_names_and_nested_configs_are_read(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 48, "n_head": 6, "n_positions": 32, "eos_token_id": 3}
    fit(_directory(tmp_path, {"text_config": gpt2}), graph_of())
    model = _content(tmp_path)["model"]
    assert (model["decoder"]["hidden_size"], model["decoder"]["num_attention_heads"]) == (48, 6)
    assert model["context_length"] == 32


def test_a_later_stage_changes_only_what_depends_on_thegraph_of(tmp_path: Path) -> None:
    fit(_directory(tmp_path, CONFIG), graph_of())
    content = _content(tmp_path)
    content["search"] |= {"max_length": 17, "own": 1}
    (tmp_path / GENAI_NAME).write_text(json.dumps(content))
    fit(tmp_path, graph_of(), shared=True, wanted=False)
    content["search"]["past_present_share_buffer"] = True
    assert _content(tmp_path) == content


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    fit(_directory(tmp_path, CONFIG), graph_of(), wanted=False)
    assert not (tmp_path / GENAI_NAME).exists()


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (graph_of(sizes={1: 16}), "one shape in every layer"),
        (graph_of(layers=0), "one shape in every layer"),
        (graph_of(extra="token_type_ids"), "would not feed the input token_type_ids"),
    ],
)
def test_graphs_that_genai_cannot_drive_are_refused(tmp_path: Path, graph: Component, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(_directory(tmp_path, CONFIG), graph)


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / GENAI_NAME).write_text("{}")
    with pytest.raises(InputError, match="no configuration of onnxruntime-genai"):
        fit(tmp_path, graph_of(), wanted=False)


def test_it_is_for_text_generation_only() -> None:
    check_genai("fill-mask", {}, wanted=False, progress=Progress())
    with pytest.raises(UsageError, match="--genai-config does not apply to fill-mask"):
        check_genai("fill-mask", {}, wanted=True, progress=Progress())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG, None),
        ({"model_type": "mistral", "sliding_window": 32}, "attention looks 32 slots back"),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}, None),
        ({"text_config": {"sliding_window": 16, "layer_types": ["sliding_attention"]}}, "16 slots back"),
        ({"sliding_window": 16, "layer_types": ["full_attention"] * 2}, None),
        ({"attention_chunk_size": 8, "layer_types": ["full_attention", "chunked_attention"]}, "8 slots"),
        ({"model_type": "gpt_neo", "window_size": 8, "attention_layers": ["global", "local"]}, "8 slots"),
        ({"model_type": "gpt_neo", "window_size": 8, "attention_layers": ["global"]}, None),
        ({"model_type": "mpt"}, "distance in slots"),
        ({"model_type": "bloom"}, None),
    ],
)
def test_what_counts_genai_s_padding_is_said(config: Mapping[str, Any], said: str | None) -> None:
    heard = Heard()
    check_genai("text-generation", config, wanted=True, progress=heard)
    assert [said is not None and said in warning for warning in heard.warnings] == [True] * bool(said)
    unasked = Heard()
    check_genai("text-generation", config, wanted=False, progress=unasked)
    assert not unasked.warnings


def test_a_graph_for_cuda_is_opened_there(tmp_path: Path) -> None:
    def providers() -> Any:
        return _content(tmp_path)["model"]["decoder"]["session_options"]["provider_options"]

    cuda = [{"cuda": {"enable_cuda_graph": "0"}}]
    fit(_directory(tmp_path, CONFIG), graph_of())
    assert providers() == []
    fit(tmp_path, graph_of(), cuda=True, wanted=False)
    assert providers() == cuda
    fit(tmp_path, graph_of(), wanted=False)
    assert providers() == []
    (tmp_path / GENAI_NAME).unlink()
    fit(tmp_path, graph_of(), cuda=True)
    assert providers() == cuda


def test_another_provider_stays(tmp_path: Path) -> None:
    fit(_directory(tmp_path, CONFIG), graph_of())
    content = _content(tmp_path)
    own = content["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"device_id": "1"}}]
    (tmp_path / GENAI_NAME).write_text(json.dumps(content))
    fit(tmp_path, graph_of(), cuda=True, wanted=False)
    assert _content(tmp_path)["model"]["decoder"]["session_options"]["provider_options"] == own
