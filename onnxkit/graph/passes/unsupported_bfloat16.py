"""Operators that take no bfloat16 in the model's opset compute in float32."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.edit import Editor

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.BFLOAT16


class WidenUnsupportedBfloat16(ir.passes.InPlacePass):
    """Convolutions and poolings take bfloat16 from opset 22 on: before it the file would be no valid model.

    Weights stay bfloat16 where they are stored. Subgraphs are left as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put a Cast before each such input, and one behind each such output."""
        infer_dtypes(model)
        editor, widened = Editor(model.graph), 0
        for node in list(model.graph):
            schema = _schema(node, model.opset_imports) if node.domain == "" else None
            if schema is None:
                continue
            inputs = _refused(schema, schema.inputs, node.inputs)
            outputs = _refused(schema, schema.outputs, node.outputs)
            for position in inputs:
                node.replace_input_with(position, _wide(editor, node, node.inputs[position]))
            for position in outputs:
                _narrow(editor.graph, node, node.outputs[position])
            widened += bool(inputs or outputs)
        return ir.passes.PassResult(model, modified=widened > 0)


def _schema(node: ir.Node, opsets: dict[str, int]) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opsets.get("", 1), "")
    except onnx.defs.SchemaError:  # ONNX Runtime's own
        return None


def _refused(
    schema: onnx.defs.OpSchema,
    formals: Sequence[onnx.defs.OpSchema.FormalParameter],
    values: Sequence[ir.Value | None],
) -> list[int]:
    """Positions of the bfloat16 values that the schema does not allow."""
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
    found = []
    for position, value in enumerate(values):
        kind = formals[min(position, len(formals) - 1)].type_str
        if value is not None and value.dtype == _HALF and "tensor(bfloat16)" not in allowed.get(kind, {kind}):
            found.append(position)
    return found


def _wide(editor: Editor, node: ir.Node, value: ir.Value | None) -> ir.Value:
    cast = editor.add(node, "Cast", [value], attributes={"to": int(_FLOAT)}, dtype=_FLOAT)
    cast.outputs[0].shape = value.shape if value is not None else None
    return cast.outputs[0]


def _narrow(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """The readers of an output, and the graph's output that it is, get what it was."""
    cast = ir.node("Cast", [value], {"to": int(_HALF)})
    cast.metadata_props.update(
        {key: text for key, text in node.metadata_props.items() if not key.startswith("onnxkit.")}
    )
    result, name, is_output = cast.outputs[0], value.name, value.is_graph_output()
    result.dtype, result.shape = _HALF, value.shape
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    value.dtype = _FLOAT
    if is_output:
        value.name, result.name = f"{name}.float32", name
    graph.insert_after(node, cast)
