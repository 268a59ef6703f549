"""Reshape targets that follow from the traced shapes, instead of shape arithmetic in every layer."""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.edit import Editor, dimensions

Sizes = tuple[int | str | None, ...]


class StaticReshapeTargets(ir.passes.InPlacePass):
    """Write targets as constants: known sizes, 0 for an axis that is copied, -1 for at most one other."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Needs the shapes of a trace on the values."""
        editor = Editor(model.graph)
        changed = 0
        for node in list(model.graph):
            if node.op_type != "Reshape" or node.domain != "":
                continue
            before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
            target = static_target(before, after) if before is not None and after is not None else None
            if target is None:
                continue
            node.replace_input_with(1, editor.constant(target))
            node.attributes.pop("allowzero", None)
            changed += 1
        return ir.passes.PassResult(model, modified=changed > 0)


def static_target(before: Sizes, after: Sizes) -> list[int] | None:
    """The constant that reshapes `before` to `after` for every size of the symbols, or None."""
    if any(size == 0 for size in (*before, *after)):
        return None
    target: list[int] = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and axis < len(before) and before[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None
