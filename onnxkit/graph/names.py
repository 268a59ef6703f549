"""Node and value names from module paths: `encoder.layer.3.output.dense` for the operator that is the module.

Torch's exporter leaves the module stack of each node in its metadata. The one heavy operator of a leaf
module gets the module's path; everything else in it the path and the kind, `…/bias` for the Add of a
bias and `…/Transpose_1` for the rest.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
_HEAVY = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "LayerNormalization", "Gather", "BatchNormalization"}
)


def module_path(node: ir.Node, prefix: str = "") -> str:
    """The path of the module that `node` was traced in, without `prefix`; "" for the root or none."""
    text = node.metadata_props.get(SCOPES)
    if not text:
        return ""
    scopes = [str(scope) for scope in ast.literal_eval(text)]
    path = scopes[-2] if len(scopes) > 1 else ""
    if path.startswith("_empty_nn_module_stack") or f"{path}." == prefix:
        return ""
    return path.removeprefix(prefix)


def name_by_module(model: ir.Model, *, prefix: str = "") -> None:
    """Give every node a unique name, and every value that is not a graph input or output its node's."""
    by_path: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        by_path[module_path(node, prefix)].append(node)
    taken: set[str] = {str(v.name) for v in [*model.graph.inputs, *model.graph.outputs]}
    taken |= set(model.graph.initializers)
    for path, nodes in by_path.items():
        _name_module(path, nodes, taken)


def _name_module(path: str, nodes: list[ir.Node], taken: set[str]) -> None:
    heavy = [node for node in nodes if node.op_type in _HEAVY]
    main = heavy[0] if len(heavy) == 1 and path else None
    counts: Counter[str] = Counter()
    for node in nodes:
        if node is main:
            name = path
        else:
            kind = "bias" if main is not None and _adds_bias(node, main) else node.op_type
            number, counts[kind] = counts[kind], counts[kind] + 1
            name = f"{path}/{kind}" + (f"_{number}" if number else "")
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
        _name_outputs(node, name)


def _adds_bias(node: ir.Node, main: ir.Node) -> bool:
    return (
        node.op_type == "Add"
        and any(value is main.outputs[0] for value in node.inputs)
        and any(value is not None and value.is_initializer() for value in node.inputs)
    )


def _name_outputs(node: ir.Node, name: str) -> None:
    for number, value in enumerate(node.outputs):
        if not value.is_graph_output():
            value.name = f"{name}:{number}" if number else name
