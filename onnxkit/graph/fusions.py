"""Fusions that are found by their pattern: in foreign graphs, and between an operator and its neighbours.

Each works on the whole graph in place and returns how many it made. What onnxscript's rewriter knows
is taken from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript.rewriter.ort_fusions import bias_gelu, erfgelu
from onnxscript.rewriter.ort_fusions import gelu as gelu_rules

from onnxkit.graph.edit import producer
from onnxkit.graph.lowering import MICROSOFT


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """One row: a fusion by pattern.

    Attributes:
        name: what `--disable-fusion` calls it.
        apply: makes it everywhere in the graph, returns how often.
        summary: one line for the documentation.
    """

    name: str
    apply: Callable[[ir.Model], int]
    summary: str


def fuse_gelu(model: ir.Model) -> int:
    """x·½·(1 + erf(x/√2)) and its tanh form, in the orders that exporters write → Gelu, FastGelu.

    So is the standard Gelu of opset 20, whose bias ONNX Runtime does not fuse.
    """
    standard = [node for node in model.graph if node.op_type == "Gelu" and node.domain == ""]
    for node in standard:
        approximate = node.attributes.get("approximate")
        tanh = approximate is not None and approximate.as_string() == "tanh"
        _rewrite_gelu(model.graph, node, "FastGelu" if tanh else "Gelu")
    found = int(erfgelu.fuse_erfgelu(model)) + int(gelu_rules.fuse_gelu(model))
    return _declare(model, found + len(standard))


def approximate_gelu(model: ir.Model) -> int:
    """Gelu → FastGelu, which computes a tanh instead of an erf: another function, by up to 5e-4."""
    exact = [node for node in model.graph if node.op_type == "Gelu" and node.domain == MICROSOFT]
    for node in exact:
        _rewrite_gelu(model.graph, node, "FastGelu")
    return _declare(model, len(exact))


def _rewrite_gelu(graph: ir.Graph, node: ir.Node, op: str) -> None:
    _take_place(graph, node, ir.node(op, node.inputs[:1], domain=MICROSOFT, name=node.name))


def fuse_bias_gelu(model: ir.Model) -> int:
    """Add(x, bias) → Gelu becomes BiasGelu."""
    return _declare(model, int(bias_gelu.fuse_bias_gelu(model)))


def fuse_skip_layer_norm(model: ir.Model) -> int:
    """LayerNormalization(Add(x, skip)) → SkipLayerNormalization: x and skip of one shape, a residual stream.

    Shapes are not in the file: both terms must come from a node that keeps `[B,S,H]`, none may be stored.
    """
    return _fuse_skip(model, "LayerNormalization", "SkipLayerNormalization", weights=2)


def fuse_skip_rms_norm(model: ir.Model) -> int:
    """SimplifiedLayerNormalization(Add(x, skip)) → SkipSimplifiedLayerNormalization, in graphs with a cache.

    It wins for one token, together with packed linears (`ort_cpu` has the figures); for an encoder it loses.
    """
    if not attends_to_cache(model):
        return 0
    # An embedding is a stream where norms are RMS: no such model adds a table of positions to it.
    return _fuse_skip(
        model, "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", weights=1, further="Gather"
    )


def attends_to_cache(model: ir.Model) -> bool:
    """Whether a graph computes one token at a time, over the keys and values of those before."""
    return any(node.op_type == "GroupQueryAttention" for node in model.graph)


def _fuse_skip(model: ir.Model, op: str, fused: str, *, weights: int, further: str = "") -> int:
    found = 0
    for node in list(model.graph):
        if node.op_type != op or node.domain != "" or len(node.inputs) < 1 + weights:
            continue
        add = producer(node.inputs[0], "Add")
        if add is None or not all(_streams(value, further) for value in add.inputs) or _axis(node) != -1:
            continue
        _skip(model.graph, node, add, fused, weights)
        found += 1
    return _declare(model, found)


def _skip(graph: ir.Graph, norm: ir.Node, add: ir.Node, fused: str, weights: int) -> None:
    epsilon = norm.attributes.get("epsilon")
    attributes = {"epsilon": epsilon.as_float() if epsilon is not None else 1e-5}
    total = add.outputs[0]
    shared = total.is_graph_output() or len({use.node for use in total.uses()}) > 1
    inputs = [*add.inputs, *norm.inputs[1 : 1 + weights]]
    outputs = 4 if shared else 1
    new = ir.node(fused, inputs, attributes, domain=MICROSOFT, num_outputs=outputs, name=norm.name)
    if shared:
        new.outputs[1].name = new.outputs[2].name = ""
    _take_place(graph, norm, new, before=_earliest(graph, norm, total) if shared else norm)
    if shared:
        _hand_over(total, new.outputs[3])
    graph.remove(add, safe=True)


def _earliest(graph: ir.Graph, norm: ir.Node, total: ir.Value) -> ir.Node:
    """The first of the nodes that read the sum: the fused node, which makes it, must stand before all."""
    readers = {use.node for use in total.uses()}
    return next((node for node in graph if node in readers), norm)


_STREAMS = frozenset(
    {
        "Attention", "Gemm", "GroupQueryAttention", "LayerNormalization", "MatMul", "MultiHeadAttention",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


def _streams(value: ir.Value | None, further: str = "") -> bool:
    """Whether a value is a residual stream: made by a linear, a norm, an attention or another sum of them."""
    if value is None or value.producer() is None or value.is_graph_output():
        return False
    node = value.producer()
    if node is not None and node.op_type == "Add":
        return any(_streams(each, further) for each in node.inputs)
    return node is not None and node.op_type in {*_STREAMS, further}


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get("axis")
    return axis.as_int() if axis is not None else -1


def _take_place(graph: ir.Graph, old: ir.Node, new: ir.Node, *, before: ir.Node | None = None) -> None:
    """Put `new` where `old` (or `before`) is; its first output takes name and users of the old one."""
    graph.insert_before(before or old, new)
    _hand_over(old.outputs[0], new.outputs[0])
    graph.remove(old, safe=True)


def _hand_over(old: ir.Value, new: ir.Value) -> None:
    """Let the users of `old`, graph outputs included, read `new` under the old name."""
    name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}/replaced", name


def _declare(model: ir.Model, found: int) -> int:
    if found:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return found


FAST_GELU = Fusion(
    name="fast-gelu", apply=approximate_gelu, summary="Gelu → FastGelu, an approximation (-O3)"
)
GELU = Fusion(name="gelu", apply=fuse_gelu, summary="GELU in a foreign graph → com.microsoft.Gelu, FastGelu")
BIAS_GELU = Fusion(name="bias-gelu", apply=fuse_bias_gelu, summary="Add and Gelu → com.microsoft.BiasGelu")
SKIP_LAYER_NORM = Fusion(
    name="skip-layer-norm",
    apply=fuse_skip_layer_norm,
    summary="Add and LayerNormalization → com.microsoft.SkipLayerNormalization",
)
SKIP_RMS_NORM = Fusion(
    name="skip-rms-norm",
    apply=fuse_skip_rms_norm,
    summary="Add and RMSNorm of a decoder → com.microsoft.SkipSimplifiedLayerNormalization",
)
