"""Is the result its input? Compared on seeded inputs, padded on both sides, and timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import EnvironmentProblem
from onnxkit.measure.agreement import TOLERANCES, CaseAgreement, compare, fed, valid_positions, worst
from onnxkit.measure.latency import interleaved_calls
from onnxkit.measure.made_up import Expected, run_all
from onnxkit.measure.widened import open_for_check
from onnxkit.optimize.report import CheckResult, SpeedRatio
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, Session, open_session

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_NOISE = 0.03
_SECONDS = 0.4
_TIMED = ("decode", "left padding")
"""The cases that are timed, the first that there is: one token over a past where there is a cache."""
# Above this, two sessions at once would hold the weights twice for the sake of a time ratio.
MOST_TIMED_BYTES = 2 << 30


def expect(
    model: Path,
    cases: Iterable[tuple[str, Feeds]],
    *,
    threads: int | None,
    upcast: bool,
    progress: Progress,
) -> list[Expected]:
    """Run the input model on every case; what it cannot run itself is left out, with a warning.

    Its session is closed again: the result is checked without the weights being in memory twice.

    Raises:
        InputError: ONNX Runtime refuses it, or it can run none of the cases.
    """
    session = open_for_check(model, RuntimeOptions(threads=threads), widen=upcast)
    return run_all(session, cases, progress, option="--inputs")


def check(expected: Sequence[Expected], judged: Session, tolerance: str) -> CheckResult:
    """Compare the result's outputs with the input model's on every case; padded positions do not count."""
    compared: list[CaseAgreement] = []
    for each in expected:
        outputs = judged.run(fed(judged, each.feeds), list(each.outputs))
        for name, right in each.outputs.items():
            agreement = compare(right, outputs[name], valid_positions(each.feeds, right, name=name))
            compared.append(CaseAgreement(case=each.name, output=name, agreement=agreement))
    most, limit = worst(compared), TOLERANCES[tolerance]
    return CheckResult(
        passed=most.agreement.finite and most.agreement.relative <= limit,
        tolerance=limit,
        worst=most.agreement.relative,
        case=most.case,
        output=most.output,
        cases=tuple(each.name for each in expected),
        provider=judged.provider,
    )


def open_judged(path: Path, ep: str, *, threads: int | None, upcast: bool, progress: Progress) -> Session:
    """Open the result on the provider that it is written for, or on the CPU where that cannot be used."""
    try:
        return open_for_check(path, RuntimeOptions(ep=ep, threads=threads), widen=upcast)
    except EnvironmentProblem as problem:
        progress.warn(f"{problem}; the result is checked on the CPU instead, and its speed is not measured")
        return open_for_check(path, RuntimeOptions(threads=threads), widen=upcast)


def measure_speed(
    source: Path, after: Session, expected: Sequence[Expected], threads: int | None
) -> SpeedRatio:
    """Time input model and result in turns, on the result's provider: a padded batch, or one token."""
    before = open_session(source, RuntimeOptions(ep=after.provider, threads=threads))
    by_name = {each.name: each for each in expected}
    case = next((by_name[name] for name in _TIMED if name in by_name), expected[0])
    sessions = {"before": before, "after": after}
    calls = {name: partial(one.run, fed(one, case.feeds)) for name, one in sessions.items()}
    comparison = interleaved_calls(calls, seconds=_SECONDS)
    ratio = comparison.ratios[0]
    return SpeedRatio(
        case=case.name,
        before_ms=comparison.summaries["before"].p50_ms,
        after_ms=comparison.summaries["after"].p50_ms,
        ratio=ratio.paired,
        error=ratio.error,
        slower=ratio.paired - max(_NOISE, 2 * ratio.error) > 1.0,
        threads=before.threads.count,
    )
