from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxkit.artifact import Component
from onnxkit.artifact.genai import GENAI_NAME, check_genai_task, fit_genai_config
from onnxkit.errors import InputError, UsageError
from onnxkit.runtime import TensorSpec

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 99,
}  # fmt: skip


def _graph(*, layers: int = 2, sizes: Mapping[int, int] | None = None, extra: str = "") -> Component:
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


def _content(path: Path) -> Any:
    return json.loads((path / GENAI_NAME).read_text())


def test_the_shape_of_the_cache_comes_from_the_graph(tmp_path: Path) -> None:
    fit_genai_config(_directory(tmp_path, CONFIG), _graph(layers=3), shared=False, wanted=True)
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
    fit_genai_config(_directory(tmp_path, CONFIG, generation), _graph(), shared=True, wanted=True)
    content = _content(tmp_path)
    assert (content["model"]["eos_token_id"], content["model"]["pad_token_id"]) == ([5, 6], 0)
    search = content["search"]
    assert (search["do_sample"], search["top_p"], search["top_k"]) == (True, 0.9, 50)
    assert search["past_present_share_buffer"] is True


def test_a_long_context_does_not_reserve_all_of_its_memory(tmp_path: Path) -> None:
    config = {**CONFIG, "max_position_embeddings": 131072}
    fit_genai_config(_directory(tmp_path, config), _graph(), shared=True, wanted=True)
    assert _content(tmp_path)["model"]["context_length"] == 131072
    assert _content(tmp_path)["search"]["max_length"] == 4096


def test_gpt2s_names_and_nested_configs_are_read(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 48, "n_head": 6, "n_positions": 32, "eos_token_id": 3}
    fit_genai_config(_directory(tmp_path, {"text_config": gpt2}), _graph(), shared=False, wanted=True)
    model = _content(tmp_path)["model"]
    assert (model["decoder"]["hidden_size"], model["decoder"]["num_attention_heads"]) == (48, 6)
    assert model["context_length"] == 32


def test_a_later_stage_changes_only_what_depends_on_the_graph(tmp_path: Path) -> None:
    fit_genai_config(_directory(tmp_path, CONFIG), _graph(), shared=False, wanted=True)
    content = _content(tmp_path)
    content["search"] |= {"max_length": 17, "own": 1}
    (tmp_path / GENAI_NAME).write_text(json.dumps(content))
    fit_genai_config(tmp_path, _graph(), shared=True, wanted=False)
    content["search"]["past_present_share_buffer"] = True
    assert _content(tmp_path) == content


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    fit_genai_config(_directory(tmp_path, CONFIG), _graph(), shared=False, wanted=False)
    assert not (tmp_path / GENAI_NAME).exists()


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (_graph(sizes={1: 16}), "one shape in every layer"),
        (_graph(layers=0), "one shape in every layer"),
        (_graph(extra="token_type_ids"), "would not feed the input token_type_ids"),
    ],
)
def test_graphs_that_genai_cannot_drive_are_refused(tmp_path: Path, graph: Component, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit_genai_config(_directory(tmp_path, CONFIG), graph, shared=False, wanted=True)


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / GENAI_NAME).write_text("{}")
    with pytest.raises(InputError, match="no configuration of onnxruntime-genai"):
        fit_genai_config(tmp_path, _graph(), shared=False, wanted=False)


def test_it_is_for_text_generation_only() -> None:
    check_genai_task("fill-mask", wanted=False)
    with pytest.raises(UsageError, match="--genai-config does not apply to fill-mask"):
        check_genai_task("fill-mask", wanted=True)
