"""What the weights of an ONNX graph are spent on: dtypes, operators, the share that is quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from onnxkit.measure.weight_slots import PASS_THROUGH, slots_at
from onnxkit.safety.onnx_walk import all_graphs, with_inner

# Bits of an element, by onnx.proto's TensorProto.DataType.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_FLOAT = frozenset({1, 10, 11, 16, 17, 18, 19, 20, 23})
_SMALL_INTEGER = frozenset({2, 3, 21, 22, 25, 26})
# Operators whose bytes hold several codes, and how many bits a code has where they do not say.
_AS_THEY_ARE = ("Cast", "Slice")
"""What stands between scales and their reader: they are stored in half precision, or for several experts."""
_STACK = 3
_PACKED, _DEFAULT_BITS = ("MatMulNBits", "GatherBlockQuantized", "QMoE"), 4


@dataclass(kw_only=True)
class Census:
    """Counters over all graphs of a model.

    Attributes:
        parameters: elements of weights; scales, zero points and integer constants are none.
        bytes_by_dtype: bytes of all initializers.
        bytes_by_operator: bytes of all initializers, by the operator that uses them.
        linear_nodes: matrix products and convolutions with a stored weight.
        quantized_nodes: those of them whose weight is an integer.
        linear_parameters: elements of their weights.
        quantized_parameters: elements of the integer ones.
        quantized_bytes: bytes of those, with their scales and zero points.
        quantized_layers: bits of a code by node, for those of `linear_nodes` that are quantized.
    """

    parameters: int = 0
    bytes_by_dtype: Counter[str] = field(default_factory=Counter)
    bytes_by_operator: Counter[str] = field(default_factory=Counter)
    linear_nodes: int = 0
    quantized_nodes: int = 0
    linear_parameters: int = 0
    quantized_parameters: int = 0
    quantized_bytes: int = 0
    quantized_layers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Use:
    node: onnx.NodeProto
    slot: int


@dataclass(frozen=True)
class _Scope:
    """One graph's values: initializers, the nodes that make them, the nodes that use them."""

    tensors: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]
    uses: dict[str, list[_Use]]


def take_census(model: onnx.ModelProto) -> Census:
    """Count the weights of `model` without reading a value of them."""
    census = Census()
    for graph in all_graphs(model):
        _count_graph(graph, census)
    return census


def type_name(node: onnx.NodeProto) -> str:
    """Return a node's operator type, with its domain in front where that is not ONNX's own."""
    return node.op_type if node.domain in _STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def _count_graph(graph: onnx.GraphProto, census: Census) -> None:
    uses: dict[str, list[_Use]] = {}
    nodes = list(with_inner(graph.node))  # a loop's body reads the weights of the graph around it
    for node in nodes:
        for slot, name in enumerate(node.input):
            uses.setdefault(name, []).append(_Use(node, slot))
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    scope = _Scope(tensors=tensors, makers=makers, uses=uses)
    seen: set[str] = set()
    for tensor in tensors.values():
        consumers = list(_consumers(tensor, uses))
        _count_bytes(tensor, consumers, census)
        if _is_parameter(tensor, consumers):
            census.parameters += _logical_elements(tensor, consumers)
        for use in consumers:
            slots = slots_at(use.node.op_type, use.slot)
            if slots is not None and slots.linear and use.slot == slots.weight:
                _count_linear(tensor, use, scope, seen, census)


def _consumers(tensor: onnx.TensorProto, uses: dict[str, list[_Use]]) -> Iterator[_Use]:
    """Yield who finally uses a weight, through operators that only hand it on.

    A Gather from a stack of matrices hands on one of them: an expert's.
    """
    handing_on = PASS_THROUGH | {"Gather"} if len(tensor.dims) == _STACK else PASS_THROUGH
    waiting, done = [tensor.name], {tensor.name}
    while waiting:
        for use in uses.get(waiting.pop(), ()):
            if use.node.op_type not in handing_on or use.slot != 0:
                yield use
                continue
            fresh = [output for output in use.node.output if output not in done]
            done.update(fresh)
            waiting.extend(fresh)


def _count_bytes(tensor: onnx.TensorProto, consumers: list[_Use], census: Census) -> None:
    size = _bytes(tensor)
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    census.bytes_by_dtype[_NUMPY_NAMES.get(name, name)] += size
    census.bytes_by_operator[type_name(consumers[0].node) if consumers else "(unused)"] += size


def _is_parameter(tensor: onnx.TensorProto, uses: list[_Use]) -> bool:
    """Tell weights from scales, zero points, shapes and scalar constants."""
    if tensor.data_type not in _FLOAT | _SMALL_INTEGER or not tensor.dims:
        return False
    slots = ((slots_at(use.node.op_type, use.slot), use.slot) for use in uses)
    return bool(uses) and not any(known is not None and slot in known.parameters for known, slot in slots)


def _count_linear(tensor: onnx.TensorProto, use: _Use, scope: _Scope, seen: set[str], census: Census) -> None:
    """Count one weight of one linear node; a weight that several nodes share counts once."""
    integer = tensor.data_type in _SMALL_INTEGER
    elements = _logical_elements(tensor, [use])
    census.linear_nodes += 1
    census.quantized_nodes += integer
    if integer:
        census.quantized_layers[use.node.name or use.node.output[0]] = _code_bits(tensor, use)
    if tensor.name not in seen:
        seen.add(tensor.name)
        census.linear_parameters += elements
        if integer:
            census.quantized_parameters += elements
            census.quantized_bytes += _bytes(tensor) + sum(map(_bytes, _companions(tensor, use, scope)))


def _companions(tensor: onnx.TensorProto, use: _Use, scope: _Scope) -> Iterator[onnx.TensorProto]:
    """Yield the scales and zero points of a weight: of the node that uses it, or of its DequantizeLinear."""
    slots = slots_at(use.node.op_type, use.slot)
    positions = () if slots is None else slots.parameters
    names = [use.node.input[slot] for slot in positions if slot < len(use.node.input)]
    for direct in scope.uses.get(tensor.name, ()):
        if direct.node.op_type == "DequantizeLinear":
            names.extend(direct.node.input[1:])
    for name in names:
        while (maker := scope.makers.get(name)) is not None and maker.op_type in _AS_THEY_ARE and maker.input:
            name = maker.input[0]
        if name in scope.tensors:
            yield scope.tensors[name]


def _bytes(tensor: onnx.TensorProto) -> int:
    return (_elements(tensor) * _BITS.get(tensor.data_type, 0) + 7) // 8


def _elements(tensor: onnx.TensorProto) -> int:
    total = 1
    for dim in tensor.dims:
        total *= dim
    return total


def _logical_elements(tensor: onnx.TensorProto, consumers: list[_Use]) -> int:
    """Return the number of values that a tensor stands for; uint8 bytes may pack several."""
    for use in consumers:
        slots = slots_at(use.node.op_type, use.slot)
        if slots is not None and slots.weight == use.slot and tensor.data_type == onnx.TensorProto.UINT8:
            return _elements(tensor) * 8 // _code_bits(tensor, use)
    return _elements(tensor)


def _code_bits(tensor: onnx.TensorProto, use: _Use) -> int:
    """Bits of one code of an integer weight."""
    if use.node.op_type not in _PACKED:
        return _BITS[tensor.data_type]
    return max(
        1, next((a.i for a in use.node.attribute if a.name in ("bits", "expert_weight_bits")), _DEFAULT_BITS)
    )
