"""Constants become shared initializers, and what is computed from small constants only is computed now."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxkit.graph.edit import SMALL, Editor, dimensions, small_array

_NOT_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
)


class FoldConstants(ir.passes.InPlacePass):
    """Fold by the ONNX reference implementation; weights are not touched.

    A `Shape` of a value whose sizes are all known counts as a constant, too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in one sweep, in the graph's order."""
        editor = Editor(model.graph)
        folded = 0
        for node in list(model.graph):
            results = _fold(node, model.opset_imports.get("", 18))
            if results is None:
                continue
            for output, array in zip(node.outputs, results, strict=True):
                if output.uses():
                    editor.replace(output, editor.constant(array))
            folded += 1
        return ir.passes.PassResult(model, modified=folded > 0)


def _fold(node: ir.Node, opset: int) -> list[np.ndarray] | None:
    """The node's outputs, where they follow from small constants."""
    if node.domain != "" or any(output.is_graph_output() for output in node.outputs):
        return None
    if node.op_type == "Constant":
        return _constant(node)
    if node.op_type == "Shape":
        return _static_shape(node)
    if node.op_type in _NOT_FOLDED or not node.inputs or _has_graphs(node):
        return None
    inputs: dict[str, np.ndarray] = {}
    for value in node.inputs:
        array = small_array(value)
        if value is not None and (array is None or value.name is None):
            return None
        if value is not None and array is not None:
            inputs[str(value.name)] = array
    return _evaluate(node, inputs, opset)


def _has_graphs(node: ir.Node) -> bool:
    kinds = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _constant(node: ir.Node) -> list[np.ndarray] | None:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else [tensor.numpy()]


def _static_shape(node: ir.Node) -> list[np.ndarray] | None:
    sizes = dimensions(node.inputs[0])
    if sizes is None:
        return None
    start, end = node.attributes.get("start"), node.attributes.get("end")
    wanted = sizes[start.as_int() if start else 0 : end.as_int() if end else len(sizes)]
    if not all(isinstance(size, int) for size in wanted):
        return None
    return [np.array(wanted, dtype=np.int64)]


def _evaluate(node: ir.Node, inputs: dict[str, np.ndarray], opset: int) -> list[np.ndarray] | None:
    proto = ir.serde.serialize_node(node)
    try:
        results = ReferenceEvaluator(proto, opsets={"": opset}).run(None, inputs)
    except Exception:  # the reference implementation raises what its numpy code raises: leave the node be
        return None
    if not all(isinstance(result, (np.ndarray, np.generic)) for result in results):  # a sequence
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.size <= SMALL for array in arrays) else None
