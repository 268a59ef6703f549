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
_AS_THEY_ARE = ("Cast", "Slice", "Gather")
"""What stands between scales and their reader: they are stored in half, or for several experts or rows."""
_STACK = 3
_PACKED, _DEFAULT_BITS = ("MatMulNBits", "GatherBlockQuantized", "QMoE"), 4
"""Operators whose bytes hold several codes, and how many bits a code has where they do not say."""


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
    """One graph's values: stored tensors, the nodes that make the others, the nodes that use them."""

    tensors: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]
    uses: dict[str, list[_Use]]

    def stored(self, name: str) -> str | None:
        """The stored tensor behind a value that is it, cast or cut; None where it is computed."""
        while (maker := self.makers.get(name)) is not None and maker.op_type in _AS_THEY_ARE and maker.input:
            name = maker.input[0]
        return name if name in self.tensors else None


@dataclass(frozen=True)
class _Weight:
    """A stored tensor and what reads it.

    Attributes:
        uses: who finally uses it, through operators that only hand it on or decode it.
        decoders: the nodes that turn its integers into floats, beside DequantizeLinear.
        values: how many weights an element stands for, where it is a row of a table of them.
    """

    name: str
    tensor: onnx.TensorProto
    uses: list[_Use]
    decoders: list[onnx.NodeProto]
    values: int

    @property
    def integer(self) -> bool:
        return self.tensor.data_type in _SMALL_INTEGER


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
    scope = _scope(graph)
    weights = [_weight(name, scope) for name in scope.tensors]
    scales = {
        stored
        for weight in weights
        for node in weight.decoders
        for stored in map(scope.stored, node.input)
        if stored is not None and stored != weight.name
    }
    seen: set[str] = set()
    for weight in weights:
        _count_bytes(weight, census)
        if weight.name not in scales and _is_parameter(weight):
            census.parameters += _logical_elements(weight)
        for use in filter(_is_linear, weight.uses):
            _count_linear(weight, use, scope, seen, census)


def _scope(graph: onnx.GraphProto) -> _Scope:
    """A graph's values; what a Constant holds is stored, too, as older exporters write weights."""
    uses: dict[str, list[_Use]] = {}
    nodes = list(with_inner(graph.node))  # a loop's body reads the weights of the graph around it
    for node in nodes:
        for slot, name in enumerate(node.input):
            uses.setdefault(name, []).append(_Use(node, slot))
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant" and node.domain in _STANDARD_DOMAINS and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    tensors = {**{tensor.name: tensor for tensor in graph.initializer}, **constants}
    makers = {name: node for node in nodes for name in node.output if name not in constants}
    return _Scope(tensors=tensors, makers=makers, uses=uses)


def _weight(name: str, scope: _Scope) -> _Weight:
    """Follow a stored tensor to who uses it.

    A Gather uses a table, whose rows may be decoded behind it; from a stack of matrices it hands one on, an
    expert's, where a product reads that.
    """
    tensor = scope.tensors[name]
    integer = tensor.data_type in _SMALL_INTEGER
    uses: list[_Use] = []
    behind: list[_Use] = []
    decoders: list[onnx.NodeProto] = []
    waiting, done = [(name, False)], {name}
    while waiting:
        value, gathered = waiting.pop()
        for use in scope.uses.get(value, ()):
            decodes = integer and _decodes(use, tensor, scope)
            handed = decodes or (use.node.op_type in PASS_THROUGH and use.slot == 0)
            gathers = not handed and use.slot == 0 and use.node.op_type == "Gather"
            gathers = gathers and (integer or len(tensor.dims) == _STACK)
            if decodes:
                decoders.append(use.node)
            if not handed:
                (behind if gathered else uses).append(use)
            if handed or gathers:
                fresh = [output for output in use.node.output if output not in done]
                done.update(fresh)
                waiting.extend((output, gathered or gathers) for output in fresh)
    matrices = [use for use in behind if _is_linear(use)]
    uses = [use for use in uses if not matrices or use.node.op_type != "Gather"] + matrices
    return _Weight(name, tensor, uses, decoders, _values_of_code(decoders, scope))


def _is_linear(use: _Use) -> bool:
    slots = slots_at(use.node.op_type, use.slot)
    return slots is not None and slots.linear and use.slot == slots.weight


def _decodes(use: _Use, codes: onnx.TensorProto, scope: _Scope) -> bool:
    """Whether a node makes floats of codes with fewer stored numbers: scales, zero points, a table of values.

    As many are weights, which the integers mask.
    """
    kind = use.node.op_type
    if kind == "Gather":
        return use.slot == 1 and scope.stored(use.node.input[0]) is not None
    if kind == "Mul" or (kind == "Sub" and use.slot == 0):
        others = (scope.stored(name) for slot, name in enumerate(use.node.input) if slot != use.slot)
        return any(
            other is not None and _elements(scope.tensors[other]) < _elements(codes) for other in others
        )
    return False


def _values_of_code(decoders: list[onnx.NodeProto], scope: _Scope) -> int:
    for node in decoders:
        table = scope.stored(node.input[0]) if node.op_type == "Gather" else None
        if table is not None and len(scope.tensors[table].dims) == 2:
            return max(1, int(scope.tensors[table].dims[1]))
    return 1


def _count_bytes(weight: _Weight, census: Census) -> None:
    size = _bytes(weight.tensor)
    name = onnx.TensorProto.DataType.Name(weight.tensor.data_type).lower()
    census.bytes_by_dtype[_NUMPY_NAMES.get(name, name)] += size
    census.bytes_by_operator[type_name(weight.uses[0].node) if weight.uses else "(unused)"] += size


def _is_parameter(weight: _Weight) -> bool:
    """Tell weights from scales, zero points, shapes and scalar constants."""
    if weight.tensor.data_type not in _FLOAT | _SMALL_INTEGER or not weight.tensor.dims:
        return False
    slots = ((slots_at(use.node.op_type, use.slot), use.slot) for use in weight.uses)
    return bool(weight.uses) and not any(
        known is not None and slot in known.parameters for known, slot in slots
    )


def _count_linear(weight: _Weight, use: _Use, scope: _Scope, seen: set[str], census: Census) -> None:
    """Count one weight of one linear node; a weight that several nodes share counts once."""
    tensor = weight.tensor
    elements = _values(weight, use)
    census.linear_nodes += 1
    census.quantized_nodes += weight.integer
    if weight.integer:
        census.quantized_layers[use.node.name or use.node.output[0]] = _code_bits(weight, use)
    if weight.name not in seen:
        seen.add(weight.name)
        census.linear_parameters += elements
        if weight.integer:
            census.quantized_parameters += elements
            census.quantized_bytes += _bytes(tensor) + sum(map(_bytes, _companions(weight, use, scope)))


def _companions(weight: _Weight, use: _Use, scope: _Scope) -> Iterator[onnx.TensorProto]:
    """Yield the scales and zero points of a weight: of the node that uses it, or of what decodes it."""
    slots = slots_at(use.node.op_type, use.slot)
    positions = () if slots is None else slots.parameters
    names = [use.node.input[slot] for slot in positions if slot < len(use.node.input)]
    for direct in scope.uses.get(weight.name, ()):
        if direct.node.op_type == "DequantizeLinear":
            names.extend(direct.node.input[1:])
    names.extend(name for node in weight.decoders for name in node.input)
    # All layers share one table of values.
    tables = {scope.stored(node.input[0]) for node in weight.decoders if node.op_type == "Gather"}
    for stored in dict.fromkeys(map(scope.stored, names)):
        if stored is not None and stored != weight.name and stored not in tables:
            yield scope.tensors[stored]


def _bytes(tensor: onnx.TensorProto) -> int:
    return (_elements(tensor) * _BITS.get(tensor.data_type, 0) + 7) // 8


def _elements(tensor: onnx.TensorProto) -> int:
    total = 1
    for dim in tensor.dims:
        total *= dim
    return total


def _logical_elements(weight: _Weight) -> int:
    """Return the number of values that a tensor stands for, as its first reader of weights takes it."""
    for use in weight.uses:
        slots = slots_at(use.node.op_type, use.slot)
        if slots is not None and slots.weight == use.slot:
            return _values(weight, use)
    return _elements(weight.tensor)


def _values(weight: _Weight, use: _Use) -> int:
    """The same for one reader; uint8 bytes may pack several."""
    count = _elements(weight.tensor)
    return (
        count * 8 // _code_bits(weight, use) if weight.tensor.data_type == onnx.TensorProto.UINT8 else count
    )


def _code_bits(weight: _Weight, use: _Use) -> int:
    """Bits of one code of an integer weight."""
    if use.node.op_type not in _PACKED:
        return max(1, _BITS[weight.tensor.data_type] // weight.values)
    return max(
        1, next((a.i for a in use.node.attribute if a.name in ("bits", "expert_weight_bits")), _DEFAULT_BITS)
    )
