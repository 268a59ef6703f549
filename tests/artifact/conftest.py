"""Tiny model directories for the artifact's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.artifact import Invocation, ModelDir, publish, seal

Shape = Sequence[int | str]


def build_model(
    inputs: Mapping[str, Shape] | None = None, outputs: Mapping[str, Shape] | None = None
) -> onnx.ModelProto:
    """A valid protobuf with these inputs and outputs; it is read, not run."""
    inputs = inputs or {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]}
    outputs = outputs or {"last_hidden_state": ["batch", "seq", 4]}
    nodes = [helper.make_node("Identity", ["w"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def model_bytes() -> bytes:
    data: bytes = build_model().SerializeToString()
    return data


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Write a directory as another tool would: {name: bytes, text or JSON value}."""

    def make(files: Mapping[str, Any], name: str = "foreign") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for file, content in files.items():
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes | str) else json.dumps(content)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root

    return make


@pytest.fixture
def ours(tmp_path: Path, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published model directory of onnxkit."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out = tmp_path / "ours"
    with publish(out, overwrite=False) as staging:
        (staging / "model.onnx").write_bytes(model_bytes)
        (staging / "config.json").write_text('{"architectures": ["BertModel"]}')
        (staging / "tokenizer.json").write_text("{}")
        seal(
            staging,
            task="default",
            components={"model": "model.onnx"},
            invocation=Invocation(stage="export", argv=("onnxkit", "export", "a", "b"), options={"seed": 0}),
            parent=None,
            verified=None,
            measured={"seconds": 1.5},
        )
    assert ModelDir.open(out).manifest is not None
    return out
