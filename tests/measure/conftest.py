"""Tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnxkit.runtime import RuntimeOptions, Session, open_session


def masked_model(shift: float) -> onnx.ModelProto:
    """last_hidden_state[b, s, 1] = input_ids + shift, and a million more where the mask is 0."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], "ids", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "mask", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "mask"], ["padded"], "padded"),
        helper.make_node("Mul", ["padded", "huge"], ["extra"], "extra"),
        helper.make_node("Add", ["ids", "extra"], ["sum"], "sum"),
        helper.make_node("Add", ["sum", "shift"], ["flat"], "flat"),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["last_hidden_state"], "out"),
    ]
    constants = {"one": 1.0, "huge": 1e6 if shift else 0.0, "shift": shift}
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()
    ]
    initializers.append(helper.make_tensor("axis", TensorProto.INT64, [1], [2]))
    tokens = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, 1])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def masked_sum() -> Callable[[float], Session]:
    """Return a function that opens the model shifted by a number."""
    return lambda shift: open_session(masked_model(shift).SerializeToString(), RuntimeOptions(threads=1))


@pytest.fixture
def text_dir(tmp_path: Path) -> Path:
    """Return a directory as another tool would write it: model.onnx and config.json."""
    folder = tmp_path / "text"
    folder.mkdir()
    onnx.save(masked_model(0.0), folder / "model.onnx")
    config = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """Return an image model of another tool: logits = mean of the pixels."""
    folder = tmp_path / "image"
    folder.mkdir()
    node = helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], "mean", keepdims=0)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(
        json.dumps({
            "model_type": "vit", "image_size": 8, "num_channels": 1,
            "architectures": ["ViTForImageClassification"],
        })
    )  # fmt: skip
    return folder
