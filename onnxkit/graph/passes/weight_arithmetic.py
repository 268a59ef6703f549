"""A weight that the graph computes of stored ones alone is computed now."""

from __future__ import annotations

import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxkit.graph.edit import Editor

_ROOTS = frozenset({"Add", "Div", "Mul", "Sub"})
_WITHIN = _ROOTS | {
    "Constant", "Expand", "Identity", "Pow", "ReduceL2", "ReduceSum", "ReduceSumSquare", "Reshape", "Sqrt",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_WEIGHT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_MOST_NODES = 16


class FoldWeightArithmetic(ir.passes.InPlacePass):
    """Fold what weight normalization leaves: a direction over its norm, times a length.

    Only below the weight of a product or a convolution, and only from arithmetic: a Transpose, a Cast or a
    DequantizeLinear says how a weight is stored.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Reads the weights that it folds."""
        editor, folded = Editor(model.graph), 0
        for node in list(model.graph):
            slot = _WEIGHT.get(node.op_type) if node.domain == "" else None
            value = node.inputs[slot] if slot is not None and len(node.inputs) > slot else None
            below = _below(value) if value is not None else None
            if value is not None and below:
                editor.replace(value, _computed(model, value, below))
                folded += 1
        return ir.passes.PassResult(model, modified=folded > 0)


def _below(root: ir.Value) -> list[ir.Node] | None:
    """The nodes that make a value, in their order; None unless they read stored tensors only."""
    made = root.producer()
    if made is None or made.domain != "" or made.op_type not in _ROOTS or root.is_graph_output():
        return None
    found: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> bool:
        if node in found:
            return True
        if node.domain != "" or node.op_type not in _WITHIN or len(found) > _MOST_NODES:
            return False
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            stored = value is None or (value.is_initializer() and not value.is_graph_input())
            if not stored and (producer is None or not visit(producer)):
                return False
        found[node] = None
        return True

    return list(found) if visit(made) else None


def _computed(model: ir.Model, root: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """An initializer under the value's name, by the ONNX reference implementation."""
    values = [value for node in nodes for value in node.inputs if value is not None]
    known = {str(v.name): v.const_value.numpy() for v in values if v.is_initializer() and v.const_value}
    opsets = {"": model.opset_imports.get("", 18)}
    for node in nodes:
        proto = ir.serde.serialize_node(node)
        feeds = {name: known[name] for name in proto.input if name}
        results = ReferenceEvaluator(proto, opsets=opsets).run(None, feeds)
        known |= dict(zip(proto.output, results, strict=True))
    name = str(root.name)
    root.name = f"{name}.computed"
    tensor = ir.tensor(known[name], name=name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
    value.dtype = tensor.dtype
    model.graph.register_initializer(value)
    return value
