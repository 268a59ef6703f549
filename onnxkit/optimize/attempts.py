"""Rewrites one graph until the result computes what its input computes: what does not is left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.graph import half_precision
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.shared_data import SharedData
from onnxkit.measure.made_up import Expected
from onnxkit.optimize import gate
from onnxkit.optimize.dialects import Dialect
from onnxkit.optimize.levels import Level
from onnxkit.optimize.report import CheckResult, DroppedFusion
from onnxkit.optimize.rewrite import Rewritten, rewrite
from onnxkit.progress import Progress
from onnxkit.runtime import Session, provider_name

_UNUSABLE = float("inf")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph on its way.

    Attributes:
        source: its file.
        target: the file to write.
        level: what to do.
        dialect: for which provider.
        ep: the provider's name.
        threads: of sessions.
        tolerance: key of `measure.agreement.TOLERANCES` that the result must keep.
        expected: inputs to compare on, and what the source makes of them.
        upcast: whether the graph holds bfloat16, and is checked as float32.
        shared: takes the weights of all graphs of the directory; None where there is one graph.
        mark: where the weights of the graphs before this one end in it.
        progress: is told what is left out.
    """

    source: Path
    target: Path
    level: Level
    dialect: Dialect
    ep: str
    threads: int | None
    tolerance: str
    expected: Sequence[Expected]
    upcast: bool
    shared: SharedData | None
    mark: int
    progress: Progress


@dataclass(kw_only=True)
class Attempt:
    """A written and checked result."""

    rewritten: Rewritten
    check: CheckResult
    session: Session | None
    dropped: list[DroppedFusion] = field(default_factory=list)
    kept_float32: tuple[str, ...] = ()


def settle(graph: Graph, disabled: Collection[str]) -> Attempt:
    """Write the best result that passes the check; a fusion that does not is left out with a warning.

    Where nothing passes, the attempt that comes back says so in its `check`.
    """
    attempt = _try(graph, disabled)
    attempt = attempt if attempt.check.passed else _without_culprits(graph, set(disabled), attempt)
    if not graph.level.half or not attempt.check.passed:
        return attempt
    left_out = {*disabled, *(each.name for each in attempt.dropped)}
    half = _half(graph, left_out)
    half.dropped = attempt.dropped
    return half


def _without_culprits(graph: Graph, disabled: set[str], failed: Attempt) -> Attempt:
    """Leave out one fusion, an approximation first; where no single one is to blame, all of them."""
    inexact = {row.name for row in graph.dialect.approximations}
    names = [name for name, _ in failed.rewritten.lowered.most_common()]
    names.sort(key=lambda name: name not in inexact)
    trials = [[name] for name in names] + ([names] if len(names) > 1 else [])
    attempt = failed
    for trial in trials:
        attempt = _try(graph, disabled | set(trial))
        if attempt.check.passed:
            for name in trial:
                attempt.dropped.append(_dropped(name, failed.check))
                graph.progress.warn(_why(name, failed.check))
            return attempt
    return attempt


def _dropped(name: str, check: CheckResult) -> DroppedFusion:
    return DroppedFusion(name=name, worst=check.worst, case=check.case, output=check.output)


def _why(name: str, check: CheckResult) -> str:
    return f"{name} is left out: with it, the graph {differs(check)}"


def differs(check: CheckResult) -> str:
    """Say how a result that failed the check failed it."""
    if check.worst == _UNUSABLE:
        return f"cannot be run or gives values that are not finite ({check.output}, {check.case})"
    return (
        f"differs from its input by {check.worst:.1e} in {check.output} ({check.case}), "
        f"more than {check.tolerance:.0e}"
    )


def _try(graph: Graph, disabled: Collection[str]) -> Attempt:
    model = load_model(graph.source)
    rewritten = _rewrite(graph, model, disabled)
    session, check = _write_and_check(graph, model)
    return Attempt(rewritten=rewritten, check=check, session=session)


def _rewrite(graph: Graph, model: ir.Model, disabled: Collection[str], *, half: bool = False) -> Rewritten:
    padded = [case.feeds for case in graph.expected if case.name.startswith(("batch", "right", "left"))]
    padded = padded or [case.feeds for case in graph.expected[:1]]
    if graph.upcast:
        padded = []  # it cannot be run as it is: attention is read from the metadata only
    return rewrite(
        model,
        graph.level,
        graph.dialect.before_float16() if half else graph.dialect,
        disabled=disabled,
        cases=padded,
        scratch=graph.target.parent,
    )


def _write_and_check(graph: Graph, model: ir.Model) -> tuple[Session | None, CheckResult]:
    """Save, load and compare; what ONNX Runtime refuses to load or run has failed the check, too."""
    if graph.shared is not None:
        graph.shared.rewind(graph.mark)
    save_model(model, graph.target, shared=graph.shared)
    try:
        session = gate.open_judged(
            graph.target, graph.ep, threads=graph.threads, upcast=graph.upcast, progress=graph.progress
        )
        return session, gate.check(graph.expected, session, graph.tolerance)
    except InputError as error:
        failed = CheckResult(
            passed=False,
            tolerance=0.0,
            worst=_UNUSABLE,
            case="loading or running it",
            output=str(error),
            cases=tuple(case.name for case in graph.expected),
            provider=provider_name(graph.ep),
        )
        return None, failed


def _half(graph: Graph, disabled: Collection[str]) -> Attempt:
    """Convert to float16, keeping as few parts in float32 as the tolerance asks for."""
    trials: list[tuple[frozenset[str], Attempt]] = []

    def passes(keep: Collection[str]) -> bool:
        model = load_model(graph.source)
        rewritten = _rewrite(graph, model, disabled, half=True)
        result = half_precision.to_half(model, keep={*overflow, *keep})
        session, check = _write_and_check(graph, model)
        attempt = Attempt(rewritten=rewritten, check=check, session=session, kept_float32=result.kept)
        trials.append((frozenset(keep), attempt))
        return check.passed

    model = load_model(graph.source)
    _rewrite(graph, model, disabled, half=True)
    overflow = half_precision.overflowing(model, [case.feeds for case in graph.expected], graph.target.parent)
    if overflow:
        graph.progress.note(f"{len(overflow)} nodes stay float32: float16 does not hold their values")
    keep = half_precision.search_kept(half_precision.stages(model), passes)
    first = trials[0][1].check
    if keep is None:
        return trials[0][1]
    if trials[-1][0] != frozenset(keep):
        passes(keep)  # the file holds the search's last trial, which was another one
    attempt = trials[-1][1]
    if keep:
        graph.progress.warn(
            f"{len(attempt.kept_float32)} nodes stay float32: all in float16, the graph {differs(first)}"
        )
    return attempt
