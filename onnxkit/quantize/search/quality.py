"""How good one variant of a model is, and the limits that a user sets to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from onnxkit.errors import UsageError
from onnxkit.quantize.formats import Plan

Plans = Mapping[str, Plan]
"""A plan for each graph of a model, by component."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceDrop:
    """What a class, a language or another slice of the evaluation set lost.

    Attributes:
        name: of the slice.
        before, after: the task's metric on its samples.
        drop: in points (see `points_lost`); positive is worse.
        samples: of the slice.
    """

    name: str
    before: float
    after: float
    drop: float
    samples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """A variant against the float model.

    Attributes:
        cosine: of the worst output, token by token; 0 where one is not finite; None: not compared.
        sqnr_db: signal to noise of the worst output, dB; -inf where one is not finite; None: not compared.
        kl: mean KL divergence of the next token's distribution, nats; None where there is no text.
        metric: the task's metric on labelled samples, perplexity on plain text.
        drop: points that it lost.
        worst_slice: the slice that lost most.
    """

    cosine: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None
    metric: float | None = None
    drop: float | None = None
    worst_slice: SliceDrop | None = None

    @property
    def noise(self) -> float:
        """What adds up over layers, to first order: KL (nats), else noise over signal power."""
        if self.kl is not None:
            return self.kl if math.isfinite(self.kl) else math.inf
        if self.sqnr_db is None or self.sqnr_db == math.inf:
            return 0.0
        return math.pow(10.0, min(-self.sqnr_db, 3000.0) / 10.0)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Quality:
        """Build one from `dataclasses.asdict`; raises TypeError or KeyError for something else."""
        worst = data["worst_slice"]
        return cls(**{**data, "worst_slice": None if worst is None else SliceDrop(**worst)})


Trial = Callable[[Plans], Quality]
"""Writes a variant and measures it."""


def points_lost(metric: str, before: float, after: float, *, higher_is_better: bool) -> float:
    """Points that a metric lost: hundredths of a share or correlation; of a perplexity, per cent of it."""
    worse = before - after if higher_is_better else after - before
    if metric == "perplexity":
        worse /= before if before > 0 else 1.0
    return 100.0 * worse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits that the result must keep; None: no such limit.

    Attributes:
        max_drop: points of the task's metric.
        min_cosine: of every output.
        max_kl: nats, mean over tokens.
        max_worst_slice: points that the worst class, language or slice may lose.
    """

    max_drop: float | None = None
    min_cosine: float | None = None
    max_kl: float | None = None
    max_worst_slice: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return any(value is not None for value in dataclasses.astuple(self))

    def broken(self, quality: Quality) -> tuple[str, ...]:
        """What the variant breaks, in plain words; empty where every gate holds."""
        return tuple(text for text, excess in self._excess(quality) if excess > 0.0)

    def excess(self, quality: Quality) -> float:
        """By how much the worst limit is missed, in shares of the limit; 0 or less where all hold."""
        return max((excess for _, excess in self._excess(quality)), default=0.0)

    def _excess(self, quality: Quality) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        if self.min_cosine is not None:
            room = 1.0 - self.min_cosine
            cosine = _measured(quality.cosine, "--min-cosine", "an output to compare")
            text = f"cosine {_below(cosine, self.min_cosine)} is below {self.min_cosine:.12g}"
            found.append((text, _share(1.0 - cosine, room)))
        if self.max_kl is not None:
            kl = _measured(quality.kl, "--max-kl", "a model that continues texts, and text to judge it on")
            found.append((f"KL divergence {kl:.4f} is over {self.max_kl:g}", _share(kl, self.max_kl)))
        if self.max_drop is not None:
            drop = _measured(quality.drop, "--max-drop", "labelled samples (--eval FILE)")
            found.append((f"{drop:.2f} points lost, over {self.max_drop:g}", _share(drop, self.max_drop)))
        if self.max_worst_slice is not None:
            worst = quality.worst_slice
            drop = _measured(
                None if worst is None else worst.drop, "--max-worst-slice",
                "samples with a label, a language or a slice column (--eval FILE), 10 or more of one",
            )  # fmt: skip
            name = worst.name if worst is not None else ""
            text = f"'{name}' lost {drop:.2f} points, over {self.max_worst_slice:g}"
            found.append((text, _share(drop, self.max_worst_slice)))
        return found


def _below(value: float, limit: float) -> str:
    """The value with as many decimals, from five on, as show that it is below the limit."""
    return next((text for n in range(5, 13) if float(text := f"{value:.{n}f}") < limit), f"{value:.5f}")


def _share(value: float, limit: float) -> float:
    """How far `value` is over `limit`, in shares of it; an exact hit holds, rounding forgiven."""
    if math.isnan(value):
        return math.inf
    over = value - limit
    return (over if over > 1e-9 else min(over, 0.0)) / max(limit, 1e-9)


def _measured(value: float | None, flag: str, needs: str) -> float:
    if value is None:
        raise UsageError(f"{flag} needs {needs}")
    return value


__all__ = ["Gates", "Plans", "Quality", "SliceDrop", "Trial", "points_lost"]
