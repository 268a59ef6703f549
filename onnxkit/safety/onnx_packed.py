"""Rules for packed weights: kernels trust the attributes, so the bytes must be what they say.

ONNX Runtime's MatMulNBits packs its weight while the session loads, from byte counts computed
from `K`, `N`, `bits` and `block_size`; a shorter initializer is read past its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxkit.errors import InputError
from onnxkit.safety.onnx_tensors import size_bytes
from onnxkit.safety.onnx_walk import subgraphs, top_graphs
from onnxkit.safety.text import printable

_DOMAIN = "com.microsoft"
_PACKED = ("MatMulNBits", "GatherBlockQuantized")
# Operators that hand on a tensor of the same shape: a scale may be stored in fp16 behind a Cast.
_SHAPE_PRESERVING = ("Cast", "CastLike", "Identity")

Scope = Mapping[str, TensorProto]


def check_packed_weights(model: onnx.ModelProto, path: Path) -> None:
    """Check weight, scales and zero points of every block-quantized operator.

    Raises:
        InputError: they do not have the bytes that the attributes say, or the operator stands in
            a model-local function, where its weight cannot be seen.
    """
    for graph in top_graphs(model):
        for node, scope in _packed_nodes(graph.node, _initializers(graph, {})):
            _check_node(node, scope, path)
    for function in model.functions:
        for node, scope in _packed_nodes(function.node, _constants(function.node, {})):
            if any(name and name not in scope for name in _weight(node)):
                raise InputError(f"{_title(node, path)} stands in a function: its weight cannot be checked")
            _check_node(node, scope, path)


def _packed_nodes(nodes: Iterable[onnx.NodeProto], scope: Scope) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    for node in nodes:
        if node.op_type in _PACKED and node.domain == _DOMAIN:
            yield node, scope
        for graph in subgraphs(node):
            yield from _packed_nodes(graph.node, _initializers(graph, scope))


def _initializers(graph: onnx.GraphProto, outer: Scope) -> Scope:
    own = {tensor.name: tensor for tensor in graph.initializer}
    return _constants(graph.node, {**outer, **own})


def _constants(nodes: Iterable[onnx.NodeProto], known: Scope) -> Scope:
    """Add what Constant, Cast and Identity nodes yield from known tensors, in the nodes' order."""
    scope = dict(known)
    for node in nodes:
        if node.op_type == "Constant" and node.output:
            scope.update(
                (node.output[0], a.t) for a in node.attribute if a.name == "value" and a.HasField("t")
            )
        elif node.op_type in _SHAPE_PRESERVING and node.input and node.output:
            source = scope.get(node.input[0])
            if source is not None:
                scope[node.output[0]] = _recast(source, node)
    return scope


def _recast(source: TensorProto, node: onnx.NodeProto) -> TensorProto:
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), source.data_type)
    return TensorProto(name=source.name, dims=source.dims, data_type=TensorProto.DataType.ValueType(to))


def _weight(node: onnx.NodeProto) -> list[str]:
    """Return the name of the packed weight, if the node has one."""
    return list(node.input[1:2] if node.op_type == "MatMulNBits" else node.input[:1])


def _check_node(node: onnx.NodeProto, scope: Scope, path: Path) -> None:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    tensors = [scope.get(name) for name in node.input]
    if node.op_type == "MatMulNBits":
        _check_matmul(attributes, [*tensors, None, None, None, None], _title(node, path))
    else:
        _check_gather(attributes, [*tensors, None, None, None, None], _title(node, path))


def _check_matmul(attributes: Mapping[str, int], inputs: list[TensorProto | None], where: str) -> None:
    """B is [N, blocks, block bytes], scales [N, blocks], zero points packed rows or one a block."""
    k, n = attributes.get("K", 0), attributes.get("N", 0)
    bits, block = attributes.get("bits", 4), attributes.get("block_size", 0)
    _check_attributes(bits, block, where)
    if k < 1 or n < 1:
        raise InputError(f"{where}: K and N must be positive, they are {k} and {n}")
    blocks = -(-k // block)
    _, weight, scales, zero_points = inputs[:4]
    _expect(weight, {n * blocks * (block * bits // 8)}, where, "weight", in_bytes=True)
    _expect(scales, {n * blocks}, where, "scales")
    if zero_points is not None and zero_points.data_type == TensorProto.UINT8:
        _expect(zero_points, {n * -(-blocks * bits // 8)}, where, "zero points")
    else:
        _expect(zero_points, {n * blocks}, where, "zero points")


def _check_gather(attributes: Mapping[str, int], inputs: list[TensorProto | None], where: str) -> None:
    """Scales have the data's shape with the quantized axis divided by the block size, rounded up."""
    bits, block = attributes.get("bits", 4), attributes.get("block_size", 128)
    _check_attributes(bits, block, where)
    data, _, scales, zero_points = inputs[:4]
    if data is None:
        return
    shape = list(data.dims)
    packing = 8 // bits if data.data_type == TensorProto.UINT8 else 1
    if not shape:
        raise InputError(f"{where}: its data is a scalar")
    shape[-1] *= packing
    axis = attributes.get("quantize_axis", 1)
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"{where}: quantize_axis {axis} is not among {len(shape)} axes")
    shape[axis] = -(-shape[axis] // block)
    _expect(scales, {math.prod(shape)}, where, "scales")
    packed = [*shape[:-1], -(-shape[-1] // packing)]
    _expect(zero_points, {math.prod(packed)}, where, "zero points")


def _check_attributes(bits: int, block: int, where: str) -> None:
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1):
        raise InputError(
            f"{where}: bits {bits} and block size {block}; known are 2, 4, 8 and powers of two from 16"
        )


def _expect(
    tensor: TensorProto | None, allowed: set[int], where: str, what: str, *, in_bytes: bool = False
) -> None:
    if tensor is None:
        return
    count = math.prod(tensor.dims)
    if in_bytes:
        count = size_bytes(TensorProto.DataType.Name(tensor.data_type), count)
    if count not in allowed:
        unit = "bytes" if in_bytes else "values"
        raise InputError(f"{where}: its {what} have {count} {unit}, its attributes say {min(allowed)}")


def _title(node: onnx.NodeProto, path: Path) -> str:
    return f"{path}: {node.op_type} {printable(node.name, limit=120)!r}"
