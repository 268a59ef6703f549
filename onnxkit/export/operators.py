"""The semantic operators as torch operators: they have shapes but no values, and exist for a trace only.

`graph.semantic` says what each one means; `export.convert` writes them into the ONNX graph.
"""

from __future__ import annotations

from typing import Any

import torch

_library: Any = torch.library.Library("onnxkit", "DEF")  # type: ignore[no-untyped-call]
_OPTIONAL = "Tensor? mask, Tensor? bias, Tensor? sinks, float scale, float softcap"
_SIGNATURES = {
    "attention": f"(Tensor q, Tensor k, Tensor v, {_OPTIONAL}) -> Tensor",
    "cached_attention": (
        f"(Tensor q, Tensor k, Tensor v, Tensor past_k, Tensor past_v, {_OPTIONAL}) -> "
        "(Tensor, Tensor, Tensor)"
    ),
    "mask": (
        "(Tensor? padding, SymInt batch, SymInt queries, SymInt keys, int window, bool causal) -> Tensor"
    ),
    "rotary": "(Tensor x, Tensor cos, Tensor sin, bool interleaved, int heads_axis) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float epsilon, float offset) -> Tensor",
    "expert_matmul": "(Tensor x, Tensor weight, Tensor experts, bool transposed) -> Tensor",
    "last_rows": "(Tensor x, Tensor count) -> Tensor",
}
for _name, _signature in _SIGNATURES.items():
    _library.define(_name + _signature)
OPS = torch.ops.onnxkit


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *other: Any) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


def _cached_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor, *other: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    presents = [
        new.new_empty(new.shape[0], new.shape[1], past.shape[2] + new.shape[2], new.shape[3])
        for past, new in ((past_k, k), (past_v, v))
    ]
    return _attention(q, k, v), presents[0], presents[1]


def _mask(
    padding: torch.Tensor | None, batch: Any, queries: Any, keys: Any, window: int, causal: bool
) -> torch.Tensor:
    rows = queries if window or causal else 1
    if padding is None:
        return torch.empty(1, 1, rows, keys, dtype=torch.bool, device="meta")
    return torch.empty(batch, 1, rows, keys, dtype=torch.bool, device=padding.device)


def _like_the_first(x: torch.Tensor, *other: Any) -> torch.Tensor:
    """Of `last_rows`, too: a trace need not know how many rows are kept, and every operator after it
    would ask about a size that it cannot compare."""
    return torch.empty_like(x)


def _expert_matmul(
    x: torch.Tensor, weight: torch.Tensor, experts: torch.Tensor, transposed: bool
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[2 if transposed else 1])


_SHAPES = {
    "attention": _attention,
    "cached_attention": _cached_attention,
    "mask": _mask,
    "rotary": _like_the_first,
    "rms_norm": _like_the_first,
    "expert_matmul": _expert_matmul,
    "last_rows": _like_the_first,
}
for _name, _shape in _SHAPES.items():
    torch.library.register_fake(f"onnxkit::{_name}")(_shape)
