"""Keys and values in buffers that stay: when a graph allows it, and how it says so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor
from onnxkit.graph.lowering import MICROSOFT

CACHE = "onnxkit.cache"
"""Key of the model's `metadata_props`; the value "shared" allows what `share_buffers` describes."""

_LENGTH_AXIS = 2


def is_past(value: ir.Value) -> bool:
    """Whether a graph input is the keys or values of the tokens before, `[B,KVH,P,D]`."""
    return str(value.name).startswith("past_key_values.") and ".encoder." not in str(value.name)


def is_present(value: ir.Value) -> bool:
    """Whether a graph output is what `is_past` becomes, the new tokens' keys or values added."""
    return str(value.name).startswith("present.") and ".encoder." not in str(value.name)


def is_optional(value: ir.Value) -> bool:
    """Whether a graph input need not be fed: its initializer is the default."""
    return value.name == "num_logits_to_keep"


def share_buffers(model: ir.Model) -> bool:
    """Let the past's buffers be longer than what they hold, and say so in the metadata; False: impossible.

    It is possible when nothing but GroupQueryAttention reads them: the length of the past, which their shape
    then no longer tells, is computed from the attention mask and the new tokens. A graph without an
    attention mask (an encoder-decoder's decoder) cannot know it.
    """
    past = [value for value in model.graph.inputs if is_past(value)]
    if not past or not all(_only_attended(value) for value in past):
        return False
    if any(value.uses() for value in model.graph.outputs if is_present(value)):
        return False  # layers that read another's keys take them for as many as there are
    shapes = {use.node for value in past for use in value.uses() if use.node.op_type == "Shape"}
    inputs = {str(value.name): value for value in model.graph.inputs}
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if mask is None or ids is None:
        return False
    if shapes:
        _measure_by_mask(model.graph, shapes, mask, ids)
    model.metadata_props[CACHE] = "shared"
    return True


def _only_attended(value: ir.Value) -> bool:
    kinds = {(use.node.domain, use.node.op_type) for use in value.uses()}
    return kinds <= {(MICROSOFT, "GroupQueryAttention"), ("", "Shape")} and len(kinds) > 0


def _measure_by_mask(graph: ir.Graph, shapes: set[ir.Node], mask: ir.Value, ids: ir.Value) -> None:
    """Replace the length of the past in `shapes` by total - new, from the shapes of two other inputs."""
    editor = Editor(graph)
    first = graph[0]
    total, new = (
        editor.add(first, "Shape", [value], attributes={"start": 1, "end": 2}).outputs[0]
        for value in (mask, ids)
    )
    length = editor.add(first, "Sub", [total, new]).outputs[0]
    for value, name in ((total, "total"), (new, "new"), (length, "length")):
        value.name, value.dtype = f"past/{name}", ir.DataType.INT64
        node = value.producer()
        if node is not None:
            node.name = f"past/{name}"
    for shape in shapes:
        start, end = _range(shape)
        if start <= _LENGTH_AXIS < end:
            parts = [
                length if axis == _LENGTH_AXIS else _size(editor, shape, axis) for axis in range(start, end)
            ]
            whole = parts[0] if len(parts) == 1 else _joined(editor, shape, parts)
            editor.replace(shape.outputs[0], whole)
            graph.remove(shape, safe=True)


def _range(shape: ir.Node) -> tuple[int, int]:
    start, end = (shape.attributes.get(name) for name in ("start", "end"))
    axes = range(4)[start.as_int() if start else 0 : end.as_int() if end else 4]
    return axes.start, axes.stop


def _size(editor: Editor, shape: ir.Node, axis: int) -> ir.Value:
    past = shape.inputs[0]
    known = past.shape[axis] if past is not None and past.shape is not None else None
    if isinstance(known, int):
        return editor.constant(np.array([known], np.int64))
    node = editor.add(shape, "Shape", [past], attributes={"start": axis, "end": axis + 1})
    return _named(node, shape, f"axis_{axis}")


def _joined(editor: Editor, shape: ir.Node, parts: list[ir.Value]) -> ir.Value:
    return _named(editor.add(shape, "Concat", parts, attributes={"axis": 0}), shape, "sizes")


def _named(node: ir.Node, shape: ir.Node, name: str) -> ir.Value:
    node.name = f"{shape.name}/{name}"
    value = node.outputs[0]
    value.name, value.dtype = f"{node.name}:out", ir.DataType.INT64
    return value
