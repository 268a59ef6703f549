"""Rotary functions of the modeling files, told by trying them on random values.

They differ in which elements make a pair (a half apart, or neighbours), in how their tables are laid out,
and in whether they turn the beginning of a head only. The semantic operator has one form for all.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from onnxkit.export.operators import OPS
from onnxkit.export.probes import RAISED, Replacement

Tables = Callable[[torch.Tensor], torch.Tensor]
_SIZE, _PART = 8, 4
"""Of a head, and of its part that is turned, in what a function is tried on."""


def _as_they_are(table: torch.Tensor) -> torch.Tensor:
    return table


def _side_by_side(half: torch.Tensor) -> torch.Tensor:
    return torch.cat((half, half), dim=-1)


def _as_neighbours(half: torch.Tensor) -> torch.Tensor:
    return torch.stack((half, half), dim=-1).flatten(-2)


def _first_half(table: torch.Tensor) -> torch.Tensor:
    return table[..., : table.shape[-1] // 2]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a rotary function takes its input and its tables.

    Attributes:
        interleaved: neighbours make a pair; else elements that are half of the turned part apart.
        tables: makes the semantic operator's table `[B|1,S,R]` of the function's.
        narrow: the function's tables are R/2 wide.
        sorts: pairs are neighbours in what comes in, and half apart in what comes out (DeepSeek's).
    """

    interleaved: bool
    tables: Tables
    narrow: bool = False
    sorts: bool = False

    def turned(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """What the function should make of x `[B,H,S,D]` with its own tables."""
        cos, sin = (self.tables(table)[:, None] for table in (cos, sin))
        size = cos.shape[-1]
        x, rest = self.sorted(x)[..., :size], x[..., size:]
        if self.interleaved:
            other = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        else:
            other = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1)
        return torch.cat((x * cos + other * sin, rest), dim=-1)

    def sorted(self, x: torch.Tensor) -> torch.Tensor:
        """X as the semantic operator reads it."""
        return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1) if self.sorts else x


CONVENTIONS = (
    Convention(interleaved=False, tables=_as_they_are),
    Convention(interleaved=False, tables=_side_by_side, narrow=True),
    Convention(interleaved=True, tables=_as_they_are),
    Convention(interleaved=True, tables=lambda table: _as_neighbours(_first_half(table))),
    Convention(interleaved=True, tables=_as_neighbours, narrow=True),
    Convention(interleaved=False, tables=lambda table: _side_by_side(_first_half(table)), sorts=True),
)
"""RoFormer's by halves (arXiv:2104.09864) with two kinds of tables, Cohere's, GLM's, GPT-J's, DeepSeek's."""


def rotations(model: torch.nn.Module) -> Iterator[Replacement]:
    """The rotary functions of the model's files that have one of the conventions."""
    for module in sorted({type(module).__module__ for module in model.modules()}):
        source = sys.modules.get(module)
        for name in ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_emb"):
            function = getattr(source, name, None)
            hooked = None if function is None else _hooked(function)
            if hooked is not None:
                yield source, name, hooked


def _hooked(function: Callable[..., Any]) -> Callable[..., Any] | None:
    convention = convention_of(function)
    if convention is not None:
        return _of_two(function, convention, partial=convention_of(function, partial=True) == convention)
    single = convention_of(with_one(function))
    if single is not None:
        return _of_one(function, single)
    swapped = convention_of(with_sines_first(function))
    if swapped is not None:
        return _of_sines_first(function, swapped)
    for axis in (1, 2):
        convention = convention_of(with_complex_tables(function, axis))
        if convention is not None:
            return _of_complex_tables(function, convention, axis)
    return None


def convention_of(function: Callable[..., Any], *, partial: bool = False) -> Convention | None:
    """How `function(q, k, cos, sin)` rotates `[B,H,S,D]`, or with `partial` the beginning of its heads."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, _SIZE, generator=generator)
    size = _PART if partial else _SIZE
    for convention in CONVENTIONS:
        tables = torch.randn(2, 1, 3, size // 2 if convention.narrow else size, generator=generator)
        try:
            rotated = function(q, k, *tables)
        except RAISED:
            continue
        if _is_pair(rotated) and all(
            r.shape == x.shape and torch.allclose(r, convention.turned(x, *tables), atol=1e-5)
            for r, x in zip(rotated, (q, k), strict=True)
        ):
            return convention
    return None


def _is_pair(rotated: Any) -> bool:
    return (
        isinstance(rotated, tuple) and len(rotated) == 2 and all(isinstance(r, torch.Tensor) for r in rotated)
    )


def with_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gemma 3n's takes one tensor."""

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return tuple(function(x, cos, sin) for x in (q, k))

    return rotate


def with_sines_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """GPT-J's takes one tensor `[B,S,H,D]`, and the sines before the cosines."""

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return tuple(function(x.transpose(1, 2), sin, cos).transpose(1, 2) for x in (q, k))

    return rotate


def with_complex_tables(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
    """DeepSeek-V2's takes cos + i·sin `[B,S,R/2]`; Llama 4's does, too, and has its heads on axis 2."""

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        rotated = function(*(x.transpose(1, axis) for x in (q, k)), torch.complex(cos, sin))
        return tuple(x.transpose(1, axis) for x in rotated)

    return rotate


def _of_two(original: Callable[..., Any], convention: Convention, *, partial: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *a: Any, **kw: Any
    ) -> Any:
        axis = _heads_axis(a, kw)
        if axis is None or not _fits(convention, q, cos, partial=partial):
            return original(q, k, cos, sin, *a, **kw)
        return tuple(_said(convention, x, cos, sin, axis) for x in (q, k))

    return rotate


def _of_one(original: Callable[..., Any], convention: Convention) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *a: Any, **kw: Any) -> Any:
        axis = _heads_axis(a, kw)
        if axis is None or not _fits(convention, x, cos):
            return original(x, cos, sin, *a, **kw)
        return _said(convention, x, cos, sin, axis)

    return rotate


def _of_sines_first(original: Callable[..., Any], convention: Convention) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(tensor: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> Any:
        fits = _fits(convention, tensor, cos)
        return _said(convention, tensor, cos, sin, 2) if fits else original(tensor, sin, cos)

    return rotate


def _of_complex_tables(original: Callable[..., Any], convention: Convention, axis: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(q: torch.Tensor, k: torch.Tensor, tables: torch.Tensor) -> Any:
        cos, sin = torch.view_as_real(tables).unbind(-1)
        if not _fits(convention, q, cos):
            return original(q, k, tables)
        return tuple(_said(convention, x, cos, sin, axis) for x in (q, k))

    return rotate


def _heads_axis(more: tuple[Any, ...], named: Mapping[str, Any]) -> int | None:
    """Where the heads stand, as `unsqueeze_dim` says; None: another argument has a say."""
    axis = named.get("unsqueeze_dim", 1)
    return axis if not more and set(named) <= {"unsqueeze_dim"} and axis in (1, 2) else None


def _fits(convention: Convention, x: torch.Tensor, cos: torch.Tensor, *, partial: bool = False) -> bool:
    width = cos.shape[-1] * (2 if convention.narrow else 1)
    return cos.ndim == 3 and (width == x.shape[-1] or (partial and width < x.shape[-1]))


def _said(
    convention: Convention, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int
) -> torch.Tensor:
    tables = [convention.tables(table) for table in (cos, sin)]
    said: torch.Tensor = OPS.rotary(convention.sorted(x), *tables, convention.interleaved, axis)
    return said
