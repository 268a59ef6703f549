"""The calibration runs of a static scheme."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxkit.errors import UsageError
from onnxkit.progress import Progress
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators import CALIBRATORS, DEFAULT_CALIBRATOR
from onnxkit.quantize.calibration.collect import collect
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.enough import warn_of_ranges
from onnxkit.quantize.calibration.runs import Graph, runs
from onnxkit.quantize.operators import Target
from onnxkit.quantize.report import Calibration, KeptLayer
from onnxkit.quantize.select import Selection
from onnxkit.runtime import RuntimeOptions


def calibrate(
    graph: Graph,
    targets: Sequence[Target],
    data: DataSet,
    *,
    calibrator: str = DEFAULT_CALIBRATOR,
    scratch: Path,
    runtime: RuntimeOptions,
    progress: Progress,
) -> tuple[Mapping[str, Range], Calibration]:
    """Run the float graph over the samples; return the ranges by value name, and the facts.

    Samples are run one by one: no padding, so that nothing but real tokens makes the ranges, and memory for
    one run's activations whatever their number.

    Args:
        graph: the float graph, perhaps changed in memory (smoothed): the ranges are of what it computes.
        targets: layers of it whose inputs and results are wanted.
        data: the samples.
        calibrator: a key of `CALIBRATORS`.
        scratch: a folder of its own; it is removed.
        runtime: of the session.
        progress: is told how far it is, and warned of samples that are too few.

    Raises:
        InputError: no samples, or one that makes NaN or infinity.
        UsageError: an unknown calibrator.
    """
    if calibrator not in CALIBRATORS:
        raise UsageError(f"unknown calibrator '{calibrator}': choose one of {', '.join(CALIBRATORS)}")
    started = time.perf_counter()
    values = _values(targets)
    made = runs(graph, values, data, scratch=scratch, runtime=runtime, progress=progress)
    collected = collect(made, values, CALIBRATORS[calibrator](), total=len(data.samples))
    warn_of_ranges(collected, data, progress)
    facts = Calibration(
        source=data.source,
        samples=collected.samples,
        available=data.total,
        method=calibrator,
        distinct=collected.distinct,
        widening=collected.widening,
        seconds=time.perf_counter() - started,
    )
    return collected.ranges, facts


def without_constants(selection: Selection, ranges: Mapping[str, Range]) -> Selection:
    """Keep float the layers whose input was zero in every sample: no scale follows from that."""
    targets: list[Target] = []
    kept = list(selection.kept)
    for target in selection.targets:
        values = [value for value in (target.activation, target.result) if value is not None]
        if any(ranges[str(value.name)].empty for value in values):
            reason = "its input or output was zero in every calibration sample"
            kept.append(KeptLayer(name=target.name, op_type=target.node.op_type, reason=reason))
        else:
            targets.append(target)
    return Selection(targets=tuple(targets), kept=tuple(kept))


def _values(targets: Sequence[Target]) -> list[str]:
    found: dict[str, None] = {}
    for target in targets:
        for value in (target.activation, target.result):
            if value is not None:
                found[str(value.name)] = None
    return list(found)
