"""Time, honestly: warm-up apart, outliers counted, noise and other load said.

Outliers and ratios follow hyperfine (github.com/sharkdp/hyperfine, `outlier_detection.rs` and
`relative_speed.rs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxkit import machine
from onnxkit.errors import UsageError
from onnxkit.measure.agreement import fed

if TYPE_CHECKING:
    from onnxkit.runtime import Session

Array = np.ndarray[Any, Any]

DEFAULT_SECONDS = 1.0
DEFAULT_WARMUP = 3
FEWEST_RUNS = 5
MOST_RUNS = 100_000
# Turns the median absolute deviation of a normal distribution into its standard deviation.
_SIGMA_PER_MAD = 1.4826
# Standard error of a median over that of a mean, normal distribution: sqrt(pi / 2).
_MEDIAN_PENALTY = math.sqrt(math.pi / 2)
# Modified Z-score (Iglewicz and Hoaglin, 1993) above which a run is an outlier: ten standard
# deviations.
OUTLIER_SCORE = 10 * _SIGMA_PER_MAD
_NOISY = 0.10
_BUSY_CORES = 0.25

CautionKind = Literal["noise", "outliers", "load", "few_runs", "oversubscribed", "not_interleaved"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Times of many runs of one thing, in milliseconds; the first run and warm-up are not in them."""

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    stddev_ms: float
    outliers: int


@dataclass(frozen=True, kw_only=True)
class Caution:
    """A fact that makes a figure less trustworthy, and what to do about it."""

    kind: CautionKind
    figure: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How long one takes, as a multiple of the baseline.

    Attributes:
        name, baseline: what is compared with what.
        of_means: ratio of mean times; `error` is its standard error.
        of_medians: ratio of median times.
        paired: median over rounds of the ratio within a round: what slow drift of the machine
            disturbs least; `paired_error` is its standard error (1.2533 sigma / sqrt(n), sigma from the
            median absolute deviation).
    """

    name: str
    baseline: str
    of_means: float
    of_medians: float
    paired: float
    paired_error: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Times of several things, measured in turns; ratios are to the first."""

    summaries: Mapping[str, Summary]
    ratios: tuple[Ratio, ...]
    cautions: tuple[Caution, ...]


class LoadMeter:
    """Measures how many cores other processes kept busy between its start and `other_cores()`."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), time.process_time(), machine.cpu_seconds()

    def other_cores(self, own_seconds: float = 0.0) -> float:
        """Return the average number of busy cores that are not this process's.

        Args:
            own_seconds: CPU seconds of child processes that count as ours, too.
        """
        now = machine.cpu_seconds()
        wall = time.perf_counter() - self._wall
        if now is None or self._all is None or wall <= 0:
            return 0.0
        own = time.process_time() - self._own + own_seconds
        return max(0.0, (now[0] - self._all[0] - own) / wall)


def time_session(
    session: Session,
    feeds: Mapping[str, Array],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int = DEFAULT_WARMUP,
) -> Summary:
    """Time `session.run(feeds)`.

    Args:
        runs: number of runs; `seconds`: run at least that long. One of them, not both; neither
            means one second.
        warmup: runs before the clock starts; the very first is always among them.
    """
    call = partial(session.run, feeds)
    for _ in range(max(1, warmup)):
        call()
    return summarize(sample(call, runs=runs, seconds=seconds))


def sample(
    call: Callable[[], object],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    fewest: int = FEWEST_RUNS,
) -> list[float]:
    """Call again and again and return each call's milliseconds; see `time_session`."""
    check_duration(runs, seconds)
    limit = runs if runs is not None else MOST_RUNS
    budget = math.inf if runs is not None else (seconds if seconds is not None else DEFAULT_SECONDS)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < limit:
        started = time.perf_counter()
        if runs is None and len(times) >= fewest and started - began >= budget:
            break
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def summarize(times: Sequence[float]) -> Summary:
    """Summarize milliseconds; percentiles interpolate linearly between runs."""
    values = np.asarray(times, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Summary(
        runs=len(values),
        mean_ms=float(values.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(values.min()),
        max_ms=float(values.max()),
        stddev_ms=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        outliers=int((np.abs(outlier_scores(values)) > OUTLIER_SCORE).sum()),
    )


def outlier_scores(values: Array) -> Array:
    """Return (x - median) / MAD of each value, as hyperfine does; 0 for all when MAD is 0."""
    away = values - np.median(values)
    deviation = float(np.median(np.abs(away)))
    scores: Array = away / deviation if deviation > 0 else np.zeros_like(away)
    return scores


def cautions(summary: Summary, *, other_cores: float = 0.0, threads: int = 1) -> tuple[Caution, ...]:
    """Return what speaks against trusting `summary`."""
    found: list[Caution] = []

    def say(kind: CautionKind, figure: float, text: str) -> None:
        found.append(Caution(kind=kind, figure=figure, text=text))

    spread = summary.stddev_ms / summary.mean_ms if summary.mean_ms else 0.0
    if spread > _NOISY:
        say(
            "noise",
            spread,
            f"times vary by {spread:.0%}: measure longer (--seconds), compare p50 rather than mean",
        )
    if summary.outliers:
        say(
            "outliers",
            summary.outliers,
            f"{summary.outliers} of {summary.runs} runs are outliers: see p99 and max",
        )
    if other_cores > _BUSY_CORES:
        say(
            "load",
            other_cores,
            f"other processes kept {other_cores:.1f} cores busy: measure on an idle machine",
        )
    if summary.runs < FEWEST_RUNS:
        say("few_runs", summary.runs, f"only {summary.runs} runs: percentiles say little (--runs, --seconds)")
    cores = machine.usable_cores()
    if threads > cores.count:
        say("oversubscribed", threads, f"{threads} threads on {cores.count} usable cores ({cores.source})")
    return tuple(found)


def interleaved(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, Array],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int = DEFAULT_WARMUP,
) -> Comparison:
    """Time several sessions on the same feeds in turns; the first one is the baseline.

    Each session is fed the inputs that it takes, in its own floating-point types. `runs` and `seconds` are
    per session.
    """
    calls: dict[str, Callable[[], object]] = {}
    for name, session in sessions.items():
        calls[name] = partial(session.run, fed(session, feeds))
    return interleaved_calls(calls, runs=runs, seconds=seconds, warmup=warmup)


def interleaved_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int = DEFAULT_WARMUP,
) -> Comparison:
    """Time several calls in turns, so that what disturbs the machine disturbs all alike.

    Each round runs every call once; every other round goes backwards, as the place in a round
    matters to caches.
    """
    check_duration(runs, seconds)
    for call in calls.values():
        for _ in range(max(1, warmup)):
            call()
    meter = LoadMeter()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    spent = 0.0
    budget = (seconds if seconds is not None else DEFAULT_SECONDS) * len(calls) * 1e3
    rounds = 0
    while rounds < (runs if runs is not None else MOST_RUNS):
        if runs is None and rounds >= FEWEST_RUNS and spent >= budget:
            break
        for name in order:
            started = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - started) * 1e3)
            spent += times[name][-1]
        order.reverse()
        rounds += 1
    rounds_of = {name: [[value] for value in values] for name, values in times.items()}
    return compare_rounds(rounds_of, other_cores=meter.other_cores())


def compare_rounds(times: Mapping[str, Sequence[Sequence[float]]], *, other_cores: float = 0.0) -> Comparison:
    """Summarize milliseconds that were measured in rounds: name -> rounds -> times of that round."""
    summaries = {name: summarize(list(chain.from_iterable(rounds))) for name, rounds in times.items()}
    baseline = next(iter(times))
    found: dict[str, Caution] = {}
    for summary in summaries.values():
        for caution in cautions(summary, other_cores=other_cores):
            found.setdefault(caution.kind, caution)
    ratios = [
        ratio(name, baseline, rounds, times[baseline]) for name, rounds in times.items() if name != baseline
    ]
    return Comparison(summaries=summaries, ratios=tuple(ratios), cautions=tuple(found.values()))


def ratio(
    name: str, baseline: str, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> Ratio:
    """Compare two series of rounds; the standard errors of the means propagate to first order."""
    mine, base = (summarize(list(chain.from_iterable(rounds))) for rounds in (ours, theirs))
    quotient = mine.mean_ms / base.mean_ms
    variance = sum((each.stddev_ms / each.mean_ms) ** 2 / each.runs for each in (mine, base))
    pairs = np.array(
        [np.median(a) / np.median(b) for a, b in zip(ours, theirs, strict=False) if len(a) and len(b)]
    )
    paired = float(np.median(pairs))
    deviation = _SIGMA_PER_MAD * float(np.median(np.abs(pairs - paired)))
    return Ratio(
        name=name,
        baseline=baseline,
        of_means=quotient,
        of_medians=mine.p50_ms / base.p50_ms,
        paired=paired,
        paired_error=_MEDIAN_PENALTY * deviation / math.sqrt(len(pairs)),
        error=quotient * math.sqrt(variance),
    )


def check_duration(runs: int | None, seconds: float | None) -> None:
    """Raise UsageError unless at most one of them is given, and is positive."""
    if runs is not None and seconds is not None:
        raise UsageError("give --runs or --seconds, not both")
    if runs is not None and runs < 1:
        raise UsageError(f"--runs {runs}: at least 1")
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds}: more than 0")
