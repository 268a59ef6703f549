"""The experts of a mixture as one operator of ONNX Runtime's CPU provider, `com.microsoft.MoE`.

An export holds them as two Loops with a gated unit between them and a weighted sum behind them
(`portable_experts`). A step of a Loop copies one expert's matrix, and transposes the copy; the operator reads
it where it stands. A Qwen3-MoE of 4 layers, 32 experts of 1,024 by 768 and 4 for a token, one thread, AVX2: a
decode step takes 0.65 of the time, 512 tokens 0.72.

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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxkit.graph.edit import Editor, is_stored, producer, small_array
from onnxkit.graph.fusions import Fusion
from onnxkit.graph.gated_units import GatedUnit, gated_unit
from onnxkit.graph.lowering import MICROSOFT
from onnxkit.graph.portable_experts import ExpertProduct, product_of, rows_of, stored_sizes

WIDTHS = 32
_OPSET = 18  # what exports have: ScatterElements with a reduction, axes of ReduceSum as an input
_LEAST = np.finfo(np.float32).tiny


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """Rows through their experts' linears: the product, what it is given, and a bias `[E,N]` perhaps."""

    product: ExpertProduct
    x: ir.Value
    experts: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, kw_only=True)
class _Mixture:
    """A mixture's experts, from the tokens to the weighted sum.

    Attributes:
        name: the module's.
        tokens: `[N,H]`.
        chosen: int64 `[N,K]`, the experts of each token.
        weights: `[N,K]`, none negative.
    """

    name: str
    tokens: ir.Value
    chosen: ir.Value
    weights: ir.Value
    up: _Linear
    down: _Linear
    unit: GatedUnit


def fuse_experts(model: ir.Model) -> int:
    """Loops over experts → MoE, where the operator computes the same; returns how many mixtures there were."""
    if model.graph.opset_imports.get("", 0) < _OPSET:
        return 0
    found = 0
    for node in list(model.graph):
        mixture = _mixture(node) if node.op_type == "ReduceSum" and node.domain == "" else None
        if mixture is not None:
            _write(_Writing(model.graph, mixture.name, node), mixture, node.outputs[0])
            found += 1
    if found:
        model.opset_imports.setdefault(MICROSOFT, 1)
        common.RemoveUnusedNodesPass()(model)
    return found


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
    if keep is None or keep.as_int() or _ints(_input(total, 1)) != [1]:
        return None
    weighted = producer(total.inputs[0], "Mul")
    by_token = producer(_input(weighted, 0), "Reshape")
    spread = producer(_input(weighted, 1), "Unsqueeze")
    down = _linear(_input(by_token, 0))
    if by_token is None or down is None or _ints(_input(spread, 1)) not in ([-1], [2]):
        return None
    for_token, weights = _ints(by_token.inputs[1]), _input(spread, 0)
    unit = gated_unit(down.x)
    up = _linear(unit.source) if unit is not None else None
    if unit is None or up is None or up.experts is not down.experts or weights is None:
        return None
    count = for_token[1] if len(for_token) == 3 else 0
    tokens, chosen = _tokens(up.x, count), _flattened(down.experts)
    if tokens is None or chosen is None or not _fits(up, down) or not never_negative(weights):
        return None
    name = str(down.product.weight.name)
    node = next(iter(down.experts.uses())).node
    name = str(node.name).rpartition("/")[0] or name
    return _Mixture(name=name, tokens=tokens, chosen=chosen, weights=weights, up=up, down=down, unit=unit)


def _linear(value: ir.Value | None) -> _Linear | None:
    """A Loop's product, and the rows of a stored bias that its experts add."""
    add = producer(value, "Add")
    loop = producer(_input(add, 0) if add is not None else value, "Loop")
    product = product_of(loop) if loop is not None else None
    rows = rows_of(loop, product) if loop is not None and product is not None else None
    if product is None or rows is None:
        return None
    x, experts = rows
    bias = None
    if add is not None:
        gather = producer(_input(add, 1), "Gather")
        bias = _input(gather, 0)
        if gather is None or gather.inputs[1] is not experts or not is_stored(bias, 2, ir.DataType.FLOAT):
            return None
    return _Linear(product=product, x=x, experts=experts, bias=bias)


def _fits(up: _Linear, down: _Linear) -> bool:
    """Whether the stacks belong together, and blocks fit their widths."""
    experts, double, hidden = up.product.sizes
    inner = double // 2
    together = down.product.sizes == (experts, hidden, inner) and double == 2 * inner
    return together and not hidden % WIDTHS and not inner % WIDTHS


def _tokens(rows: ir.Value, count: int) -> ir.Value | None:
    """`[N,H]` of which each row was repeated for `count` experts."""
    flat = producer(rows, "Reshape")
    repeated = _input(flat, 0)
    expand = producer(repeated, "Expand")
    if expand is not None:
        repeated = expand.inputs[0]
    apart = producer(repeated, "Unsqueeze")
    times = [1, 1, 1] if expand is None else _ints(expand.inputs[1])
    shape = _ints(_input(flat, 1))
    if times != [1, count, 1] or len(shape) != 2 or shape[0] != -1 or _ints(_input(apart, 1)) != [1]:
        return None
    return _input(apart, 0)


def _flattened(experts: ir.Value) -> ir.Value | None:
    """`[N,K]` of which `experts` has all entries in a row."""
    flat = producer(experts, "Reshape")
    return _input(flat, 0) if _ints(_input(flat, 1)) == [-1] else None


_POSITIVE = frozenset({"Softmax", "Sigmoid", "Exp", "Abs", "Relu", "Sqrt", "Softplus"})
_HANDING_ON = frozenset(
    {
        "TopK", "Gather", "GatherElements", "GatherND", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Identity",
        "Cast", "CastLike", "Expand", "Transpose", "ReduceSum", "ReduceMax", "ReduceMean", "Split",
    }
)  # fmt: skip
_COMBINING = frozenset({"Add", "Mul", "Div", "Concat", "Max", "Min", "Sum"})


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
    return node.op_type in _COMBINING and all(never_negative(each, depth - 1) for each in node.inputs)


class _Writing:
    """Puts named nodes in front of one."""

    def __init__(self, graph: ir.Graph, name: str, before: ir.Node) -> None:
        self.editor, self.name, self._before = Editor(graph), name, before

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
    experts, _, _ = up.product.sizes
    dense = _dense(write, mixture, experts)
    positive = write("Max", dense, write.editor.constant(_LEAST), name="positive")
    logits = write("Log", positive, name="logits")
    apart = not unit.interleaved
    inputs = [
        mixture.tokens, logits, _stack(write, up.product, apart), _interleaved_bias(write, up.bias, apart),
        _stack(write, down.product, False), down.bias,
    ]  # fmt: skip
    attributes: dict[str, object] = {
        "k": int(mixture_size(mixture)), "activation_type": "swiglu", "swiglu_fusion": 1,
        "activation_alpha": unit.alpha, "activation_beta": unit.beta, "normalize_routing_weights": 0,
    }  # fmt: skip
    if math.isfinite(unit.limit):
        attributes["swiglu_limit"] = unit.limit
    while inputs[-1] is None:
        inputs.pop()
    out = write("MoE", *inputs, name="", domain=MICROSOFT, **attributes)
    axes = write.editor.constant(np.array([1], np.int64))
    total = write("ReduceSum", dense, axes, name="total", keepdims=1)
    write.editor.replace(result, write("Mul", out, total, name="scaled"))
