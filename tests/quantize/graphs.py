"""Small graphs and directories for the tests of quantization, built without PyTorch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxkit.quantize.activations import Range
from onnxkit.quantize.formats import Format, Grid
from onnxkit.quantize.hardware import hardware_for
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.planning import Planner
from onnxkit.quantize.rewrite import prepare, rewrite
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.select import Selection, select
from onnxkit.runtime import RuntimeOptions, Session, open_session

ONE = RuntimeOptions(threads=1)
Weights = Mapping[str, np.ndarray[Any, Any]]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Normal float32 values."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def proto(
    nodes: Sequence[onnx.NodeProto],
    weights: Weights,
    *,
    inputs: Mapping[str, Sequence[str | int]],
    outputs: Sequence[str] = ("y",),
    ids: bool = False,
) -> onnx.ModelProto:
    """A model of opset 18 with float (or, with `ids`, int64) inputs and float outputs."""
    kind = TensorProto.INT64 if ids else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def mlp(*, width: int = 32, inner: int = 64, seed: int = 0) -> onnx.ModelProto:
    """x [B,S,32] -> up -> Relu -> down -> LayerNormalization -> y [B,S,32]."""
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["u"], name="layer.up"),
        helper.make_node("Add", ["u", "up.bias"], ["ub"], name="layer.up/bias"),
        helper.make_node("Relu", ["ub"], ["r"], name="layer.act"),
        helper.make_node("MatMul", ["r", "down.weight"], ["d"], name="layer.down"),
        helper.make_node("Add", ["down.bias", "d"], ["db"], name="layer.down/bias"),
        helper.make_node("LayerNormalization", ["db", "norm.weight"], ["y"], name="norm"),
    ]
    weights = {
        "up.weight": random(width, inner, seed=seed),
        "up.bias": random(inner, seed=seed + 1),
        "down.weight": random(inner, width, seed=seed + 2),
        "down.bias": random(width, seed=seed + 3),
        "norm.weight": np.ones(width, dtype=np.float32),
    }
    return proto(nodes, weights, inputs={"x": ["batch_size", "sequence_length", width]})


def mlp_dir(folder: Path, **settings: Any) -> Path:
    """A foreign directory with the graph of `mlp`, run on raw tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(mlp(**settings), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"model_type": "mlp"}))
    return folder


def quantized(
    model: onnx.ModelProto | ir.Model,
    *,
    options: QuantizeOptions | None = None,
    grid: Grid = "paired",
    rows: bool = False,
    ranges: Mapping[str, Range] | None = None,
    formats: Mapping[str, Format] | None = None,
    target: str = "avx2",
) -> tuple[onnx.ModelProto, Selection]:
    """Select and rewrite in memory; every layer is taken, however small (`include` of everything).

    `formats` overrides those of the scheme, by target.
    """
    options = options or QuantizeOptions(include=(".",))
    graph = prepare(ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model, "model.onnx")
    scheme = SCHEMES[options.scheme]
    selection = select(graph, scheme, options)
    hardware = dataclasses.replace(hardware_for(target), products=grid, convolutions=grid)
    planner = Planner(scheme=scheme, options=options, hardware=hardware, rows=rows)
    plan = {**planner.plan(selection.targets), **(formats or {})}
    rewrite(graph, selection.targets, plan, ranges=ranges)
    return ir.to_proto(graph), selection


def session(model: onnx.ModelProto) -> Session:
    """Open a model from memory, on one thread."""
    return open_session(model.SerializeToString(), ONE)


def operators(model: onnx.ModelProto) -> list[str]:
    """The operator types of the graph, in order."""
    return [node.op_type for node in model.graph.node]


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Of two arrays as vectors."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
