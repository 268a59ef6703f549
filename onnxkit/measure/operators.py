"""Where the time of a run goes, by operator, from ONNX Runtime's own trace."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxkit.errors import InputError

_OUTER = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one operator on one provider.

    Attributes:
        op: operator type; provider: full name of the provider.
        nodes: number of nodes that ran; total_ms: their milliseconds in one run, on average.
        share: part of the time of all nodes, 0 to 1.
    """

    op: str
    provider: str
    nodes: int
    total_ms: float
    share: float


def read_trace(trace: Path) -> list[dict[str, Any]]:
    """Read a trace of ONNX Runtime (a JSON array of Chrome trace events).

    Raises:
        InputError: the file is no such trace.
    """
    try:
        events = json.loads(trace.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{trace}: no trace of ONNX Runtime: {error}") from error
    if not isinstance(events, list):
        raise InputError(f"{trace}: no trace of ONNX Runtime: not a list of events")
    return [event for event in events if isinstance(event, dict)]


def keep_trace(trace: Path, out: str | None) -> None:
    """Copy a trace to where the user wants it, if anywhere.

    Raises:
        UsageError, ResourceError: as `artifact.publish_file`.
    """
    if out is None:
        return
    from onnxkit.artifact import publish_file

    with publish_file(Path(out), overwrite=True) as staging:
        shutil.copyfile(trace, staging)


def operator_table(
    events: Sequence[Mapping[str, Any]], *, first: int = 0, last: int | None = None
) -> tuple[OperatorTime, ...]:
    """Add up kernel times by operator and provider, the slowest first.

    Args:
        events: of `read_trace`.
        first, last: which runs of the session count (a slice); warm-up is left out this way.
    """
    runs = sorted(
        (event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == "model_run"
    )[first:last]
    if not runs:
        return ()
    begin, end = runs[0][0], runs[-1][1]
    micros: dict[tuple[str, str], float] = defaultdict(float)
    nodes: dict[tuple[str, str], set[str]] = defaultdict(set)
    kernels = [event for event in events if _is_kernel(event) and begin <= event["ts"] <= end]
    for event, own in zip(kernels, _own_times(kernels), strict=True):
        details = event.get("args", {})
        key = (str(details.get("op_name", "?")), str(details.get("provider", "?")))
        micros[key] += own
        nodes[key].add(f"{details.get('node_index')} {event['name']}")  # a branch counts its nodes anew
    everything = sum(micros.values()) or 1.0
    rows = [
        OperatorTime(
            op=op,
            provider=provider,
            nodes=len(nodes[op, provider]),
            total_ms=total / 1e3 / len(runs),
            share=total / everything,
        )
        for (op, provider), total in micros.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.total_ms))


def _own_times(kernels: Sequence[Mapping[str, Any]]) -> list[float]:
    """Microseconds of each kernel but those of nodes in its branches or body, which have their own events."""
    own = [float(event["dur"]) for event in kernels]
    around: list[int] = []
    for index in sorted(range(len(kernels)), key=lambda i: (kernels[i]["ts"], -kernels[i]["dur"])):
        event = kernels[index]
        while around and event["ts"] >= kernels[around[-1]]["ts"] + kernels[around[-1]]["dur"]:
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
        if event.get("args", {}).get("op_name") in _OUTER:
            around.append(index)
    return own


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")
