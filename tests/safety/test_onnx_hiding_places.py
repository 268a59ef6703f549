"""A tensor that reads outside must be found wherever the format lets one hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from onnxkit.errors import UnsafeError
from onnxkit.safety import read_model


def _stray(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[8], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _sparse() -> onnx.SparseTensorProto:
    indices = TensorProto(name="i", data_type=TensorProto.INT64, dims=[8], int64_data=range(8))
    return onnx.SparseTensorProto(values=_stray("v"), indices=indices, dims=[8])


def _graph(**fields: list[object]) -> onnx.GraphProto:
    return onnx.GraphProto(name="inner", **fields)  # type: ignore[arg-type]


def _add_attribute(model: onnx.ModelProto, **fields: object) -> None:
    kind = fields.pop("type")
    model.graph.node[1].attribute.append(AttributeProto(name="x", type=kind, **fields))  # type: ignore[arg-type]


def _subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute[1].g.initializer.append(_stray("s"))


def _subgraph_of_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("If", ["a"], ["z"], then_branch=_graph(initializer=[_stray("deep")]))
    model.functions[0].node.append(node)


def _function_constant(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].attribute[0].t.CopyFrom(_stray("f"))


def _function_default(model: onnx.ModelProto) -> None:
    model.functions[0].attribute_proto.append(
        AttributeProto(name="d", type=AttributeProto.TENSOR, t=_stray("d"))
    )


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add(initialization=_graph(initializer=[_stray("t")]))


def _mislabelled(model: onnx.ModelProto) -> None:
    """The attribute says FLOAT but carries a tensor: readers that trust the field will load it."""
    _add_attribute(model, type=AttributeProto.FLOAT, t=_stray("m"))


HIDING_PLACES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "initializer": lambda m: m.graph.initializer.append(_stray("w2")),
    "sparse initializer": lambda m: m.graph.sparse_initializer.append(_sparse()),
    "attribute": lambda m: _add_attribute(m, type=AttributeProto.TENSOR, t=_stray("a")),
    "attribute list": lambda m: _add_attribute(m, type=AttributeProto.TENSORS, tensors=[_stray("a")]),
    "sparse attribute": lambda m: _add_attribute(
        m, type=AttributeProto.SPARSE_TENSOR, sparse_tensor=_sparse()
    ),
    "sparse attribute list": lambda m: _add_attribute(
        m, type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[_sparse()]
    ),
    "graph attribute list": lambda m: _add_attribute(
        m, type=AttributeProto.GRAPHS, graphs=[_graph(initializer=[_stray("g")])]
    ),
    "subgraph": _subgraph,
    "function": _function_constant,
    "subgraph of a function": _subgraph_of_function,
    "default of a function's attribute": _function_default,
    "training graph": _training,
    "attribute with another type": _mislabelled,
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_found(place: str, linear_model: onnx.ModelProto, write: Callable[[onnx.ModelProto], Path]) -> None:
    HIDING_PLACES[place](linear_model)
    with pytest.raises(UnsafeError, match="passwd"):
        read_model(write(linear_model))
