"""Nodes that hand on what they get."""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.edit import Editor, dimensions, permutation, producer, small_array


class DropNoOps(ir.passes.InPlacePass):
    """Drop Identity, inference Dropout, casts to the same type, reshapes and expansions to the same shape."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let users of such a node read its input."""
        editor = Editor(model.graph)
        dropped = 0
        for node in list(model.graph):
            source = node.inputs[0] if node.domain == "" and node.inputs else None
            if source is not None and _does_nothing(node, source):
                editor.replace(node.outputs[0], source)
                dropped += 1
        for node in list(model.graph):
            dropped += _shape_of_one_axis(node, editor) or _undoes(node, editor)
        return ir.passes.PassResult(model, modified=dropped > 0)


def _does_nothing(node: ir.Node, source: ir.Value) -> bool:
    match node.op_type:
        case "Identity":
            return not _holds_codes(node)
        case "Dropout":
            training = small_array(node.inputs[2]) if len(node.inputs) > 2 else False
            return training is not None and not bool(training)
        case "Cast":
            return _is_of_type(source, ir.DataType(node.attributes["to"].as_int()))
        case "Transpose":
            order = permutation(node)
            return order is not None and order == sorted(order)
        case "Reshape" | "Expand" | "Slice":
            return _keeps_shape(node, source)
        case _:
            return False


def _holds_codes(node: ir.Node) -> bool:
    """Whether it keeps codes from being packed without their scales (see `quantize.codes.block_store`)."""
    return any(use.node.op_type == "MatMulNBits" and use.idx == 1 for use in node.outputs[0].uses())


def _is_of_type(source: ir.Value, dtype: ir.DataType) -> bool:
    if source.dtype is not None:
        return bool(source.dtype == dtype)
    made = producer(source, "Squeeze")
    return dtype == ir.DataType.INT64 and producer(made.inputs[0] if made else source, "Shape") is not None


def _keeps_shape(node: ir.Node, source: ir.Value) -> bool:
    before, after = dimensions(source), dimensions(node.outputs[0])
    if before is None or after is None or None in before or before != after:
        return False
    if node.op_type != "Slice":
        return True
    steps = small_array(node.inputs[4]) if len(node.inputs) > 4 else None
    return len(node.inputs) <= 4 or (steps is not None and bool((steps == 1).all()))


def _shape_of_one_axis(node: ir.Node, editor: Editor) -> bool:
    """Reshape(Squeeze(Shape(x)), [-1]) is the Shape itself: it has one element."""
    if node.op_type != "Reshape" or node.domain != "":
        return False
    squeeze = producer(node.inputs[0], "Squeeze")
    shape = producer(squeeze.inputs[0], "Shape") if squeeze is not None else None
    target = small_array(node.inputs[1])
    if shape is None or target is None or target.tolist() not in ([-1], [1]):
        return False
    editor.replace(node.outputs[0], shape.outputs[0])
    return True


def _undoes(node: ir.Node, editor: Editor) -> bool:
    """Transpose(Transpose(x)) that puts every axis back."""
    if node.op_type != "Transpose" or node.domain != "":
        return False
    first = producer(node.inputs[0], "Transpose")
    order, before = permutation(node), permutation(first) if first is not None else None
    source = first.inputs[0] if first is not None else None
    if order is None or before is None or source is None:
        return False
    if [before[axis] for axis in order] != sorted(order):
        return False
    editor.replace(node.outputs[0], source)
    return True
