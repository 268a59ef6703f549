"""Searching for the smallest model that keeps the user's limits.

A path of variants leads from the smallest to the most faithful: quantized layers are released one after
the other, most sensitive first (`release_path`), or get wider formats, the best buy first
(`allocation.upgrade_path`). Quality grows along it, so bisection finds the first that holds in about log2 of
its length trials. What is returned has been measured itself: where noise makes quality go up and down,
another place on the path may hold as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from onnxkit.progress import Progress
from onnxkit.quantize.search.quality import Gates, Plans, Quality, Trial
from onnxkit.quantize.search.units import Unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A place on the path.

    Attributes:
        label: what was changed against the first, for tables ("7 layers float").
        plans: what to write.
    """

    label: str
    plans: Plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A variant that was tried. `broken` says which limits it misses; empty: it holds."""

    label: str
    quality: Quality
    broken: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether it keeps every limit."""
        return not self.broken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Where a search ended: the first step that holds or, where none does, the one that misses by least.

    Attributes:
        step: what was found.
        attempts: everything tried, in order.
        holds: whether it keeps the limits.
    """

    step: Step
    attempts: tuple[Attempt, ...]
    holds: bool

    @property
    def best(self) -> Attempt:
        """The attempt at `step`."""
        return next(one for one in reversed(self.attempts) if one.label == self.step.label)


def search(
    first: Step, path: Callable[[], Sequence[Step]], trial: Trial, gates: Gates, progress: Progress
) -> Found:
    """Find the first step that keeps the gates.

    Args:
        first: everything as small as can be.
        path: what to try next, smallest first; asked for only where `first` misses (making it may take a
            sensitivity run).
        trial: measures a step.
        gates: the limits.
        progress: is told each attempt.
    """
    tried: dict[str, tuple[Step, Attempt]] = {}

    def holds(step: Step) -> bool:
        quality = trial(step.plans)
        attempt = Attempt(label=step.label, quality=quality, broken=gates.broken(quality))
        tried[step.label] = (step, attempt)
        progress.note(f"gate: {step.label}: {'; '.join(attempt.broken) or 'holds'}")
        return attempt.holds

    found = first if holds(first) else _bisect(path(), holds)
    attempts = tuple(attempt for _, attempt in tried.values())
    if found is not None:
        return Found(step=found, attempts=attempts, holds=True)
    nearest = min(tried.values(), key=lambda each: gates.excess(each[1].quality))
    return Found(step=nearest[0], attempts=attempts, holds=False)


def _bisect(steps: Sequence[Step], holds: Callable[[Step], bool]) -> Step | None:
    low, high = -1, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(steps[middle]) else (middle, high)
    return steps[high] if high < len(steps) else None


def release_path(plans: Plans, order: Sequence[Unit]) -> list[Step]:
    """Steps that leave one, two, … units float, in `order`; the last keeps one quantized.

    Args:
        plans: everything quantized.
        order: all its units, most sensitive first.
    """
    steps = []
    for count in range(1, len(order)):
        gone = {key for unit in order[:count] for key in unit.keys}
        left = {
            component: {name: each for name, each in plan.items() if (component, name) not in gone}
            for component, plan in plans.items()
        }
        steps.append(Step(label=f"{count} {'layer' if count == 1 else 'layers'} released", plans=left))
    return steps


__all__ = ["Attempt", "Found", "Step", "release_path", "search"]
