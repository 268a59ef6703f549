"""The dialect of ONNX Runtime's CUDA provider: all of the shared operators, in float32 and in float16.

GroupQueryAttention's kernels are float16 and bfloat16, and take no `attention_bias` beside sinks (messages of
ONNX Runtime 1.31.1's library; no figure here was measured on a GPU).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph import ort_shared
from onnxkit.graph.grouped_attention import grouped_query_attention
from onnxkit.graph.lowering import Draft, Lowering, NotApplicable


def _in_16_bits(draft: Draft) -> dict[str, ir.Value]:
    query = draft.region.inputs["q"]
    if query is None or query.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise NotApplicable("its CUDA kernels are float16 and bfloat16")
    return _grouped_query_attention(draft)


def _grouped_query_attention(draft: Draft) -> dict[str, ir.Value]:
    if draft.region.inputs.get("sinks") is not None:
        raise NotApplicable("its CUDA kernels take no bias beside sinks")
    return grouped_query_attention(draft)


LOWERINGS: tuple[Lowering, ...] = (
    Lowering(
        name="cached-attention",
        op="attention",
        cached=True,
        apply=_in_16_bits,
        summary="attention over a cache, 16 bits → com.microsoft.GroupQueryAttention",
    ),
    Lowering(
        name="packed-attention",
        op="attention",
        apply=ort_shared.packed_attention,
        summary="attention over one input and a padding mask → com.microsoft.Attention with packed weights",
    ),
    Lowering(
        name="attention",
        op="attention",
        apply=ort_shared.multi_head_attention,
        summary="any other attention, cross-attention too → com.microsoft.MultiHeadAttention",
    ),
    Lowering(
        name="rotary",
        op="rotary",
        apply=ort_shared.rotary,
        summary="rotation → com.microsoft.RotaryEmbedding",
    ),
    Lowering(
        name="gelu",
        op="gelu",
        apply=ort_shared.gelu,
        summary="GELU → com.microsoft.Gelu, its tanh form → FastGelu",
    ),
    Lowering(
        name="rms-norm",
        op="rms_norm",
        apply=ort_shared.rms_norm,
        summary="RMSNorm → SimplifiedLayerNormalization",
    ),
)
"""Preferred ones first."""

FLOAT16: tuple[Lowering, ...] = (
    Lowering(
        name="cached-attention",
        op="attention",
        cached=True,
        apply=_grouped_query_attention,
        summary="the same for -O4, before the graph becomes float16",
    ),
)
