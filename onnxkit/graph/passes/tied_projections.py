"""An output projection that shares the embedding's weights reads them as they are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor, permutation, producer


class TiedProjections(ir.passes.InPlacePass):
    """MatMul(x, Transpose(W)) becomes Gemm(x, W, transB=1) where W has other users, too.

    ONNX Runtime would otherwise fold the Transpose while it loads, and keep a second copy of the
    largest matrix of the model. A bias that is added next goes into the Gemm.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs after `FoldWeightTransposes`: what is transposed still is shared."""
        editor = Editor(model.graph)
        changed = 0
        for node in list(model.graph):
            weight = _shared_weight(node)
            if weight is not None:
                _as_gemm(editor, node, weight)
                changed += 1
        return ir.passes.PassResult(model, modified=changed > 0)


def _shared_weight(node: ir.Node) -> ir.Value | None:
    if node.op_type != "MatMul" or node.domain != "":
        return None
    turned = producer(node.inputs[1], "Transpose")
    if turned is None or permutation(turned) != [1, 0] or node.inputs[0] is None:
        return None
    weight, shape = turned.inputs[0], node.inputs[0].shape
    return weight if weight is not None and weight.is_initializer() and shape is not None else None


def _as_gemm(editor: Editor, node: ir.Node, weight: ir.Value) -> None:
    x, last = node.inputs[0], node
    if x is None or x.shape is None or weight.shape is None:
        raise ValueError("checked by _shared_weight")
    width, depth = weight.shape.numpy()
    bias = _bias(node)
    inputs: list[ir.Value | None] = [x, weight]
    if bias is not None:
        last = next(iter(node.outputs[0].uses())).node
        inputs.append(bias)
    rows = len(x.shape)
    if rows != 2:
        inputs[0] = editor.add(node, "Reshape", [x, _ints(editor, -1, depth)]).outputs[0]
    gemm = editor.add(node, "Gemm", inputs, attributes={"transB": 1}, dtype=x.dtype)
    result = gemm.outputs[0]
    if rows != 2:
        sizes = editor.add(node, "Shape", [x], attributes={"start": 0, "end": rows - 1}).outputs[0]
        target = editor.add(node, "Concat", [sizes, _ints(editor, width)], attributes={"axis": 0}).outputs[0]
        result = editor.add(node, "Reshape", [result, target], dtype=x.dtype).outputs[0]
    editor.replace(last.outputs[0], result)


def _bias(node: ir.Node) -> ir.Value | None:
    """The vector that the only user adds."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    vector = (
        other is not None and other.is_initializer() and other.shape is not None and len(other.shape) == 1
    )
    return other if vector else None


def _ints(editor: Editor, *content: int) -> ir.Value:
    return editor.constant(np.array(content, dtype=np.int64))
