"""The operators that opset 23 has for attention, rotations and norms, in place of primitives.

Each `write_…` returns None where the operator does not say what the region means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxkit.graph.edit import Writer

OPSET = 23


def write_attention(
    part: Writer,
    given: Mapping[str, ir.Value],
    past: Mapping[str, ir.Value],
    extra: Mapping[str, ir.Value],
    attrs: Mapping[str, object],
) -> dict[str, ir.Value] | None:
    """`Attention`, outputs by role; it knows no sinks, and where its softcap stands differs by version."""
    layout = attrs["layout"]
    if attrs["softcap"] or "sinks" in extra or layout == "cross":
        return None
    over = [extra[role] for role in ("bias", "mask") if role in extra]
    mask = part("Add", *over) if len(over) == 2 else (over[0] if over else None)
    heads = {"q_num_heads": attrs["num_heads"], "kv_num_heads": attrs["kv_num_heads"]}
    named: dict[str, Any] = {"scale": attrs["scale"], **(heads if layout == "bsh" else {})}
    inputs = [given["q"], given["k"], given["v"], mask, past.get("past_key"), past.get("past_value")]
    while inputs[-1] is None:
        inputs.pop()
    out = part.several("Attention", inputs, 3 if past else 1, **named)
    dtype = given["q"].dtype
    if dtype is not None:
        for value in out:
            value.dtype = dtype
    return dict(zip(("out", "present_key", "present_value"), out, strict=False))


def write_rotary(
    part: Writer, x: ir.Value, cos: ir.Value, sin: ir.Value, attrs: Mapping[str, Any]
) -> ir.Value | None:
    """`RotaryEmbedding` of x `[B,S,H·D]`, whose tables hold one angle a pair, for every row of the batch."""
    if cos.shape is None or cos.shape[0] == 1 or cos.dtype != x.dtype:
        return None
    size = int(attrs.get("rotary_dim", attrs["head_dim"]))
    end, step = (size, 2) if attrs["interleaved"] else (size // 2, 1)
    bounds = [part.ints(number) for number in (0, end, 2, step)]
    tables = [part("Slice", table, *bounds) for table in (cos, sin)]
    named = {"num_heads": attrs["num_heads"], "interleaved": int(attrs["interleaved"])}
    if "rotary_dim" in attrs:
        named["rotary_embedding_dim"] = size
    return part("RotaryEmbedding", x, *tables, shape=x.shape, dtype=x.dtype, **named)


def write_norm(part: Writer, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value | None:
    """`RMSNormalization` over the last axis."""
    if weight.dtype != x.dtype:
        return None
    return part("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, shape=x.shape, dtype=x.dtype)
