"""What `graph_inputs` and `make_plan` tell from models without weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from onnxkit.errors import InputError
from onnxkit.export.checkpoint import Access, open_checkpoint
from onnxkit.export.hooks import IMPLEMENTATION
from onnxkit.export.plan import Plan, make_plan
from onnxkit.export.signature import graph_inputs
from onnxkit.export.trace import empty_model
from tests.tiny_models import BY_NAME

TEXT, IMAGE = BY_NAME["bert"].settings, BY_NAME["vit"].settings
AST = {"num_hidden_layers": 1, "hidden_size": 32, "max_length": 64, "num_mel_bins": 32}


def build(stem: str, **settings: Any) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{stem.removesuffix('Vision')}Config", None)
    config = getattr(transformers, f"{stem}Config", config)
    make = getattr(transformers, f"{stem}Model")._from_config
    return empty_model(make, config(**settings), dtype=torch.float32)


def plan_of(model: transformers.PreTrainedModel, directory: Path, task: str = "auto") -> Plan:
    model.to_empty(device="cpu")
    model.save_pretrained(directory)
    checkpoint = open_checkpoint(str(directory), Access())
    return make_plan(checkpoint, task, partial(empty_model, dtype=torch.float32))


def test_layout_models_take_boxes() -> None:
    inputs = graph_inputs(build("LayoutLM", **TEXT), {})
    assert [given.name for given in inputs] == [
        "input_ids", "attention_mask", "token_type_ids", "bbox",
    ]  # fmt: skip
    assert inputs[-1].axes == ("batch_size", "sequence_length", 4)


def test_spectrograms_of_one_length() -> None:
    (given,) = graph_inputs(build("AST", **AST), {})
    assert (given.name, given.axes) == ("input_values", ("batch_size", 64, 32))


def test_what_a_model_needs_besides_is_named() -> None:
    model = build("Siglip2Vision", num_patches=16, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    with pytest.raises(InputError, match="pixel_attention_mask, spatial_shapes"):
        graph_inputs(model, {})


def test_features_of_images(tmp_path: Path) -> None:
    plan = plan_of(build("ViT", **IMAGE), tmp_path, "feature-extraction")
    assert (plan.task, plan.parts[0].signature.outputs[0]) == (
        "image-feature-extraction",
        "last_hidden_state",
    )


def test_a_classifier_on_one_of_two_towers(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(vision_config=dict(IMAGE), text_config=dict(TEXT))
    make: Any = transformers.CLIPForImageClassification._from_config
    plan = plan_of(empty_model(make, config, dtype=torch.float32), tmp_path)
    assert (plan.task, plan.model_class) == ("image-classification", "CLIPForImageClassification")
    assert plan.parts[0].signature.inputs[0].axes == ("batch_size", 3, 32, 32)


def test_attention_that_is_looked_up_in_a_table() -> None:
    model = build("Data2VecVision", **IMAGE)
    layer = model.encoder.layer[0].attention.attention
    assert "Sdpa" not in type(layer).__name__  # built as eager attention, for want of a row for ours
    assert model.config._attn_implementation == IMPLEMENTATION


def test_a_task_that_export_does_not_cover(tmp_path: Path) -> None:
    config = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path), Access())
    with pytest.raises(InputError, match="image-segmentation export does not cover"):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


def test_no_last_hidden_state(tmp_path: Path) -> None:
    plan = plan_of(build("ViT", **IMAGE), tmp_path)
    with pytest.raises(InputError, match="no last_hidden_state, only pooler_output"):
        plan.parts[0].run.outputs(transformers.utils.ModelOutput(pooler_output=torch.zeros(1)), {})
