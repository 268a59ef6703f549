"""Attention as primitives: over keys at hand, or over a cache that new keys join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxkit.graph import semantic
from onnxkit.graph.edit import Editor, Writer, permutation, producer
from onnxkit.graph.standard import write_attention

SWAP = [0, 2, 1, 3]
"""`[B,S,H,D]` ↔ `[B,H,S,D]`."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """An attention, written out: what its region says, and its outputs by role."""

    attrs: Mapping[str, Any]
    inputs: Mapping[str, ir.Value]
    outputs: Mapping[str, ir.Value]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Heads of the queries, heads of keys and values, size of a key and of a value."""

    heads: int
    kv_heads: int
    size: int
    v_size: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


def required(node: ir.Node, position: int) -> ir.Value:
    """The node's input, which must be there."""
    value = node.inputs[position]
    if value is None:
        raise ValueError(f"{node.op_type} without its input {position}")
    return value


def known_sizes(value: ir.Value, *axes: int) -> tuple[int, ...]:
    """Sizes of these axes, which the trace must have fixed."""
    if value.shape is None or any(not isinstance(value.shape[axis], int) for axis in axes):
        raise ValueError(f"{value.name}: axes {axes} have no known sizes")
    return tuple(int(value.shape[axis]) for axis in axes)  # type: ignore[arg-type]


def flat(editor: Editor, at: ir.Node, x: ir.Value, width: int) -> ir.Value | None:
    """`[B,S,H·D]` behind x `[B,H,S,D]`, where x is a transposed `[B,S,H,D]`."""
    swap = producer(x, "Transpose")
    if swap is None or permutation(swap) != SWAP or swap.inputs[0] is None:
        return None
    split = producer(swap.inputs[0], "Reshape")
    source = split.inputs[0] if split is not None else None
    sizes = source.shape if source is not None else None
    if sizes is not None and len(sizes) == 3 and sizes[2] == width:
        return source
    outside = Writer(editor, at)
    return outside("Reshape", swap.inputs[0], outside.ints(0, 0, width), dtype=x.dtype)


def sizes_of(node: ir.Node) -> Sizes:
    """Sizes of an attention node's inputs."""
    (heads, size), (kv_heads, v_size) = (known_sizes(required(node, i), 1, 3) for i in (0, 2))
    return Sizes(heads=heads, kv_heads=kv_heads, size=size, v_size=v_size)


def write(part: Writer, node: ir.Node, extra: Mapping[str, ir.Value], *, standard: bool = False) -> Written:
    """Write a semantic attention out.

    Args:
        extra: mask and bias (additive), sinks.
        standard: as opset 23's own operator, where that says the same.
    """
    sizes = sizes_of(node)
    layout, given = _given(part.editor, node, sizes)
    past = _past(node)
    attrs = {
        "num_heads": sizes.heads, "kv_num_heads": sizes.kv_heads, "head_dim": sizes.size,
        "v_head_dim": sizes.v_size, "scale": node.attributes["scale"].as_float(),
        "softcap": node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0,
        "causal": False, "layout": layout,
    }  # fmt: skip
    outputs = write_attention(part, given, past, extra, attrs) if standard else None
    if outputs is None:
        outputs = _primitives(part, required(node, 0), given, past, extra, attrs, sizes)
    return Written(attrs=attrs, inputs={**given, **past, **extra}, outputs=outputs)


def _primitives(
    part: Writer,
    query: ir.Value,
    given: Mapping[str, ir.Value],
    past: Mapping[str, ir.Value],
    extra: Mapping[str, ir.Value],
    attrs: Mapping[str, Any],
    sizes: Sizes,
) -> dict[str, ir.Value]:
    heads = _heads_first(part, given, attrs["layout"], sizes)
    if past:
        joined = {role: part("Concat", past[f"past_{name}"], heads[role], axis=2, dtype=given[role].dtype)
                  for role, name in (("k", "key"), ("v", "value"))}  # fmt: skip
        heads = {**heads, **joined}
    dtype = query.dtype or ir.DataType.FLOAT
    scale, softcap = attrs["scale"], attrs["softcap"]
    context = _attend(part, heads, sizes, extra, scale=scale, softcap=softcap, dtype=dtype)
    out = _out(part, context, sizes, query, dense=attrs["layout"] != "bhsd")
    return {"out": out, **({"present_key": heads["k"], "present_value": heads["v"]} if past else {})}


def _past(node: ir.Node) -> dict[str, ir.Value]:
    if node.op_type != semantic.CACHED_ATTENTION:
        return {}
    return {"past_key": required(node, 3), "past_value": required(node, 4)}


def _given(editor: Editor, node: ir.Node, sizes: Sizes) -> tuple[str, dict[str, ir.Value]]:
    """The region's layout, and its q, k and v in it."""
    q, k, v = (required(node, i) for i in range(3))
    widths = (sizes.heads * sizes.size, sizes.kv_heads * sizes.size, sizes.kv_heads * sizes.v_size)
    q_flat = flat(editor, node, q, widths[0])
    if q_flat is not None and k.is_graph_input() and v.is_graph_input():
        return "cross", {"q": q_flat, "k": k, "v": v}
    k_flat, v_flat = flat(editor, node, k, widths[1]), flat(editor, node, v, widths[2])
    if q_flat is not None and k_flat is not None and v_flat is not None:
        return "bsh", {"q": q_flat, "k": k_flat, "v": v_flat}
    return "bhsd", {"q": q, "k": k, "v": v}


def _heads_first(
    part: Writer, given: Mapping[str, ir.Value], layout: str, sizes: Sizes
) -> dict[str, ir.Value]:
    """All of them `[B,H,S,D]`."""
    split = {
        "q": (sizes.heads, sizes.size),
        "k": (sizes.kv_heads, sizes.size),
        "v": (sizes.kv_heads, sizes.v_size),
    }
    to_split = {"bsh": "qkv", "cross": "q", "bhsd": ""}[layout]
    return {
        role: part("Transpose", part("Reshape", x, part.ints(0, 0, *split[role])), perm=SWAP)
        if role in to_split
        else x
        for role, x in given.items()
    }


def _attend(
    part: Writer,
    qkv: Mapping[str, ir.Value],
    sizes: Sizes,
    extra: Mapping[str, ir.Value],
    *,
    scale: float,
    softcap: float,
    dtype: ir.DataType,
) -> ir.Value:
    """softmax(cap(q·kᵀ·scale) + bias + mask)·v `[B,H,S,Dv]`, or with shared heads `[B,KVH,H/KVH,S,Dv]`.

    Query heads that share a key head stand beside it on an axis of their own, so that keys and values need
    not be repeated.
    """
    q, k, v = qkv["q"], qkv["k"], qkv["v"]
    if sizes.group > 1:
        q = part("Reshape", q, part.ints(0, sizes.kv_heads, sizes.group, -1, sizes.size), dtype=dtype)
        k, v = (part("Unsqueeze", x, part.ints(2)) for x in (k, v))
    scores = part("Mul", part("MatMul", q, _turned(part, k, sizes)), part.scalar(scale, dtype))
    if softcap:
        cap = part.scalar(softcap, dtype)
        scores = part("Mul", part("Tanh", part("Div", scores, cap)), cap)
    for role in ("bias", "mask"):
        if role in extra:
            scores = part("Add", scores, _laid_over(part, role, extra[role], sizes))
    context = part("MatMul", part("Softmax", scores, axis=-1), v, dtype=dtype)
    if "sinks" in extra:
        context = part("Mul", context, _share_of_keys(part, scores, extra["sinks"], sizes), dtype=dtype)
    return context


def _turned(part: Writer, k: ir.Value, sizes: Sizes) -> ir.Value:
    swap = producer(k, "Transpose")
    if sizes.group == 1 and swap is not None and swap in part.nodes and not k.uses():
        swap.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])
        return k
    return part("Transpose", k, perm=[0, 1, 3, 2] if sizes.group == 1 else [0, 1, 2, 4, 3])


def _laid_over(part: Writer, role: str, x: ir.Value, sizes: Sizes) -> ir.Value:
    """What is added to the scores, `[B|1,H|1,S|1,T]`, with an axis for shared heads where scores have one."""
    if sizes.group == 1:
        return x
    if x.shape is None and role == "bias":
        raise ValueError(f"{x.name}: it is not known whether all heads share it")
    if x.shape is None or x.shape[1] == 1:
        return part("Unsqueeze", x, part.ints(2))
    batch, rest = part("Shape", x, start=0, end=1), part("Shape", x, start=2)
    target = part("Concat", batch, part.ints(sizes.kv_heads, sizes.group), rest, axis=0)
    return part("Reshape", x, target)


def _share_of_keys(part: Writer, scores: ir.Value, sinks: ir.Value, sizes: Sizes) -> ir.Value:
    """The part of the softmax that the keys keep: Σ exp(scores) / (Σ exp(scores) + exp(sink)) =
    sigmoid(logsumexp(scores) - sink)."""
    total = part("ReduceLogSumExp", scores, part.ints(-1), keepdims=1)
    shape = (1, sizes.heads, 1, 1) if sizes.group == 1 else (1, sizes.kv_heads, sizes.group, 1, 1)
    return part("Sigmoid", part("Sub", total, part("Reshape", sinks, part.ints(*shape))))


def _out(part: Writer, context: ir.Value, sizes: Sizes, query: ir.Value, *, dense: bool) -> ir.Value:
    """`[B,S,H·Dv]`, or `[B,H,S,Dv]`."""
    shared = sizes.group > 1
    if not dense:
        back = part.ints(0, sizes.heads, -1, sizes.v_size)
        return part("Reshape", context, back, dtype=query.dtype) if shared else context
    rows = part("Transpose", context, perm=[0, 3, 1, 2, 4] if shared else SWAP)
    before = [*(query.shape or [])]
    shape = [before[0], before[2], sizes.heads * sizes.v_size] if before else None
    target = part.ints(0, 0, sizes.heads * sizes.v_size)
    return part("Reshape", rows, target, shape=shape, dtype=query.dtype)
