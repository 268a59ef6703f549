"""How large each input channel of a layer is, from the graph alone: what stands for calibration data.

The gain of the normalization in front of a layer says it of the channels that the layer reads, weights say
it of a product's, tables and what is added to them of the residual stream's, and so on through attention,
gates and activations (`moments`). On SmolLM2-135M at 4 bits a search weighted by it makes a KL divergence of
0.159 where an unweighted one makes 0.251; MiniLM's cosine goes from 0.975 to 0.977. The gains alone, as if
the residual stream's channels were alike, win nothing (0.252).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.graph.edit import node_input, small_array
from onnxkit.quantize.calibration.moments import (
    FUNCTIONS,
    Array,
    Moments,
    combined,
    constant,
    gelu,
    normal,
    normalized,
    sigmoid,
    unknown,
)  # fmt: skip
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.operators import Target
from onnxkit.quantize.operators.base import CONTRIB, array, attribute, float_initializer
from onnxkit.quantize.operators.linear import constant_matrix
from onnxkit.quantize.smoothing.layouts import MOVES, SELECTORS, moved, selected, target_shape

_ROWS = 4096
"""Of a table, that are looked at."""

_DEPTH = 256
"""Of a weight, that is squared at a time."""

_FOCUS = 0.3
"""Of the values' variance, what is left in their weighted sum: the sum of squared attention weights."""

_LEAST = 1e-6
"""Of the mean, that the mean square of a channel is at least: a bound on what is not known."""


def prior_statistics(model: ir.Model, targets: Iterable[Target]) -> dict[str, InputStatistics]:
    """What the linear targets' inputs look like by the graph, by the name of the value that they read.

    Nothing was seen, so `count` is 0. Left out are inputs whose channels the graph does not tell apart.
    """
    wanted = {
        target.activation: target.depth
        for target in targets
        if target.kind == "linear" and target.activation is not None
    }
    found = {}
    with np.errstate(all="ignore"):  # what overflows is unknown
        for value, moments in _propagated(model.graph, set(wanted)):
            if moments.size == wanted[value] > 1:
                found[str(value.name)] = _statistics(moments)
    return found


def _statistics(moments: Moments) -> InputStatistics:
    square = moments.square.reshape(-1)
    least = _LEAST * float(square.mean())
    return InputStatistics(
        count=0,
        absmax=np.abs(moments.points).max(axis=-1).reshape(-1).astype(np.float32),
        mean=moments.mean.reshape(-1).astype(np.float32),
        mean_square=np.maximum(square, least).astype(np.float32),
    )


def _propagated(graph: ir.Graph, wanted: set[ir.Value]) -> Iterator[tuple[ir.Value, Moments]]:
    """Go through the nodes that lead to the wanted values and yield those; others live while read."""
    nodes = _leading_to(graph, wanted)
    left = Counter(value for node in nodes for value in node.inputs if value is not None)
    known: dict[ir.Value, Moments] = {}
    for node in nodes:
        made = _results(node, known)
        for value, moments in zip(node.outputs, made, strict=False):
            usable = moments is not None and np.isfinite(moments.points).all()
            known[value] = moments if usable and moments is not None else unknown()
            if value in wanted:
                yield value, known[value]
        left.subtract(value for value in node.inputs if value is not None)
        for each in {*node.inputs, *node.outputs}:
            if each is not None and not left[each]:
                known.pop(each, None)


def _leading_to(graph: ir.Graph, values: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that make the values, in graph order."""
    found: set[ir.Node] = set()
    left = [value.producer() for value in values]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [value.producer() for value in node.inputs if value is not None]
    return [node for node in graph if node in found]


class _Inputs:
    """The inputs of a node: what is known of each."""

    def __init__(self, node: ir.Node, known: dict[ir.Value, Moments]) -> None:
        self.node, self._known = node, known

    def __call__(self, index: int) -> Moments | None:
        """None where it is left out."""
        value = node_input(self.node, index)
        if value is None:
            return None
        if float_initializer(value):
            return _constant(array(value))
        return self._known.get(value) or unknown()

    def first(self) -> Moments:
        """The first one."""
        return self(0) or unknown()


def _constant(values: npt.NDArray[np.floating]) -> Moments:
    """A vector as it is; of more axes, how the last one's channels are distributed over the others."""
    if values.size == 0:
        return unknown()
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if len(rows) == 1:
        return constant(rows[0])
    rows = rows[:: -(-len(rows) // _ROWS)].astype(np.float64)
    return normal(rows.mean(axis=0), rows.var(axis=0))


_Results = Sequence[Moments | None]


def _results(node: ir.Node, known: dict[ir.Value, Moments]) -> _Results:
    handler = _HANDLERS.get((node.domain, node.op_type))
    made: _Results = () if handler is None else handler(node, _Inputs(node, known))
    return [*made, *[None] * (len(node.outputs) - len(made))]


# --- products ----------------------------------------------------------------------------------


def _product(node: ir.Node, given: _Inputs) -> _Results:
    """A linear layer; or MatMul(weights, values), where an attention sums the values of tokens."""
    flags = ("transA", "transBatchA", "transBatchB")
    if node.inputs[1] is None or any(attribute(node, flag, 0) for flag in flags):
        return ()
    weight, turned = constant_matrix(node.inputs[1])
    if not weight.is_initializer():
        values = given(1)
        channels_last = values is not None and (len(values.layout) == 1 or values.layout[-2] == 1)
        return (_attended(values),) if channels_last and not attribute(node, "transB", 0) else ()
    if not float_initializer(weight, rank=2):
        return ()
    matrix = array(weight)
    found = _linear(given.first(), matrix.T if turned != bool(attribute(node, "transB", 0)) else matrix)
    factor = float(attribute(node, "alpha", 1.0))
    if found is not None and factor != 1.0:
        found = found.map(lambda points: points * factor)
    return (_plus(found, given(2)),)


def _linear(value: Moments, weight: npt.NDArray[np.floating]) -> Moments | None:
    """Sums of independent channels: weight `[K, N]`."""
    depth = weight.shape[0]
    if value.size not in (1, depth):
        return None
    mean = np.broadcast_to(value.mean.reshape(-1), depth).astype(np.float32)
    variance = np.broadcast_to(value.variance.reshape(-1), depth).astype(np.float32)
    spread = np.zeros(weight.shape[1], np.float32)
    for start in range(0, depth, _DEPTH):
        part = slice(start, start + _DEPTH)
        spread += variance[part] @ np.square(weight[part], dtype=np.float32)
    return normal(mean @ weight, spread)


def _plus(value: Moments | None, addend: Moments | None) -> Moments | None:
    return value if value is None or addend is None else combined(np.add, value, addend)


# --- attention ---------------------------------------------------------------------------------


def _attended(values: Moments | None) -> Moments | None:
    """The weighted sum of the values of several tokens: what they have in common stays as it is."""
    return None if values is None else normal(values.mean, _FOCUS * values.variance)


def _attention(node: ir.Node, given: _Inputs) -> _Results:
    """ONNX Runtime's Attention with packed weights: the last part of its columns are the values."""
    weight = node_input(node, 1)
    if not float_initializer(weight, rank=2):
        return ()
    whole = _plus(_linear(given.first(), array(weight)), given(2))
    sizes = attribute(node, "qkv_hidden_sizes", None)
    return (_attended(_last(whole, int(sizes[2]) if sizes else array(weight).shape[1] // 3)),)


def _multi_head(node: ir.Node, given: _Inputs) -> _Results:
    """MultiHeadAttention; its bias is that of queries, keys and values."""
    values, bias = given(2), given(3)
    if values is None:
        return ()
    return (_attended(_plus(values, _last(bias, bias.size // 3) if bias is not None else None)),)


def _grouped(node: ir.Node, given: _Inputs) -> _Results:
    """GroupQueryAttention: each value head serves several query heads."""
    heads, kv_heads = int(attribute(node, "num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
    values = given(2)
    if values is None:
        packed = given.first()
        values = _last(packed, packed.size // (heads + 2 * kv_heads) * kv_heads)
    if values is None or not kv_heads or values.size % kv_heads or heads % kv_heads:
        return ()
    numbers = np.arange(values.size).reshape(kv_heads, 1, -1)
    return (_attended(values.taken(np.repeat(numbers, heads // kv_heads, axis=1).reshape(-1))),)


def _last(value: Moments | None, count: int) -> Moments | None:
    if value is None or value.size < count:
        return None
    return value.taken(np.arange(value.size - count, value.size))


# --- normalization -----------------------------------------------------------------------------


def _layer_norm(node: ir.Node, given: _Inputs) -> _Results:
    return (_norm(node, given.first(), given(1), given(2), centered=True),)


def _rms_norm(node: ir.Node, given: _Inputs) -> _Results:
    return (_norm(node, given.first(), given(1), None, centered=False),)


def _skip_layer_norm(node: ir.Node, given: _Inputs) -> _Results:
    total = _plus(_plus(given.first(), given(1)), given(4)) or unknown()
    return _norm(node, total, given(2), given(3), centered=True), None, None, total


def _skip_rms_norm(node: ir.Node, given: _Inputs) -> _Results:
    total = _plus(_plus(given.first(), given(1)), given(3)) or unknown()
    return _norm(node, total, given(2), None, centered=False), None, None, total


def _norm(
    node: ir.Node, value: Moments, gain: Moments | None, bias: Moments | None, *, centered: bool
) -> Moments | None:
    if attribute(node, "axis", -1) == 0:
        return None
    found = normalized(value, centered=centered, epsilon=float(attribute(node, "epsilon", 1e-5)))
    scaled = found if gain is None else combined(np.multiply, found, gain)
    return _plus(scaled, bias)


def _reduce_mean(node: ir.Node, given: _Inputs) -> _Results:
    """Over the last axis, as a normalization does."""
    axes = attribute(node, "axes", None)
    if axes is None:
        axes = small_array(node_input(node, 1))
    return (given.first().averaged(),) if axes is not None and list(axes) == [-1] else ()


# --- element by element ------------------------------------------------------------------------


def _of_one(function: Callable[[Array], Array]) -> _Handler:
    return lambda node, given: (given.first().map(function),)


def _of_two(function: np.ufunc) -> _Handler:
    def results(node: ir.Node, given: _Inputs) -> _Results:
        left, right = given(0), given(1)
        return () if left is None or right is None else (combined(function, left, right),)

    return results


def _biased(function: Callable[[Array], Array]) -> _Handler:
    def results(node: ir.Node, given: _Inputs) -> _Results:
        found = _plus(given.first(), given(1))
        return () if found is None else (found.map(function),)

    return results


def _quick_gelu(node: ir.Node, given: _Inputs) -> _Results:
    slope = float(attribute(node, "alpha", 1.702))
    return (given.first().map(lambda x: x * sigmoid(slope * x)),)


# --- moves -------------------------------------------------------------------------------------


def _numbers(value: Moments) -> npt.NDArray[np.int64]:
    return np.arange(value.size).reshape(value.layout)


def _carried(node: ir.Node, given: _Inputs) -> _Results:
    value = given.first()
    if value.size == 1:
        return (value,)
    layout = moved(node, _numbers(value))
    if layout is None and node.op_type == "Reshape":
        return (_repeated(node, value),)
    return () if layout is None else (value.taken(layout),)


def _repeated(node: ir.Node, value: Moments) -> Moments | None:
    """Heads laid side by side that share their values: one axis between, of a size the layout leaves out."""
    shape, layout = target_shape(node), list(value.layout)
    while layout and layout[0] == 1:
        layout.pop(0)
    width = shape[-1] if shape else None
    if width is None or width <= 0 or layout.count(1) != 1 or width % value.size:
        return None
    numbers = np.arange(value.size).reshape(layout)
    return value.taken(np.repeat(numbers, width // value.size, axis=layout.index(1)).reshape(-1))


def _selected(node: ir.Node, given: _Inputs) -> _Results:
    value = given.first()
    if node.op_type == "Gather" and float_initializer(node.inputs[0], rank=2):
        return (value,) if attribute(node, "axis", 0) == 0 else ()
    if value.size == 1:
        return [value] * len(node.outputs)
    layouts = [selected(node, output, _numbers(value)) for output in node.outputs]
    return [None if layout is None else value.taken(layout) for layout in layouts]


def _joined(node: ir.Node, given: _Inputs) -> _Results:
    """Tokens after others, whose channels are those of the ones that are known (a cache is not)."""
    parts = [part for index in range(len(node.inputs)) if (part := given(index)) is not None]
    told = [part for part in parts if part.size > 1]
    axis = int(attribute(node, "axis", 0))
    if len(told) != 1 or not -len(told[0].layout) <= axis < len(told[0].layout) > 1:
        return ()
    return (told[0],) if told[0].layout[axis] == 1 else ()


def _through(node: ir.Node, given: _Inputs) -> _Results:
    return (given.first(),)


_Handler = Callable[[ir.Node, _Inputs], _Results]

_BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}

_HANDLERS: dict[tuple[str, str], _Handler] = {
    **{("", name): _of_one(function) for name, function in FUNCTIONS.items()},
    **{("", name): _of_two(function) for name, function in _BINARY.items()},
    **{("", name): _carried for name in MOVES},
    **{("", name): _selected for name in SELECTORS},
    **{("", name): _through for name in ("Identity", "Cast", "CastLike", "Dropout", "Expand")},
    (CONTRIB, "Gelu"): _of_one(gelu),
    (CONTRIB, "FastGelu"): _biased(gelu),
    (CONTRIB, "BiasGelu"): _biased(gelu),
    (CONTRIB, "QuickGelu"): _quick_gelu,
    ("", "Concat"): _joined,
    ("", "MatMul"): _product,
    ("", "Gemm"): _product,
    (CONTRIB, "FusedMatMul"): _product,
    (CONTRIB, "Attention"): _attention,
    (CONTRIB, "MultiHeadAttention"): _multi_head,
    (CONTRIB, "GroupQueryAttention"): _grouped,
    ("", "ReduceMean"): _reduce_mean,
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    (CONTRIB, "SimplifiedLayerNormalization"): _rms_norm,
    (CONTRIB, "SkipLayerNormalization"): _skip_layer_norm,
    (CONTRIB, "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
}
