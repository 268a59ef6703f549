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
from onnxkit.export.parts import encoder_of
from onnxkit.export.plan import Plan, make_plan
from onnxkit.export.signature import graph_inputs
from onnxkit.export.trace import empty_model
from tests.tiny_models import BY_NAME, save_tiny

TEXT, IMAGE = BY_NAME["bert"].settings, BY_NAME["vit"].settings
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}
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


def test_audio_of_any_length() -> None:
    settings = {name: dict(BY_NAME[f"{name}-speech"].settings) for name in ("moonshine", "speech2text")}
    wave, mask = graph_inputs(encoder_of(build("Moonshine", **settings["moonshine"])), {})
    assert (wave.name, wave.axes, mask.axes) == ("input_values", *[("batch_size", "num_samples")] * 2)
    (alone,) = graph_inputs(
        encoder_of(build("Moonshine", **settings["moonshine"])), {"return_attention_mask": False}
    )
    assert alone == wave
    banks, mask = graph_inputs(encoder_of(build("Speech2Text", **settings["speech2text"])), {})
    assert (banks.name, banks.axes) == ("input_features", ("batch_size", "num_frames", 20))
    assert mask.axes == ("batch_size", "num_frames")
    pairs, _ = graph_inputs(build("Wav2Vec2Bert", **SMALL, feature_projection_input_dim=160), {})
    assert pairs.axes == ("batch_size", "num_frames", 160)


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


def test_patches_of_any_shape_are_refused() -> None:
    vision = {**SMALL, "patch_size": 8, "num_patches": 16}
    config = transformers.Siglip2Config(
        vision_config=vision, text_config={**TEXT, "max_position_embeddings": 16}
    )
    make: Any = transformers.Siglip2ForImageClassification._from_config
    with pytest.raises(InputError, match="Siglip2ForImageClassification takes pixel_values, spatial_shapes"):
        graph_inputs(empty_model(make, config, dtype=torch.float32), {})


def test_two_models_as_encoder_and_decoder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_tiny("bert2bert-seq2seq", tmp_path)), Access())
    plan = make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))
    encoder, decoder = plan.parts
    assert plan.task == "text2text-generation"
    assert [given.name for given in encoder.signature.inputs] == ["input_ids", "attention_mask"]
    assert decoder.signature.outputs[0] == "logits"


def test_an_encoder_that_is_a_plain_module(tmp_path: Path) -> None:
    settings = {**BY_NAME["bart-seq2seq"].settings, "src_vocab_size": 128, "tgt_vocab_size": 128}
    config = transformers.FSMTConfig(**settings, langs=["en", "de"])
    transformers.FSMTForConditionalGeneration(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path), Access())
    with pytest.raises(InputError, match="does not keep the keys and values of its cross-attention"):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


def test_a_decoder_that_cannot_be_looked_into_says_why(tmp_path: Path) -> None:
    config = transformers.MvpConfig(**BY_NAME["bart-seq2seq"].settings)
    transformers.MvpForConditionalGeneration(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path), Access())
    with pytest.raises(InputError, match=r"for generation: ValueError: Attention mask should be of size"):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


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
    offered = "image-classification, image-feature-extraction$"
    with pytest.raises(InputError, match=f"image-segmentation export does not cover: .*export: {offered}"):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


def test_a_model_that_export_covers_no_task_of(tmp_path: Path) -> None:
    config = {"model_type": "depth_anything", "architectures": ["DepthAnythingForDepthEstimation"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path), Access())
    with pytest.raises(InputError, match="does not cover; it covers no other task of this model"):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


def test_a_class_that_names_no_task(tmp_path: Path) -> None:
    config = {"model_type": "vitpose", "architectures": ["VitPoseForPoseEstimation"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path), Access())
    with pytest.raises(
        InputError, match="is a VitPoseForPoseEstimation; export covers no task of this model"
    ):
        make_plan(checkpoint, "auto", partial(empty_model, dtype=torch.float32))


BIT = {"image_processor_type": "BitImageProcessor"}
CROP = {**BIT, "do_center_crop": True, "size": {"shortest_edge": 36}}


@pytest.mark.parametrize(
    ("stem", "processor", "edges"),
    [
        ("Dinov2", {**CROP, "crop_size": {"height": 24, "width": 40}}, (24, 40)),
        ("Dinov2", {**BIT, "do_center_crop": False, "do_resize": False}, (32, 32)),
        ("ViT", {**CROP, "crop_size": {"height": 48, "width": 48}}, (32, 32)),  # it takes no other size
        ("Dinov2", {"image_processor_type": "OfAnotherKind", "size": {"height": 48, "width": 48}}, (48, 48)),
        ("Dinov2", {}, (32, 32)),
    ],
)  # fmt: skip
def test_images_are_as_large_as_the_processor_makes_them_where_the_model_takes_that(
    stem: str, processor: dict[str, Any], edges: tuple[int, int]
) -> None:
    (given,) = graph_inputs(build(stem, **IMAGE), processor)
    assert given.axes == ("batch_size", 3, *edges)


@pytest.mark.parametrize(
    ("processor", "edges"),
    [
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 64}, (64, 64)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}}, (64, 64)),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 32}}, (64, 32)),
    ],
)
def test_images_of_a_model_that_is_configured_for_no_size(
    processor: dict[str, Any], edges: tuple[int, int]
) -> None:
    (given,) = graph_inputs(build("PoolFormer", hidden_sizes=[8] * 4, depths=[1] * 4), processor)
    assert given.axes == ("batch_size", 3, *edges)


def test_what_prepares_images_may_stand_with_the_other_processors(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    own = tmp_path / "preprocessor_config.json"
    settings = json.loads(own.read_text())
    own.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert open_checkpoint(str(tmp_path), Access()).processor == settings


def test_no_last_hidden_state(tmp_path: Path) -> None:
    plan = plan_of(build("ViT", **IMAGE), tmp_path)
    with pytest.raises(InputError, match="no last_hidden_state, only pooler_output"):
        plan.parts[0].run.outputs(transformers.utils.ModelOutput(pooler_output=torch.zeros(1)), {})
