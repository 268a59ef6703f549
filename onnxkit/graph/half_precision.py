"""Weights and arithmetic in half precision (float16 or bfloat16), and float32 where that does not do.

Inputs and outputs of the graph stay as they are: a Cast stands at the boundary. Only the keys and values of a
cache become half themselves: a Cast would read and write them whole in every step. Kept in float32 are
operators whose sums or powers leave float16's range (`DELICATE`), those that no kernel takes in half
precision, those with a stored value that it cannot hold, what computes an index or an angle from positions,
products of turned batches (`_turned`), and whatever the caller names. Weights are converted one at a time,
to the nearest (of two as near, to the even), while they are written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.edit import SMALL
from onnxkit.graph.kv_cache import is_past, is_present
from onnxkit.graph.lowering import MICROSOFT
from onnxkit.graph.portable import lowest
from onnxkit.graph.probing import INFINITE, largest

Array = np.ndarray[Any, Any]

_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = {_FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest finite value of each type."""
_SMALLEST = {_FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133}
_PARTS = 16

DELICATE = frozenset(
    {
        "CumSum", "Cos", "Exp", "EyeLike", "Log", "LogSumExp", "LpNormalization",
        "NonMaxSuppression", "Pow", "RandomNormal", "RandomUniform", "Range", "Reciprocal",
        "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Resize", "Sin", "Softplus", "Sqrt", "TopK",
    }
)  # fmt: skip
"""Standard operators that stay in float32."""

FUSED = frozenset(
    {
        "Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention",
        "MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
"""ONNX Runtime's own operators that take half precision, or are run between casts where no kernel does."""


@dataclass(frozen=True, kw_only=True)
class HalfResult:
    """What a conversion did.

    Attributes:
        converted: number of nodes that compute in half precision.
        kept: names of nodes that stay float32 although their operator takes half precision.
        unable: names of nodes whose weights stay float32 as their operator does not take it.
        turned: names of those of `kept` that make up a product of a turned batch.
    """

    converted: int
    kept: tuple[str, ...]
    unable: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()


def to_half(model: ir.Model, dtype: ir.DataType = _FLOAT16, *, keep: Collection[str] = ()) -> HalfResult:
    """Convert a float32 graph in place. Nodes of subgraphs stay float32.

    Args:
        model: the graph; dtypes of its values are derived.
        dtype: FLOAT16 or BFLOAT16.
        keep: names of nodes that stay float32.
    """
    infer_dtypes(model)
    exact, turned = _of_positions(model.graph), _turned(model.graph)
    able = [n for n in model.graph if n not in exact and _takes_half(n, dtype, model.opset_imports)]
    fitting = [node for node in able if node not in turned and _fits(node, dtype)]
    chosen = [node for node in fitting if node.name not in keep]
    known = set(able)
    unable = tuple(str(node.name) for node in model.graph if node not in known and _reads_weights(node))
    _Conversion(model.graph, set(chosen), dtype).run()
    kept = {str(node.name) for node in able} - {str(node.name) for node in chosen}
    return HalfResult(
        converted=len(chosen), kept=tuple(sorted(kept)), unable=unable,
        turned=tuple(sorted(kept & {str(node.name) for node in turned})),
    )  # fmt: skip


def overflowing(model: ir.Model, cases: Sequence[Mapping[str, Array]], scratch: Path) -> tuple[str, ...]:
    """Run the float32 graph and name the nodes that make or read more than half of float16's largest value.

    A CPU would not show it: ONNX Runtime computes float16 in float32 there, casts between two such nodes
    left out.

    Args:
        model: the float32 graph.
        cases: inputs to run it on.
        scratch: a directory for a temporary copy.
    """
    infer_dtypes(model)
    sizes = largest(model, cases, scratch)
    large = {name for name, size in sizes.items() if not size <= LARGEST[_FLOAT16] / 2}
    return tuple(
        str(node.name)
        for node in model.graph
        if any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    )


def stages(model: ir.Model) -> list[list[str]]:
    """Cut the graph into pieces that can be kept in float32: its layers, else equal parts; in order."""
    found: list[tuple[str, list[str]]] = []
    for node in model.graph:
        match = re.match(r".*?[./]\d+(?=[./])", str(node.name))
        layer = match.group() if match else (found[-1][0] if found else "")
        if not found or found[-1][0] != layer:
            found.append((layer, []))
        found[-1][1].append(str(node.name))
    if 1 < len(found) <= 8 * _PARTS:
        return [names for _, names in found]
    names = [name for _, group in found for name in group]
    step = max(1, -(-len(names) // _PARTS))
    return [names[start : start + step] for start in range(0, len(names), step)]


def search_kept(
    parts: Sequence[Sequence[str]], passes: Callable[[Collection[str]], bool]
) -> tuple[str, ...] | None:
    """Find few neighbouring parts that must stay float32; None when all of them do not suffice.

    Keeping more never hurts, so the end of the window is bisected first, then its start.

    Args:
        parts: names of nodes, as `stages` returns them.
        passes: converts with these names kept, and says whether the result is good enough.
    """

    def names(start: int, end: int) -> tuple[str, ...]:
        return tuple(name for part in parts[start:end] for name in part)

    if passes(()):
        return ()
    if not passes(names(0, len(parts))):
        return None
    low, end = 0, len(parts)  # [0, end) passes, [0, low) does not
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (low, middle) if passes(names(0, middle)) else (middle, end)
    start, high = 0, end  # [start, end) passes, [high, end) does not
    while high - start > 1:
        middle = (start + high) // 2
        start, high = (middle, high) if passes(names(middle, end)) else (start, middle)
    return names(start, end)


def _takes_half(node: ir.Node, dtype: ir.DataType, opsets: dict[str, int]) -> bool:
    """Whether a node computes on float32 values, and could on half ones."""
    floats = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype == _FLOAT]
    kinds = {attribute.type for attribute in node.attributes.values()}
    if not floats or kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return False
    if node.domain == MICROSOFT or node.op_type == "SimplifiedLayerNormalization":
        return node.op_type in FUSED or node.op_type == "SimplifiedLayerNormalization"
    if node.domain != "" or node.op_type in DELICATE:
        return False
    return _schema_takes(node, f"tensor({dtype.name.lower()})", opsets)


def _schema_takes(node: ir.Node, half: str, opsets: dict[str, int]) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return False
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for position, value in enumerate(values):
            kind = formals[min(position, len(formals) - 1)].type_str
            if value is not None and value.dtype == _FLOAT and half not in allowed.get(kind, {kind}):
                return False
    return True


def _of_positions(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that compute an integer or an angle out of integers, as relative positions' buckets are.

    float16 makes 2,048 of position 2,049, and a logarithm's rounded part may end in the bucket beside.
    """
    counted: set[ir.Node] = set()
    for node in graph:
        floats = [value for value in node.inputs if value is not None and value.dtype == _FLOAT]
        known = all(value.is_initializer() or value.producer() in counted for value in floats)
        if known and not _reads_weights(node):
            counted.add(node)
    ends = [node for node in counted if node.op_type in ("Cos", "Sin") or _makes_integers(node)]
    found, waiting = set(ends), ends
    while waiting:
        before = {value.producer() for value in waiting.pop().inputs if value is not None}
        new = [node for node in before if node is not None and node in counted and node not in found]
        found.update(new)
        waiting.extend(new)
    return found


def _turned(graph: ir.Graph) -> set[ir.Node]:
    """Products of a left factor whose batch a Transpose moves into its rows or columns, and these.

    ONNX Runtime 1.24 to 1.31 fuses both on a CPU, and crashes where either is half (MatmulTransposeFusion).
    """
    found: set[ir.Node] = set()
    for node in graph:
        left = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] is not None else None
        if left is None or left.op_type != "Transpose" or "perm" not in left.attributes:
            continue
        axes = left.attributes["perm"].as_ints()
        if len(axes) > 2 and axes[0] == 1 and 0 in axes[-2:]:
            found |= {node, left}
    return found


def _makes_integers(node: ir.Node) -> bool:
    return _is_cast_of(node) and ir.DataType(node.attributes["to"].as_int()).is_integer()


def _reads_weights(node: ir.Node) -> bool:
    """Whether a node reads a stored float32 tensor that is no scalar or vector."""
    stored = [value for value in node.inputs if value is not None and value.is_initializer()]
    shapes = [value.shape.numpy() for value in stored if value.dtype == _FLOAT and value.shape is not None]
    return any(sum(size > 1 for size in shape) > 1 for shape in shapes)


def _fits(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether half precision holds the stored values that a node reads."""
    stored = [value for value in node.inputs if value is not None and value.is_initializer()]
    return all(_holds(value.const_value, dtype) for value in stored if value.dtype == _FLOAT)


def _holds(tensor: ir.TensorProtocol | None, dtype: ir.DataType) -> bool:
    if tensor is None or tensor.size == 0:
        return True
    sizes = np.abs(tensor.numpy())
    sizes = sizes[sizes < INFINITE] if tensor.size <= SMALL else sizes
    if not sizes.size:
        return True
    if tensor.size == 1 and 0 < float(sizes.flat[0]) < _SMALLEST[dtype]:
        return False  # an epsilon that would become 0
    return float(sizes.max()) <= LARGEST[dtype]


def _as_half(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """Return the tensor in half; what stands for "masked" becomes a value that sums do not overflow."""

    def convert() -> ir.TensorProtocol:
        array = tensor.numpy()
        array = np.where(np.abs(array) >= INFINITE, np.sign(array) * abs(lowest(dtype)), array)
        return ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=tensor.name)

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


class _Conversion:
    """Rewires one graph: chosen nodes read and make `half`, casts stand where the two worlds meet."""

    def __init__(self, graph: ir.Graph, chosen: set[ir.Node], half: ir.DataType) -> None:
        self.graph, self.chosen, self.half = graph, chosen, half
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.wide: set[ir.Value] = set()

    def run(self) -> None:
        made = [value for node in self.chosen for value in node.outputs if value.dtype == _FLOAT]
        self._halve_cache()
        for node in list(self.graph):
            if node in self.chosen:
                self._feed(node)
        for node in self.chosen:
            _convert_attributes(node, self.half)
        for value in made:
            value.dtype = self.half
        for value in made:
            self._hand_out(value)

    def _halve_cache(self) -> None:
        """A past and what it becomes have one type: the result of one step is the input of the next."""
        presents = {str(value.name): value for value in self.graph.outputs if is_present(value)}
        for value in self.graph.inputs:
            if not is_past(value) or value.dtype != _FLOAT:
                continue
            present = presents.get("present." + str(value.name).removeprefix("past_key_values."))
            made_half = present is None or present.producer() in self.chosen
            if made_half and self._only_half(value):
                value.dtype = self.half
            elif present is not None:
                self.wide.add(present)

    def _only_half(self, value: ir.Value) -> bool:
        return all(use.node in self.chosen or use.node.op_type == "Shape" for use in value.uses())

    def _feed(self, node: ir.Node) -> None:
        for position, value in enumerate(node.inputs):
            if value is None or value.dtype != _FLOAT or value.producer() in self.chosen:
                continue
            stored = value.is_initializer() and not value.is_graph_input()
            other = self._stored(value) if stored else self._cast(value, self.half)
            node.replace_input_with(position, other)

    def _stored(self, value: ir.Value) -> ir.Value:
        """A weight in half; nodes that stay float32 keep reading the original."""
        key = (value, self.half)
        if key not in self.casts and value.const_value is not None:
            tensor = _as_half(value.const_value, self.half)
            others = [use.node for use in value.uses() if use.node not in self.chosen]
            if others or value.is_graph_output():
                name = f"{value.name}/{self.half.name.lower()}"
                made = ir.Value(name=name, shape=value.shape, const_value=tensor)
                made.dtype = self.half
                self.graph.register_initializer(made)
            else:
                made = value
                value.const_value, value.dtype = tensor, self.half
            self.casts[key] = made
        return self.casts[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` in another dtype: one Cast for all, where the value is made."""
        key = (value, dtype)
        if key not in self.casts:
            name = f"{value.name}/{dtype.name.lower()}"
            node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
            node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, dtype, value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[key] = node.outputs[0]
        return self.casts[key]

    def _hand_out(self, value: ir.Value) -> None:
        """Give float32 to nodes that stay so, those in subgraphs included, and to the graph's outputs."""
        for use in [use for use in value.uses() if use.node not in self.chosen and not _is_cast_of(use.node)]:
            use.node.replace_input_with(use.idx, self._cast(value, _FLOAT))
        if value.is_graph_output() and (not is_present(value) or value in self.wide):
            wide, name = self._cast(value, _FLOAT), value.name
            for position, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[position] = wide
            value.name, wide.name = f"{name}/{self.half.name.lower()}", name


def _is_cast_of(node: ir.Node) -> bool:
    """A Cast takes any dtype: it needs none before it."""
    return node.op_type == "Cast" and node.domain == ""


def _convert_attributes(node: ir.Node, half: ir.DataType) -> None:
    """Casts to float32 become casts to half; float32 tensors in attributes are converted."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() == _FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(half))
    for name, attribute in _tensor_attributes(node):
        node.attributes[name] = ir.AttrTensor(name, _as_half(attribute.as_tensor(), half))


def _tensor_attributes(node: ir.Node) -> Iterable[tuple[str, Any]]:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            yield name, attribute
