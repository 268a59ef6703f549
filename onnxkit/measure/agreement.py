"""How well two sets of outputs agree.

The measure that tolerances speak of is the largest difference over the largest reference value.
Cosine and SQNR describe what quantization costs. Padded positions never count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import InputError, ResourceError
from onnxkit.inputs import LocatedBatch, blamed

if TYPE_CHECKING:
    from onnxkit.runtime import Session

Array = np.ndarray[Any, Any]

# Largest relative difference that a check accepts, by what the graph computes in.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp32-O3": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}

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
    """The agreement of one output on one test case of one graph."""

    case: str
    output: str
    agreement: Agreement
    component: str = "model"


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


def valid_positions(feeds: Mapping[str, Array], output: Array, *, name: str = "") -> Array | None:
    """Return which positions of an output count, by its leading axes; None counts all.

    [B, S] for `output` [B, S, ...], where the mask may be longer by a past; [B, heads, T] for keys and
    values (`name` is `present.…`).
    """
    masks = (feeds.get(each) for each in ("attention_mask", "decoder_attention_mask"))
    mask = next((np.asarray(each, dtype=bool) for each in masks if each is not None and each.ndim == 2), None)
    if mask is None or output.ndim < 2 or len(output) != len(mask):
        return None
    if name.startswith("present."):
        if output.ndim != 4 or output.shape[2] != mask.shape[1]:
            return None
        return np.broadcast_to(mask[:, None], output.shape[:3])
    queries = feeds["input_ids"].shape[1] if "input_ids" in feeds else mask.shape[1]
    return mask[:, -queries:] if output.shape[1] == queries <= mask.shape[1] else None


def fed(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Those of `feeds` that the session takes, float ones in its type (a case is made once for all types)."""
    kinds = {spec.name: spec.dtype for spec in session.inputs}
    return {name: _as(array, kinds[name]) for name, array in feeds.items() if name in kinds}


def run_case(
    session: Session, case: str, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run a model on a test case, of which it takes what it has inputs for.

    Raises:
        InputError, ResourceError: the run failed; names the place of the row that fails alone as well, or
            else the case.
    """
    given = fed(session, feeds)
    try:
        return session.run(given, outputs)
    except (InputError, ResourceError) as error:
        places = feeds.places if isinstance(feeds, LocatedBatch) else ()
        for row, where in enumerate(places if isinstance(error, InputError) else ()):
            with blamed(where):
                session.run({name: array[row : row + 1] for name, array in given.items()}, outputs)
        raise type(error)(f"{case}: {error}") from error


def _as(array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype or array.dtype.kind != "f":
        return array
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype) if dtype.startswith("float") else array


def compare_sessions(
    reference: Session, judged: Session, cases: Iterable[tuple[str, Mapping[str, Array]]]
) -> tuple[CaseAgreement, ...]:
    """Run both on every case and compare the outputs that they share, padding left out.

    Inputs that only one of them takes are fed to that one.

    Raises:
        InputError: they share no output, an output's shape differs, or the reference takes a case not.
    """
    theirs = {spec.name for spec in judged.outputs}
    shared = [spec.name for spec in reference.outputs if spec.name in theirs]
    if not shared:
        raise InputError(f"{judged.model} has none of the outputs of {reference.model}")
    found: list[CaseAgreement] = []
    for case, feeds in cases:
        right = run_case(reference, case, feeds, shared)
        got = judged.run(fed(judged, feeds), shared)
        for name in shared:
            agreement = compare(right[name], got[name], valid_positions(feeds, right[name], name=name))
            found.append(CaseAgreement(case=case, output=name, agreement=agreement))
    return tuple(found)


def worst(cases: Iterable[CaseAgreement]) -> CaseAgreement:
    """Return the case with the largest relative difference; a non-finite one is always worse."""
    return max(cases, key=lambda each: (not each.agreement.finite, each.agreement.relative))


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
