"""A float graph whose weights a checkpoint stores in blocks: its products read the blocks themselves."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.export.packed import Array, PackedWeight
from onnxkit.export.report import KeptQuantization
from onnxkit.graph import nbits
from onnxkit.graph.edit import Editor, Writer
from onnxkit.safety import read_model

CONTRIB = "com.microsoft"


@dataclass(kw_only=True)
class Kept:
    """What became of the packed weights of one graph.

    Attributes:
        weights: the parameters whose blocks the graph reads.
        floats: the others, and why they stand dequantized.
    """

    weights: dict[str, PackedWeight] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)


def keep_blocks(model: ir.Model, packed: Mapping[str, PackedWeight]) -> Kept:
    """Turn every product and lookup of a packed weight into MatMulNBits and GatherBlockQuantized, in place.

    Products compute in float32 (accuracy level 0). A weight that something else reads, too, stays float.

    Args:
        model: a finished graph of float32; its initializers have the names of parameters.
        packed: the weights by name; a tied parameter has several.
    """
    kept, graph = Kept(), model.graph
    for name, value in graph.initializers.items():
        weight = packed.get(name)
        if weight is None:
            continue
        reasons = (_refusal(use.node, value, weight) for use in value.uses())
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            kept.weights[name] = weight
        else:
            kept.floats[name] = reason
    store = _Store(graph)
    for node in list(graph):  # in the graph's order, as nodes share what is computed of their input
        read = [value.name for value in node.inputs if value is not None and value.name in kept.weights]
        if read:
            _replace(store, node, _Stored(str(read[0]), kept.weights[str(read[0])]))
    for name in kept.weights:
        del graph.initializers[name]
    if kept.weights:
        model.opset_imports.setdefault(CONTRIB, 1)
    return kept


def set_accuracy_level(path: Path, level: int) -> None:
    """Let every MatMulNBits of a written graph compute in the type of this accuracy level."""
    model = read_model(path)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and node.domain == CONTRIB:
            next(each for each in node.attribute if each.name == "accuracy_level").i = level
    path.write_bytes(model.SerializeToString())


def describe(kept: Sequence[Kept], form: str, accuracy_level: int) -> KeptQuantization:
    """The report's figures of all graphs of a model, in which a shared weight counts once."""
    weights = {name: weight for each in kept for name, weight in each.weights.items()}
    parameters = sum(weight.channels * weight.depth for weight in weights.values())
    stored = sum(weight.stored_bits for weight in weights.values())
    return KeptQuantization(
        format=form,
        weights=len(weights),
        parameters=parameters,
        bits_per_weight=stored / parameters if parameters else 0.0,
        bits=dict(sorted(Counter(weight.bits for weight in weights.values()).items())),
        floats={name: reason for each in kept for name, reason in each.floats.items()},
        accuracy_level=accuracy_level,
    )


def _refusal(node: ir.Node, value: ir.Value, weight: PackedWeight) -> str | None:
    """Why a node cannot read blocks, or None."""
    if node.op_type in ("MatMul", "Gemm") and node.domain == "" and node.inputs[1] is value:
        plain = all(_float(node, name) == 1.0 for name in ("alpha", "beta")) and not _int(node, "transA")
        known = node.inputs[0] is not value and _rank(node) > 0
        return None if known and plain else f"a {node.op_type} that cannot be written as MatMulNBits"
    if node.op_type == "Gather" and node.domain == "" and node.inputs[0] is value:
        if weight.minimums is not None or weight.order is not None or weight.depth % weight.size:
            return "a lookup in blocks with minimums, an order or padding"
        return None if _int(node, "axis") == 0 else "a lookup in columns"
    return f"{node.op_type} reads it"


def _replace(store: _Store, node: ir.Node, stored: _Stored) -> None:
    if node.op_type == "Gather":
        result = store.lookup(node, stored)
    else:
        result = store.product(node, stored)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = Writer(store.editor, node)("Add", result, node.inputs[2])
            _name(result, f"{node.name}/bias")
    if not node.outputs[0].is_graph_output():
        result.name = node.outputs[0].name
    store.editor.replace(node.outputs[0], result)
    store.editor.graph.remove(node, safe=True)


@dataclass(frozen=True)
class _Stored:
    """A packed weight and the name that its parts are stored under."""

    name: str
    weight: PackedWeight


class _Store:
    """Writes the parts of packed weights into one graph, each part once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.editor = Editor(graph)
        self._values: dict[str, ir.Value] = {}
        self._last: ir.Node | None = None

    def product(self, node: ir.Node, stored: _Stored) -> ir.Value:
        """MatMulNBits, and the sums of the input's blocks times the offsets where the format has minimums."""
        weight, write = stored.weight, Writer(self.editor, node)
        x = node.inputs[0]
        assert x is not None
        if weight.order is not None:
            x = self._in_order(x, weight.order, write)
        attributes = nbits.matmul_attributes(
            depth=weight.depth, channels=weight.channels, bits=weight.bits, size=weight.size
        )
        codes, scales = self._codes(stored), self._scales(stored)
        if not all(part is None or part.is_initializer() for part in scales):  # as `BlockStore` does, and why
            codes = self._folded(f"{codes.name}.codes", "Identity", codes)
        inputs = [x, codes, *scales]
        made = self.editor.add(node, "MatMulNBits", inputs, attributes=attributes, domain=CONTRIB)
        made.name = str(node.name)
        result = made.outputs[0]
        result.dtype = ir.DataType.FLOAT
        if weight.minimums is None:
            return result
        result.name = f"{node.name}:product"
        rest = write("MatMul", self._block_sums(x, _rank(node), weight, write), self._offsets(stored))
        _name(rest, f"{node.name}/offset")
        total = write("Add", result, rest)
        _name(total, f"{node.name}/sum")
        return total

    def lookup(self, node: ir.Node, stored: _Stored) -> ir.Value:
        """GatherBlockQuantized over the bytes that a product may read as well."""
        weight = stored.weight
        rows = self._folded(
            f"{stored.name}.rows", "Reshape", self._codes(stored),
            self.editor.constant(np.array([weight.channels, -1], np.int64)),
        )  # fmt: skip
        inputs = [rows, node.inputs[1], *self._scales(stored)]
        attributes = nbits.gather_attributes(bits=weight.bits, size=weight.size)
        made = self.editor.add(node, "GatherBlockQuantized", inputs, attributes=attributes, domain=CONTRIB)
        made.name = str(node.name)
        return made.outputs[0]

    def _codes(self, stored: _Stored) -> ir.Value:
        """uint8 `[N, blocks, size·bits/8]`, packed each time that the file is written."""
        weight, name = stored.weight, f"{stored.name}.int{stored.weight.bits}"

        def make() -> ir.Value:
            blocks = weight.scales.shape[1]
            shape = ir.Shape([weight.channels, blocks, weight.size * weight.bits // 8])
            tensor = ir.LazyTensor(
                lambda: ir.tensor(nbits.pack_codes(weight.codes(), weight.bits), name=name),
                dtype=ir.DataType.UINT8, shape=shape, name=name,
            )  # fmt: skip
            return self._register(name, tensor)

        return self._once(name, make)

    def _scales(self, stored: _Stored) -> Sequence[ir.Value | None]:
        """Scales, and zero points where the grid has some."""
        weight = stored.weight
        scales = self._float(f"{stored.name}.scale", weight.scales)
        if weight.zero_points is None:
            return [scales]
        packed = nbits.pack_zero_points(weight.zero_points, weight.bits)
        return [scales, self._part(f"{stored.name}.zero_point", packed)]

    def _offsets(self, stored: _Stored) -> ir.Value:
        """float32 `[blocks, N]`: what `PackedWeight.offsets` gives, from the parts that the format stores."""
        weight, name = stored.weight, f"{stored.name}.offset"
        assert weight.minimums is not None
        offsets = self._float(f"{stored.name}.minimum", weight.minimums)
        if weight.zero_points is None:
            middle = self.editor.constant(np.float32(nbits.middle(weight.bits)))
            shift = self._folded(f"{name}.shift", "Mul", self._scales(stored)[0], middle)
            offsets = self._folded(f"{name}.sum", "Add", offsets, shift)
        return self._folded(name, "Transpose", offsets, perm=[1, 0])

    def _block_sums(self, x: ir.Value, rank: int, weight: PackedWeight, write: Writer) -> ir.Value:
        """The sum of x over every block, `[…, blocks]`; products of the same x share it."""

        def make() -> ir.Value:
            target = write.ints(*[0] * (rank - 1), -1, weight.size)
            blocks = write("Reshape", x, target)
            _name(blocks, f"{x.name}/blocks_{weight.size}")
            sums = write("ReduceSum", blocks, write.ints(-1), keepdims=0)
            _name(sums, f"{x.name}/block_sums_{weight.size}")
            return sums

        return self._once(f"{x.name}/sums/{weight.size}", make)

    def _float(self, name: str, content: Array) -> ir.Value:
        """float32; half precision is stored as such, behind a Cast."""
        stored = self._part(name, content)
        if content.dtype == np.float32:
            return stored
        return self._folded(f"{name}.float32", "Cast", stored, to=ir.DataType.FLOAT.value)

    def _in_order(self, x: ir.Value, order: Array, write: Writer) -> ir.Value:
        """x with its last axis in the order of the blocks; equal orders (query, key, value) share it."""
        digest = hashlib.blake2b(order.tobytes(), digest_size=4).hexdigest()
        name = f"{x.name}/order_{digest}"

        def make() -> ir.Value:
            places = self._part(f"order_{digest}", order)
            turned = write("Gather", x, places, axis=-1, shape=x.shape, dtype=x.dtype)
            _name(turned, name)
            return turned

        return self._once(name, make)

    def _folded(self, name: str, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node in front of the others that reads stored parts only: ONNX Runtime folds it when it loads."""

        def make() -> ir.Value:
            graph, node = self.editor.graph, ir.node(op, inputs, attributes=attributes, name=name)
            node.outputs[0].name = name
            if self._last is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(self._last, node)
            self._last = node
            return node.outputs[0]

        return self._once(name, make)

    def _part(self, name: str, content: Array) -> ir.Value:
        return self._once(name, lambda: self._register(name, ir.tensor(content, name=name)))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        self.editor.graph.register_initializer(value)
        return value

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]


def _name(value: ir.Value, name: str) -> None:
    value.name = name
    node = value.producer()
    if node is not None:
        node.name = name


def _rank(node: ir.Node) -> int:
    """Of a product's input; 0 where it is not known."""
    x = node.inputs[0]
    if node.op_type == "Gemm":
        return 2
    return len(x.shape) if x is not None and x.shape is not None else 0


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else 1.0


__all__ = ["Kept", "describe", "keep_blocks", "set_accuracy_level"]
