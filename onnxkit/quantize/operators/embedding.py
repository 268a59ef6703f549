"""Lookup tables: `Gather(table, ids)` on the rows of a constant matrix.

Integer form: the int8 rows are looked up with their scales, one scale a row, and multiplied out. Only the
rows that are read are decoded, in standard operators; a scale a row keeps a rare token's small vector
exact where one scale a table would round it away. Block form: `com.microsoft.GatherBlockQuantized`, over
the very bytes that a head tied to the table multiplies with.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.nbits import gather_attributes
from onnxkit.quantize.formats import BlockFormat, IntegerFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    attribute,
    blocked_tensor,
    float_initializer,
    is_tied,
    node,
)


class Embedding(Operator):
    """`Gather` along axis 0 of a float32 matrix in the file."""

    op_type = "Gather"

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """None for gathers from shapes, positions and the like."""
        table = node.inputs[0]
        if not float_initializer(table, rank=2) or attribute(node, "axis", 0) != 0:
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
        """Write the lookup in the target's format."""
        match context.format_of(target):
            case IntegerFormat():
                nodes = _rows(target, context)
            case BlockFormat() as blocks:
                nodes = _blocks(target, context, blocks)
            case other:
                raise ValueError(f"no lookup in {other.describe()}")
        context.replace(target.node, target.node.outputs[0], nodes, nodes[-1].outputs[0])


def _rows(target: Target, context: Rewriting) -> list[ir.Node]:
    """Cast(Gather(codes)) * Gather(scales)."""
    name, ids = target.name, target.node.inputs[1]
    place: Placement = {"axis": 0, "format": context.integer(target), "layer": name}
    table = context.weights.codes(target.weight, **place)
    column = context.weights.scales(target.weight, **place, column=True)
    rows = node("Gather", [table, ids], f"{name}/codes")
    scale = node("Gather", [column, ids], f"{name}/scale")
    cast = node("Cast", [rows.outputs[0]], f"{name}/cast", attributes={"to": ir.DataType.FLOAT.value})
    return [rows, scale, cast, node("Mul", [cast.outputs[0], scale.outputs[0]], name)]


def _blocks(target: Target, context: Rewriting, blocks: BlockFormat) -> list[ir.Node]:
    """GatherBlockQuantized: only the rows that are read are decoded."""
    table = context.blocks.table(blocked_tensor(target), blocks)
    inputs = [table.codes, target.node.inputs[1], table.scales, table.zero_points]
    attributes = gather_attributes(bits=blocks.bits, size=blocks.size)
    given = inputs if table.zero_points is not None else inputs[:-1]
    return [node("GatherBlockQuantized", given, target.name, domain=CONTRIB, attributes=attributes)]
