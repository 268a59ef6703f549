"""How well two sets of outputs agree.

The measure that tolerances speak of is the largest difference over the largest reference value.
Cosine and SQNR describe what quantization costs. Padded positions never count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import InputError

if TYPE_CHECKING:
    from onnxkit.runtime import Session

Array = np.ndarray[Any, Any]

# Largest relative difference that a check accepts, by what the graph computes in.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp32-O3": 1e-3, "fp16": 1e-2, "bf16": 5e-2}

# Values that are widened to float64 at a time: bounded memory for logits of a large vocabulary.
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far `actual` is from `reference`.

    Attributes:
        max_abs: largest absolute difference.
        scale: largest absolute reference value.
        relative: max_abs / scale; infinite when a value is not finite on one side only.
        cosine: of all values as one vector.
        token_cosine: mean over positions (all axes but the last) of the cosine along the last axis.
        sqnr_db: 10 log10(sum of squared reference / sum of squared difference); infinite when equal.
        positions: number of positions behind token_cosine, its weight when batches are joined.
        finite: no NaN on either side, and infinities only where the other side has the same.
    """

    max_abs: float
    scale: float
    relative: float
    cosine: float
    token_cosine: float
    sqnr_db: float
    positions: int
    finite: bool


@dataclass(frozen=True, kw_only=True)
class CaseAgreement:
    """The agreement of one output on one test case."""

    case: str
    output: str
    agreement: Agreement


def compare(
    reference: Array, actual: Array, valid: Array | None = None, *, scale: float | None = None
) -> Agreement:
    """Compare two arrays of one shape and any numeric dtype.

    Args:
        reference: what is right.
        actual: what is judged.
        valid: True (or non-zero) where a position counts; its shape is the leading axes of the
            arrays. None counts all.
        scale: largest absolute reference value, when `reference` is only a sample of it.

    Raises:
        InputError: the shapes differ.
    """
    if reference.shape != actual.shape:
        raise InputError(f"cannot compare shape {reference.shape} with {actual.shape}")
    if valid is not None:
        mask = np.asarray(valid, dtype=bool)
        reference, actual = reference[mask], actual[mask]
    total = _Sums()
    for ref, act in _rows(reference, actual):
        total.add(ref, act)
    return total.agreement(scale)


def weighted_cosine(agreements: Iterable[Agreement]) -> float:
    """Join the token cosines of several batches, each weighted by its number of positions."""
    parts = [(part.token_cosine, part.positions) for part in agreements]
    weight = sum(positions for _, positions in parts)
    return sum(value * positions for value, positions in parts) / weight if weight else 1.0


def valid_positions(feeds: Mapping[str, Array], output: Array) -> Array | None:
    """Return the padding mask [B, S] when `output` is [B, S, ...], else None (all counts)."""
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = feeds.get(name)
        if mask is not None and mask.ndim == 2 and output.shape[:2] == mask.shape:
            return np.asarray(mask, dtype=bool)
    return None


def compare_sessions(
    reference: Session, judged: Session, cases: Iterable[tuple[str, Mapping[str, Array]]]
) -> tuple[CaseAgreement, ...]:
    """Run both on every case and compare the outputs that they share, padding left out.

    Inputs that only one of them takes are fed to that one.

    Raises:
        InputError: they share no output, or an output's shape differs.
    """
    theirs = {spec.name for spec in judged.outputs}
    shared = [spec.name for spec in reference.outputs if spec.name in theirs]
    if not shared:
        raise InputError(f"{judged.model} has none of the outputs of {reference.model}")
    found: list[CaseAgreement] = []
    for case, feeds in cases:
        right = reference.run(_taken(reference, feeds), shared)
        got = judged.run(_taken(judged, feeds), shared)
        for name in shared:
            agreement = compare(right[name], got[name], valid_positions(feeds, right[name]))
            found.append(CaseAgreement(case=case, output=name, agreement=agreement))
    return tuple(found)


def worst(cases: Iterable[CaseAgreement]) -> CaseAgreement:
    """Return the case with the largest relative difference; a non-finite one is always worse."""
    return max(cases, key=lambda each: (not each.agreement.finite, each.agreement.relative))


def _taken(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = {spec.name for spec in session.inputs}
    return {name: array for name, array in feeds.items() if name in names}


def _rows(reference: Array, actual: Array) -> Iterator[tuple[Array, Array]]:
    """Yield both as float64 matrices [positions, width], some positions at a time."""
    width = reference.shape[-1] if reference.ndim else 1
    if not reference.size:
        return
    ref, act = reference.reshape(-1, width), actual.reshape(-1, width)
    step = max(1, _CHUNK_VALUES // width)
    for start in range(0, len(ref), step):
        part = slice(start, start + step)
        yield ref[part].astype(np.float64), act[part].astype(np.float64)


@dataclass
class _Sums:
    """Running sums over chunks of positions."""

    finite: bool = True
    max_abs: float = 0.0
    scale: float = 0.0
    dot: float = 0.0
    ref2: float = 0.0
    act2: float = 0.0
    diff2: float = 0.0
    cosines: float = 0.0
    positions: int = 0

    def add(self, ref: Array, act: Array) -> None:
        unusual = ~(np.isfinite(ref) & np.isfinite(act))
        if unusual.any():
            self.finite &= bool((ref[unusual] == act[unusual]).all())
            ref, act = np.where(unusual, 0.0, ref), np.where(unusual, 0.0, act)
        diff = act - ref
        dot, ref2, act2 = (np.einsum("ij,ij->i", a, b) for a, b in ((ref, act), (ref, ref), (act, act)))
        norm = np.sqrt(ref2 * act2)
        # Two zero vectors agree; one zero vector has no direction.
        cosine = np.divide(dot, norm, out=((ref2 + act2) == 0).astype(float), where=norm > 0)
        self.max_abs = max(self.max_abs, float(np.abs(diff).max()))
        self.scale = max(self.scale, float(np.abs(ref).max()))
        self.dot += float(dot.sum())
        self.ref2 += float(ref2.sum())
        self.act2 += float(act2.sum())
        self.diff2 += float((diff * diff).sum())
        self.cosines += float(cosine.sum())
        self.positions += len(ref)

    def agreement(self, scale: float | None) -> Agreement:
        scale = self.scale if scale is None else scale
        if not self.finite:
            relative = math.inf
        elif self.max_abs == 0.0:
            relative = 0.0
        else:
            relative = self.max_abs / scale if scale > 0 else math.inf
        norm = math.sqrt(self.ref2) * math.sqrt(self.act2)
        return Agreement(
            max_abs=self.max_abs,
            scale=scale,
            relative=relative,
            cosine=min(1.0, self.dot / norm) if norm else float(self.ref2 == self.act2),
            token_cosine=min(1.0, self.cosines / self.positions) if self.positions else 1.0,
            sqnr_db=_decibel(self.ref2, self.diff2),
            positions=self.positions,
            finite=self.finite,
        )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
