"""Counts of a graph: nodes by type, and which of them are a provider's fused operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from onnxkit.graph.lowering import MICROSOFT

_FUSED_IN_ONNX_DOMAIN = frozenset({"SimplifiedLayerNormalization"})


def count_nodes(model: ir.Model) -> Counter[str]:
    """Count nodes by type, those of subgraphs and functions included; most frequent first."""
    return Counter(dict(Counter(node.op_type for node in all_nodes(model)).most_common()))


def count_fused(model: ir.Model) -> Counter[str]:
    """Count ONNX Runtime's own operators by type."""
    return Counter(node.op_type for node in all_nodes(model) if is_fused(node))


def is_fused(node: ir.Node) -> bool:
    """Tell whether `node` is one of ONNX Runtime's own operators."""
    return node.domain == MICROSOFT or node.op_type in _FUSED_IN_ONNX_DOMAIN


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the graph, its subgraphs and the functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
