"""The dialect of ONNX Runtime's CPU provider.

Measured on MiniLM (docs/benchmarks.md): packed Attention beats MultiHeadAttention beats primitives where
there is a padding mask; without a mask MultiHeadAttention takes a flash kernel and wins on long sequences.
Biases of linears stay in their Add, which int8 products fuse. SkipLayerNormalization stays out: its CPU
kernel costs five times what Add and LayerNormalization cost.

A 135M Llama with int4 weights (blocks of 32), one thread, AVX2: processor time as a share of what it is with
GroupQueryAttention, RotaryEmbedding and SimplifiedLayerNormalization alone, the best of several processes on
a shared machine:

| | after 32 | after 512 | after 1,024 | 512 tokens at once |
|---|---|---|---|---|
| packed linears | 1.00 | 1.01 | 1.03 | 1.00 |
| SkipSimplifiedLayerNormalization | 1.04 | 1.03 | 1.09 | 1.01 |
| both | 0.96 | 0.99 | 0.99 | 1.01 |
| both, without `attention_bias` (wrong for padding) | 0.94 | 0.98 | 1.01 | 1.01 |

Queries are scaled, not scores: MLAS multiplies one row by a matrix in a kernel of its own where no factor is
asked for (a token after 1,024, int4: 0.83 of the time, with `RuntimeOptions.whole_scores`; over the 1,500
positions of a Whisper's encoder, 0.68 of the attention's). A rotation has the factor in its tables, which all
layers share.

Differences under 0.03 are noise in the table. With float32 weights, whose reading
takes four times as long, all are.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxkit.graph import ort_shared
from onnxkit.graph.grouped_attention import grouped_query_attention
from onnxkit.graph.lowering import Draft, Lowering, NotApplicable


def _float32(draft: Draft) -> None:
    """The CPU kernels of these operators compute in float32 only; float16 would be cast around each."""
    _only(draft, {ir.DataType.FLOAT})


def _only(draft: Draft, able: Collection[ir.DataType]) -> None:
    dtypes = {
        value.dtype for role, value in draft.region.inputs.items() if value is not None and role in "xqkv"
    }
    wrong = dtypes - {*able, None}
    if wrong:
        names, kernels = (
            " and ".join(sorted(str(dtype.numpy()) for dtype in some if dtype)) for some in (wrong, able)
        )
        raise NotApplicable(f"{names}: its CPU kernel is {kernels}")


def _grouped_query_attention(draft: Draft) -> dict[str, ir.Value]:
    _only(draft, {ir.DataType.FLOAT, ir.DataType.FLOAT16})
    queries = draft.region.inputs["q"]
    single = queries is not None and queries.dtype == ir.DataType.FLOAT
    return grouped_query_attention(draft, scale_queries=single)


def _packed_attention(draft: Draft) -> ir.Value:
    _float32(draft)
    if draft.region.inputs.get("mask") is None:
        raise NotApplicable("without a mask MultiHeadAttention is faster")
    return ort_shared.packed_attention(draft)


def _attention(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.multi_head_attention(draft, scale_queries=draft.region.attrs["layout"] == "cross")


def _rotary(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.rotary(draft)


def _gelu(draft: Draft) -> ir.Value:
    _float32(draft)
    return ort_shared.gelu(draft)


LOWERINGS: tuple[Lowering, ...] = (
    Lowering(
        name="cached-attention",
        op="attention",
        cached=True,
        apply=_grouped_query_attention,
        summary="attention over a cache → com.microsoft.GroupQueryAttention",
    ),
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
        summary="any other attention, cross-attention too → com.microsoft.MultiHeadAttention",
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
