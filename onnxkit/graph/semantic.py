"""The semantic operators: what a traced model means, before a lowering writes it out.

The tracer puts one node of the domain `onnxkit` where the model computes an attention, a mask, a
rotation or a GELU. `graph.portable` writes them out as opset 18 primitives, so that no published
file ever holds this domain.
"""

from __future__ import annotations

DOMAIN = "onnxkit"
VERSION = 1

ATTENTION = "Attention"
"""query, key, value `[B,H,S,D]`, mask (bool, optional), bias (float, optional) → `[B,S,H,Dv]`; `scale`."""

MASK = "Mask"
"""padding `[B,T]` (bool, optional), batch, queries, keys (int64 scalars) → bool `[B,1,1|S,T]`, True where a
query may look; `window` (0: none), `causal`."""

ROTARY = "Rotary"
"""x `[B,H,S,D]`, cos, sin `[B|1,S,D]` → x rotated by halves, as in RoFormer (arXiv:2104.09864)."""

GELU = "Gelu"
"""x → GELU(x) (arXiv:1606.08415); `approximate` is "none" (Erf) or "tanh"."""
