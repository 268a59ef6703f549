"""The dialect of ONNX Runtime's CUDA provider: all of the shared operators, in float32 and in float16."""

from __future__ import annotations

from onnxkit.graph import ort_shared
from onnxkit.graph.lowering import Lowering

LOWERINGS: tuple[Lowering, ...] = (
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
        summary="any other attention → com.microsoft.MultiHeadAttention",
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
