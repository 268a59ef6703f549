"""The semantic operators: what a traced model means, before a lowering writes it out.

The tracer puts one node of the domain `onnxkit` where the model computes an attention, a mask, a
rotation, a norm or a GELU. `graph.portable` writes them out as standard operators, so that no published
file ever holds this domain.
"""

from __future__ import annotations

DOMAIN = "onnxkit"
VERSION = 1

ATTENTION = "Attention"
"""q `[B,H,S,D]`, k `[B,KVH,T,D]`, v `[B,KVH,T,Dv]`, and optional mask (bool), bias (float), sinks `[H]` →
`[B,S,H,Dv]`.

`scale` multiplies the scores, `softcap` c (0: none) then bounds them by c·tanh(score/c) (arXiv:2408.00118),
mask and bias `[B|1,H|1,S|1,T]` are laid over them, and each head's sink joins the softmax as the score of no
key."""

CACHED_ATTENTION = "CachedAttention"
"""As `ATTENTION`, with past_key `[B,KVH,P,D]` and past_value `[B,KVH,P,Dv]` after v, which new keys and
values are appended to; → out, present_key, present_value `[B,KVH,P+S,…]`."""

ATTENTIONS = (ATTENTION, CACHED_ATTENTION)

MASK = "Mask"
"""padding `[B,T]` (bool, optional), batch, queries, keys (int64 scalars) → bool `[B,1,1|S,T]`, True where a
query may look; `window` (0: none), `causal`. The last query sits at the last key, query i at
keys - queries + i."""

ROTARY = "Rotary"
"""x `[B,H,S,D]` (`heads_axis` 2: `[B,S,H,D]`), cos, sin `[B|1,S,R]`, R ≤ D → x with the first R elements of
each head turned (arXiv:2104.09864).

Elements R/2 apart make a pair, or neighbours (`interleaved`); the tables hold an angle for each element."""

RMS_NORM = "RmsNorm"
"""x `[…,N]`, weight `[N]` → x / √(mean(x²) + epsilon) · (weight + offset), in float32 (arXiv:1910.07467)."""

EXPERT_MATMUL = "ExpertMatMul"
"""x `[M,K]`, weight `[E,N,K]` (`transposed`: `[E,K,N]`), experts `[M]` (int64) → `[M,N]`, each row times the
matrix of its expert."""

LAST_ROWS = "LastRows"
"""x `[B,S,N]`, count (int64 scalar) → the last `count` of S, all of them for 0."""

GELU = "Gelu"
"""x → GELU(x) (arXiv:1606.08415); `approximate` is "none" (Erf) or "tanh"."""
