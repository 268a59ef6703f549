"""Lookup tables: `Gather(table, ids)` on the rows of a constant matrix.

Integer form: the int8 rows are looked up with their scales, one scale a row, and multiplied out. Only the
rows that are read are decoded, in standard operators; a scale a row keeps a rare token's small vector
exact where one scale a table would round it away.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.quantize.operators.base import (
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    attribute,
    float_initializer,
    is_tied,
    node,
)
from onnxkit.quantize.weights import Grid


class Embedding(Operator):
    """`Gather` along axis 0 of a float32 matrix in the file."""

    op_type = "Gather"

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """None for gathers from shapes, positions and the like."""
        table = node.inputs[0]
        if table is None or not float_initializer(table, rank=2) or attribute(node, "axis", 0) != 0:
            return None
        return Target(
            node=node,
            kind="embedding",
            weight=table,
            channel_axis=0,
            activation=None,
            operator=self,
            tied=is_tied(table),
        )

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Write Cast(Gather(codes)) * Gather(scales)."""
        name, ids = target.name, target.node.inputs[1]
        grid: Grid = context.grids.products if target.tied else "full"
        place: Placement = {"axis": 0, "grid": grid, "layer": name}
        table = context.weights.codes(target.weight, **place)
        column = context.weights.scales(target.weight, **place, column=True)
        rows = node("Gather", [table, ids], f"{name}/codes")
        scale = node("Gather", [column, ids], f"{name}/scale")
        cast = node("Cast", [rows.outputs[0]], f"{name}/cast", attributes={"to": ir.DataType.FLOAT.value})
        result = node("Mul", [cast.outputs[0], scale.outputs[0]], name)
        context.replace(target.node, target.node.outputs[0], [rows, scale, cast, result], result.outputs[0])
