"""Inputs and outputs of a model, read from its protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxkit.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

# numpy's names of ONNX's data types (onnx.proto, TensorProto.DataType); ml_dtypes' for the others.
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz",
    21: "uint4", 22: "int4", 23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
    27: "float6_e2m3fn", 28: "float6_e3m2fn",
}  # fmt: skip


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the inputs that a caller must feed: those without an initializer of the same name."""
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return _specs(value for value in model.graph.input if value.name not in known)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the model's outputs."""
    return _specs(model.graph.output)


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return TensorSpec(name=value.name, dtype=kind.removesuffix("_type"), shape=())
    tensor = value.type.tensor_type
    shape = tuple(_dimension(dim) for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=_DTYPES.get(tensor.elem_type, "unknown"), shape=shape)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
