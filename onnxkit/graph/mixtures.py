"""The experts of a mixture as one operator of ONNX Runtime's CPU provider, `com.microsoft.MoE`.

An export holds them as two Loops with a gated unit between them and a weighted sum behind them
(`portable_experts`). A step of a Loop copies one expert's matrix, and transposes the copy; the operator reads
it where it stands. A Qwen3-MoE of 4 layers, 32 experts of 1,024 by 768 and 4 for a token, one thread of an
AVX-512 machine: a decode step takes 0.63 of the time, 512 tokens 0.65.

What the operator wants, and how it is given:

- Gate and up lie interleaved, a row of each in turn: weights that do not are laid out anew.
- It routes by itself, with the softmax of what it is given. A router of any kind is expressed by the weights
  that it gave: scattered into `[tokens, experts]`, their logarithm is what is given, and their sum multiplies
  the result. No weight may be negative (the operator leaves such an expert out), which must follow from the
  graph.
- Widths are multiples of `WIDTHS`, so that `quantize` can put the weights of either product in blocks.

Source: onnxruntime, docs/ContribOperators.md and its kernels, which the tests run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxkit.graph.edit import Editor, is_stored, node_input, producer, small_array, stored_sizes
from onnxkit.graph.fusions import Fusion
from onnxkit.graph.gated_units import GatedUnit, gated_unit
from onnxkit.graph.lowering import MICROSOFT
from onnxkit.graph.portable_experts import ExpertProduct, product_of, rows_of

Array = np.ndarray[Any, Any]

WIDTHS = 32
"""What hidden and inner width are multiples of: a row has two blocks of 16, or whole ones of 32."""
_OPSET = 18  # what exports have: ScatterElements with a reduction, axes of ReduceSum as an input
_LEAST = np.finfo(np.float32).tiny


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """Rows through their experts' linears: the product, what it is given, and a bias `[E,N]` perhaps."""

    loop: ir.Node
    product: ExpertProduct
    x: ir.Value
    experts: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, kw_only=True)
class _Mixture:
    """A mixture's experts, from the tokens to the weighted sum.

    Attributes:
        count: K, experts for a token.
        tokens: `[N,H]`.
        chosen: int64 `[N,K]`, the experts of each token.
        weights: `[N,K]`, none negative.
    """

    count: int
    tokens: ir.Value
    chosen: ir.Value
    weights: ir.Value
    up: _Linear
    down: _Linear
    unit: GatedUnit


def fuse_experts(model: ir.Model) -> int:
    """Loops over experts → MoE, where the operator computes the same; returns how many it made."""
    if model.graph.opset_imports.get("", 0) < _OPSET:
        return 0
    found = []
    for node in list(model.graph):
        mixture = _mixture(node) if node.op_type == "ReduceSum" and node.domain == "" else None
        if mixture is not None:
            _write(_Writing(model.graph, mixture, node), mixture, node.outputs[0])
            found.append(mixture)
    if found:
        model.opset_imports.setdefault(MICROSOFT, 1)
        _drop(model, [mixture.down.loop for mixture in found])
        _drop(model, [mixture.up.loop for mixture in found])
    return len(found)


def _drop(model: ir.Model, loops: Sequence[ir.Node]) -> None:
    """Remove loops that nothing reads any more, and what only their bodies read."""
    common.RemoveUnusedNodesPass()(model)
    for loop in loops:
        for node in loop.attributes["body"].as_graph() if loop.graph is None else ():
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
    common.RemoveUnusedNodesPass()(model)


def routing_of(moe: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The weights `[tokens, experts]` that an operator of `fuse_experts` was given, and the scaled result.

    None for a MoE of another making, whose router may be any.
    """
    logits = producer(moe.inputs[1], "Log")
    floor = producer(logits.inputs[0], "Max") if logits is not None else None
    readers = [use.node for use in moe.outputs[0].uses()]
    if floor is None or len(readers) != 1 or readers[0].op_type != "Mul" or moe.outputs[0].is_graph_output():
        return None
    dense, total = floor.inputs[0], producer(readers[0].inputs[1], "ReduceSum")
    if dense is None or total is None or total.inputs[0] is not dense:
        return None
    return dense, readers[0].outputs[0]


def _mixture(total: ir.Node) -> _Mixture | None:
    """What a sum over each token's experts belongs to."""
    keep = total.attributes.get("keepdims")
    if keep is None or keep.as_int() or _ints(node_input(total, 1)) != [1]:
        return None
    weighted = producer(total.inputs[0], "Mul")
    by_token = producer(node_input(weighted, 0), "Reshape")
    spread = producer(node_input(weighted, 1), "Unsqueeze")
    down = _linear(node_input(by_token, 0))
    if by_token is None or down is None or _ints(node_input(spread, 1)) not in ([-1], [2]):
        return None
    for_token, weights = _ints(by_token.inputs[1]), node_input(spread, 0)
    unit = gated_unit(down.x)
    up = _linear(unit.source) if unit is not None else None
    if unit is None or up is None or up.experts is not down.experts or weights is None:
        return None
    count = for_token[1] if len(for_token) == 3 else 0
    tokens, chosen = _tokens(up.x, count), _flattened(down.experts, count)
    if tokens is None or chosen is None or not _fits(up, down) or not never_negative(weights):
        return None
    return _Mixture(
        count=count, tokens=tokens, chosen=chosen, weights=weights, up=up, down=down, unit=unit
    )  # fmt: skip


def _linear(value: ir.Value | None) -> _Linear | None:
    """A Loop's product, and the rows of a stored bias that its experts add."""
    add = producer(value, "Add")
    loop = producer(node_input(add, 0) if add is not None else value, "Loop")
    product = product_of(loop) if loop is not None else None
    rows = rows_of(loop, product) if loop is not None and product is not None else None
    if loop is None or product is None or rows is None:
        return None
    x, experts = rows
    bias = _rows_taken(node_input(add, 1), experts)
    if add is not None and bias is None:
        return None
    return _Linear(loop=loop, product=product, x=x, experts=experts, bias=bias)


def _rows_taken(value: ir.Value | None, experts: ir.Value) -> ir.Value | None:
    """The stored `[E,N]` of which `value` has the rows of `experts`, as PyTorch's indexing is exported."""
    gather = producer(value, "GatherND")
    table, index = node_input(gather), node_input(gather, 1)
    for op in ("Concat", "Unsqueeze", "Expand"):
        step = producer(index, op)
        if step is not None and (op != "Concat" or len(step.inputs) == 1):
            index = step.inputs[0]
    return table if index is experts and is_stored(table, 2, ir.DataType.FLOAT) else None


def _fits(up: _Linear, down: _Linear) -> bool:
    """Whether the stacks belong together, and blocks fit their widths."""
    experts, double, hidden = up.product.sizes
    inner = double // 2
    together = down.product.sizes == (experts, hidden, inner) and double == 2 * inner
    return together and not hidden % WIDTHS and not inner % WIDTHS


def _tokens(rows: ir.Value, count: int) -> ir.Value | None:
    """`[N,H]` of which each row was repeated for `count` experts."""
    flat = producer(rows, "Reshape")
    repeated = node_input(flat, 0)
    expand = producer(repeated, "Expand")
    if expand is not None:
        repeated = expand.inputs[0]
    apart = producer(repeated, "Unsqueeze")
    times = [1, 1, 1] if expand is None else _ints(expand.inputs[1])
    if times != [1, count, 1] or _ints(node_input(apart, 1)) != [1] or not _every_row(flat, count, rank=2):
        return None
    return node_input(apart, 0)


def _flattened(experts: ir.Value, count: int) -> ir.Value | None:
    """`[N,K]` of which `experts` has all entries in a row."""
    flat = producer(experts, "Reshape")
    return node_input(flat, 0) if _every_row(flat, count, rank=1) else None


def _every_row(flat: ir.Node | None, count: int, *, rank: int) -> bool:
    """Whether a Reshape joins the first two axes: to -1, or where `count` is 1 to 0, the first's size."""
    shape = _ints(node_input(flat, 1))
    return len(shape) == rank and shape[0] in ((-1, 0) if count == 1 else (-1,))


_POSITIVE = frozenset({"Softmax", "Sigmoid", "Exp", "Abs", "Relu", "Sqrt", "Softplus"})
_HANDING_ON = frozenset(
    {
        "Cast", "CastLike", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "ReduceMax",
        "ReduceMean", "ReduceSum", "Reshape", "Slice", "Squeeze", "TopK", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_COMBINING = frozenset({"Add", "Mul", "Div", "Concat", "Max", "Min", "Sum", "Where"})


def never_negative(value: ir.Value | None, depth: int = 16) -> bool:
    """Whether no element can be below zero, as far as `depth` nodes back tell."""
    if value is None or not depth:
        return False
    constant, node = small_array(value), value.producer()
    if constant is not None:
        return bool((constant >= 0).all())
    if node is None or node.domain != "":
        return False
    if node.op_type in _POSITIVE:
        return True
    if node.op_type in _HANDING_ON:
        return value is node.outputs[0] and never_negative(node.inputs[0], depth - 1)
    parts = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return node.op_type in _COMBINING and all(never_negative(each, depth - 1) for each in parts)


class _Writing:
    """Puts named nodes in front of one."""

    def __init__(self, graph: ir.Graph, mixture: _Mixture, before: ir.Node) -> None:
        loop = str(mixture.down.loop.name)
        name = loop.rpartition("/")[0]
        taken = not name or any(node.name == name for node in graph)  # layers may share a module
        self.editor, self.name, self._before = Editor(graph), loop if taken else name, before

    def __call__(
        self, op: str, *inputs: ir.Value | None, name: str, domain: str = "", **attributes: object
    ) -> ir.Value:
        """One node; its first output."""
        node = self.editor.add(self._before, op, inputs, attributes=attributes, domain=domain)
        node.name = f"{self.name}/{name}" if name else self.name
        node.outputs[0].name, node.outputs[0].dtype = f"{node.name}:out", ir.DataType.FLOAT
        return node.outputs[0]


def _write(write: _Writing, mixture: _Mixture, result: ir.Value) -> None:
    up, down, unit = mixture.up, mixture.down, mixture.unit
    dense = _dense(write, mixture)
    positive = write("Max", dense, write.editor.constant(_LEAST), name="positive")
    inputs = [
        mixture.tokens, write("Log", positive, name="logits"),
        _stack(write.editor.graph, up.product, unit.interleaved),
        _bias(write.editor.graph, up.bias, unit.interleaved),
        _stack(write.editor.graph, down.product), down.bias,
    ]  # fmt: skip
    attributes: dict[str, object] = {
        "k": mixture.count, "activation_type": "swiglu", "swiglu_fusion": 1,
        "activation_alpha": unit.alpha, "activation_beta": unit.beta, "normalize_routing_weights": 0,
    }  # fmt: skip
    if math.isfinite(unit.limit):
        attributes["swiglu_limit"] = unit.limit
    out = write("MoE", *inputs, name="", domain=MICROSOFT, **attributes)
    total = write("ReduceSum", dense, _vector(write, 1), name="total", keepdims=1)
    write.editor.replace(result, write("Mul", out, total, name="scaled"))


def _dense(write: _Writing, mixture: _Mixture) -> ir.Value:
    """`[tokens, experts]`: each token's weights, zero for experts that it did not choose."""
    experts, _, _ = mixture.up.product.sizes
    tokens = write("Shape", mixture.chosen, name="tokens", start=0, end=1)
    shape = write("Concat", tokens, _vector(write, experts), name="shape", axis=0)
    tokens.dtype = shape.dtype = ir.DataType.INT64
    none = write("Expand", write.editor.constant(np.float32(0)), shape, name="none")
    return write(
        "ScatterElements", none, mixture.chosen, mixture.weights, name="dense", axis=1, reduction="add"
    )


def _vector(write: _Writing, content: int) -> ir.Value:
    return write.editor.constant(np.array([content], np.int64))


def _stack(graph: ir.Graph, product: ExpertProduct, laid_out: bool = True) -> ir.Value:
    """All experts' matrices as `[E,N,K]`; rows of gate and up in turn, unless they are `laid_out` so."""
    weight, transposed = product.weight, product.transposed
    if laid_out and not transposed:
        return weight

    def arrange(array: Array) -> Array:
        rows = array.transpose(0, 2, 1) if transposed else array
        return rows if laid_out else _in_turn(rows)

    return _derived(graph, weight, f"{weight.name}.rows", product.sizes, arrange)


def _bias(graph: ir.Graph, bias: ir.Value | None, laid_out: bool) -> ir.Value | None:
    """Gate's and up's bias `[E,2·I]`, as their rows are."""
    if bias is None or laid_out:
        return bias
    return _derived(graph, bias, f"{bias.name}.rows", stored_sizes(bias), _in_turn)


def _in_turn(array: Array) -> Array:
    """`[E,2·I,…]`, gate before up → their rows in turn."""
    experts, double, *rest = array.shape
    return array.reshape(experts, 2, double // 2, *rest).swapaxes(1, 2).reshape(array.shape)


def _derived(
    graph: ir.Graph, source: ir.Value, name: str, shape: Sequence[int], arrange: Callable[[Array], Array]
) -> ir.Value:
    """An initializer with another's content in other order, read when it is written out."""
    tensor = source.const_value
    assert tensor is not None
    if name not in graph.initializers:
        lazy = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(arrange(tensor.numpy()))),
            dtype=tensor.dtype, shape=ir.Shape(shape), name=name,
        )  # fmt: skip
        made = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
        graph.register_initializer(made)
    return graph.initializers[name]


def _ints(value: ir.Value | None) -> list[int]:
    """The elements of a small constant; none for anything else."""
    found = small_array(value)
    return [] if found is None else [int(each) for each in found.reshape(-1)]


EXPERTS = Fusion(
    name="experts",
    apply=fuse_experts,
    summary="the experts of a mixture, two loops and a gated unit → com.microsoft.MoE",
)
