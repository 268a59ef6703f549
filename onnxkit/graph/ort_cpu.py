"""The dialect of ONNX Runtime's CPU provider.

Measured on MiniLM (docs/benchmarks.md): packed Attention beats MultiHeadAttention beats primitives where
there is a padding mask; without a mask MultiHeadAttention takes a flash kernel and wins on long sequences.
Biases of linears stay in their Add, which int8 products fuse. SkipLayerNormalization stays out: its CPU
kernel costs five times what Add and LayerNormalization cost.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph import ort_shared
from onnxkit.graph.lowering import Draft, Lowering, NotApplicable


def _float32(draft: Draft) -> None:
    """The CPU kernels of these operators compute in float32 only; float16 would be cast around each."""
    dtypes = {
        value.dtype for role, value in draft.region.inputs.items() if value is not None and role in "xqkv"
    }
    wrong = dtypes - {ir.DataType.FLOAT, None}
    if wrong:
        raise NotApplicable(f"{', '.join(d.name.lower() for d in wrong if d)}: its CPU kernel is float32")


def _packed_attention(draft: Draft) -> ir.Value:
    _float32(draft)
    if draft.region.inputs.get("mask") is None:
        raise NotApplicable("without a mask MultiHeadAttention is faster")
    return ort_shared.packed_attention(draft)


def _attention(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.multi_head_attention(draft)


def _rotary(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.rotary(draft)


def _gelu(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.gelu(draft)


LOWERINGS: tuple[Lowering, ...] = (
    Lowering(
        name="packed-attention",
        op="attention",
        apply=_packed_attention,
        summary="attention over one input and a padding mask → com.microsoft.Attention with packed weights",
    ),
    Lowering(
        name="attention",
        op="attention",
        apply=_attention,
        summary="any other attention → com.microsoft.MultiHeadAttention",
    ),
    Lowering(name="rotary", op="rotary", apply=_rotary, summary="rotation → com.microsoft.RotaryEmbedding"),
    Lowering(
        name="gelu", op="gelu", apply=_gelu, summary="GELU → com.microsoft.Gelu, its tanh form → FastGelu"
    ),
    Lowering(
        name="rms-norm",
        op="rms_norm",
        apply=ort_shared.rms_norm,
        summary="RMSNorm → SimplifiedLayerNormalization",
    ),
)
"""Preferred ones first."""
