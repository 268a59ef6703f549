"""Rotations of queries and keys (RoFormer, arXiv:2104.09864) as primitives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxkit.graph import semantic
from onnxkit.graph.edit import Editor, Writer, producer, small_array
from onnxkit.graph.portable_attention import SWAP, flat, known_sizes, required
from onnxkit.graph.standard import write_rotary

_LAST = (-1, 3)


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """A rotation, written out: what its region says, and its output in the region's layout."""

    attrs: Mapping[str, Any]
    inputs: Mapping[str, ir.Value]
    out: ir.Value


def widen(graph: ir.Graph) -> None:
    """Let a rotation of the beginning of every head take the whole heads.

    Models slice the beginning off, turn it, and put it before the rest again.
    """
    for node in [node for node in graph if node.op_type == "Concat" and node.domain == ""]:
        if len(node.inputs) != 2 or node.attributes["axis"].as_int() not in _LAST:
            continue
        turned, rest = node.inputs
        rotation = turned.producer() if turned is not None else None
        if turned is None or rotation is None or not _is_rotary(rotation) or len(turned.uses()) != 1:
            continue
        first, second = _slice_of(rotation.inputs[0]), _slice_of(rest)
        if first is None or second is None or first[0] is not second[0]:
            continue
        source, start, end = first
        if start == 0 and end == second[1] and second[2] >= known_sizes(source, 3)[0]:
            _take_whole(graph, node, rotation, source)


def _take_whole(graph: ir.Graph, joined: ir.Node, rotation: ir.Node, source: ir.Value) -> None:
    inputs = [source, *rotation.inputs[1:]]
    whole = ir.node(semantic.ROTARY, inputs, rotation.attributes, domain=semantic.DOMAIN)
    whole.metadata_props.update(rotation.metadata_props)
    made, old = whole.outputs[0], joined.outputs[0]
    made.name, made.shape, made.type = old.name, old.shape, old.type
    graph.insert_before(joined, whole)
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove([joined, rotation], safe=True)


def _is_rotary(node: ir.Node) -> bool:
    return node.domain == semantic.DOMAIN and node.op_type == semantic.ROTARY


def _slice_of(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(source, start, end) of a slice along the last of four axes."""
    node = producer(value, "Slice")
    if node is None or len(node.inputs) < 4:
        return None
    numbers = [small_array(each) for each in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in numbers):
        return None
    start, end, axis, *step = (int(array.item()) for array in numbers if array is not None)
    source = node.inputs[0]
    four = source is not None and source.shape is not None and [*map(type, source.shape)][3:] == [int]
    if source is None or not four or axis not in _LAST or step not in ([], [1]):
        return None
    return source, start, end


def write(part: Writer, node: ir.Node, *, standard: bool = False) -> Rotated:
    """Write a semantic rotation out.

    Args:
        standard: as opset 23's own operator, where that says the same.
    """
    x, cos, sin = (required(node, i) for i in range(3))
    interleaved = _number(node, "interleaved", 0) == 1
    heads, size = known_sizes(x, _heads_axis(node), 3)
    attrs = {"interleaved": interleaved, "layout": "bsh", "num_heads": heads, "head_dim": size}
    turned = cos.shape[2] if cos.shape is not None else None
    if isinstance(turned, int) and turned != size:
        attrs["rotary_dim"] = turned
    source = _dense(part.editor, node, x, heads * size)
    if source is None:
        attrs["layout"] = "bhsd"
        out = _rotate(part, x, cos, sin, attrs)
        return Rotated(attrs=attrs, inputs={"x": x, "cos": cos, "sin": sin}, out=out)
    inputs = {"x": source, "cos": cos, "sin": sin}
    own = write_rotary(part, source, cos, sin, attrs) if standard else None
    if own is not None:
        return Rotated(attrs=attrs, inputs=inputs, out=own)
    split = part("Reshape", source, part.ints(0, 0, heads, size))
    rotated = _rotate(part, split, cos, sin, attrs)
    out = part("Reshape", rotated, part.ints(0, 0, heads * size), shape=source.shape, dtype=x.dtype)
    return Rotated(attrs=attrs, inputs=inputs, out=out)


def per_head(editor: Editor, node: ir.Node, rotated: Rotated) -> ir.Value:
    """The output as the semantic operator had it: `[B,H,S,D]`, or `[B,S,H,D]`."""
    if rotated.attrs["layout"] == "bhsd":
        return rotated.out
    outside = Writer(editor, node)
    shape = outside.ints(0, 0, rotated.attrs["num_heads"], rotated.attrs["head_dim"])
    split = outside("Reshape", rotated.out, shape, dtype=rotated.out.dtype)
    return split if _heads_axis(node) == 2 else outside("Transpose", split, perm=SWAP)


def _number(node: ir.Node, name: str, otherwise: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else otherwise


def _heads_axis(node: ir.Node) -> int:
    return _number(node, "heads_axis", 1)


def _dense(editor: Editor, node: ir.Node, x: ir.Value, width: int) -> ir.Value | None:
    """`[B,S,H·D]` behind x, where that costs no transposition."""
    if _heads_axis(node) == 1:
        return flat(editor, node, x, width)
    split = producer(x, "Reshape")
    source = split.inputs[0] if split is not None else None
    if source is not None and source.shape is not None and [*source.shape][2:] == [width]:
        return source
    outside = Writer(editor, node)
    return outside("Reshape", x, outside.ints(0, 0, width), dtype=x.dtype)


def _rotate(part: Writer, x: ir.Value, cos: ir.Value, sin: ir.Value, attrs: Mapping[str, Any]) -> ir.Value:
    """x·cos + x'·sin with cos and sin `[B|1,S,R]` unsqueezed at the heads' axis; x' holds, for every pair
    (a, b) of x, (-b, a)."""
    axis = 1 if attrs["layout"] == "bhsd" else 2
    dtype, size = x.dtype or cos.dtype, int(attrs["head_dim"])
    turned = int(attrs.get("rotary_dim", size))
    wide = []
    for table in (cos, sin):
        same = table.dtype == dtype or dtype is None
        cast = table if same else part("Cast", table, to=int(dtype or 1), dtype=dtype)
        wide.append(part("Unsqueeze", cast, part.ints(axis)))
    first, rest = x, None
    if turned < size:
        first, rest = part.several("Split", [x, part.ints(turned, size - turned)], 2, axis=-1, dtype=dtype)
    swapped = _neighbours(part, first, turned) if attrs["interleaved"] else _halves(part, first)
    out = part("Add", part("Mul", first, wide[0]), part("Mul", swapped, wide[1]), dtype=dtype)
    if rest is not None:
        out = part("Concat", out, rest, axis=-1, dtype=dtype)
    out.shape = x.shape
    return out


def _halves(part: Writer, x: ir.Value) -> ir.Value:
    first, second = part.several("Split", [x], 2, axis=-1, num_outputs=2)
    return part("Concat", part("Neg", second), first, axis=-1)


def _neighbours(part: Writer, x: ir.Value, size: int) -> ir.Value:
    pairs = part("Reshape", x, part.ints(0, 0, 0, size // 2, 2))
    first, second = part.several("Split", [pairs], 2, axis=-1, num_outputs=2)
    return part("Reshape", part("Concat", part("Neg", second), first, axis=-1), part.ints(0, 0, 0, size))
