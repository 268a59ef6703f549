"""Is the result its input? Compared on seeded inputs, padded on both sides, and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import EnvironmentProblem
from onnxkit.measure.agreement import TOLERANCES, compare_sessions, worst
from onnxkit.measure.latency import interleaved
from onnxkit.optimize.report import CheckResult, SpeedRatio
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, Session, open_session

Case = tuple[str, Mapping[str, np.ndarray[Any, Any]]]

_NOISE, _SIGMAS = 0.03, 2
_SECONDS = 0.4
_TIMED = "left padding"


def check(reference: Session, judged: Session, cases: Sequence[Case], tolerance: str) -> CheckResult:
    """Compare two sessions on every case; padded positions do not count."""
    compared = compare_sessions(reference, judged, cases)
    most = worst(compared)
    limit = TOLERANCES[tolerance]
    return CheckResult(
        passed=most.agreement.finite and most.agreement.relative <= limit,
        tolerance=limit,
        worst=most.agreement.relative,
        case=most.case,
        output=most.output,
        cases=tuple(name for name, _ in cases),
        provider=judged.provider,
    )


def open_judged(path: Path, ep: str, threads: int | None, progress: Progress) -> Session:
    """Open the result on the provider that it is written for, or on the CPU where that cannot be used."""
    try:
        return open_session(path, RuntimeOptions(ep=ep, threads=threads))
    except EnvironmentProblem as problem:
        progress.warn(f"{problem}; the result is checked on the CPU instead, and its speed is not measured")
        return open_session(path, RuntimeOptions(threads=threads))


def measure_speed(before: Session, after: Session, cases: Sequence[Case]) -> SpeedRatio | None:
    """Time both in turns on a padded batch; None where they run on different providers."""
    if before.provider != after.provider or not cases:
        return None
    name, feeds = next((case for case in cases if case[0] == _TIMED), cases[0])
    comparison = interleaved({"before": before, "after": after}, feeds, seconds=_SECONDS)
    ratio = comparison.ratios[0]
    return SpeedRatio(
        case=name,
        before_ms=comparison.summaries["before"].p50_ms,
        after_ms=comparison.summaries["after"].p50_ms,
        ratio=ratio.paired,
        error=ratio.error,
        slower=ratio.paired - max(_NOISE, _SIGMAS * ratio.error) > 1.0,
        threads=before.threads.count,
    )
