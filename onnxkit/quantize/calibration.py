"""The calibration run of a static scheme, and what is said about its samples."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from onnxkit.graph.files import load_model
from onnxkit.progress import Progress
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibrators import CALIBRATORS
from onnxkit.quantize.collect import Collected, collect
from onnxkit.quantize.data import DataSet
from onnxkit.quantize.expose import expose, open_exposed
from onnxkit.quantize.operators import Target
from onnxkit.quantize.report import Calibration, KeptLayer
from onnxkit.quantize.rewrite import prepare
from onnxkit.quantize.select import Selection
from onnxkit.runtime import RuntimeOptions

METHOD = "minmax"


def calibrate(
    path: Path,
    selection: Selection,
    data: DataSet,
    scratch: Path,
    runtime: RuntimeOptions,
    progress: Progress,
) -> tuple[Mapping[str, Range], Calibration]:
    """Run the float model over the samples; return the ranges by value name, and the facts.

    Samples are run one by one: no padding, so that nothing but real tokens makes the ranges, and
    memory for one sample's activations whatever their number.

    Raises:
        InputError: no samples, or one that makes NaN or infinity.
    """
    started = time.perf_counter()
    values = _values(selection.targets)
    model = prepare(load_model(path), str(path))
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    expose(model, [made[name] for name in values if name in made])
    try:
        session = open_exposed(model, path, scratch, runtime)
        batches = progress.track(data.feeds(1, progress), total=len(data.samples), text="calibrating")
        collected = collect(session, batches, values, CALIBRATORS[METHOD]())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _comment(collected, progress)
    facts = Calibration(
        source=data.source,
        samples=collected.samples,
        available=data.total,
        method=METHOD,
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


def _values(targets: tuple[Target, ...]) -> list[str]:
    found: dict[str, None] = {}
    for target in targets:
        for value in (target.activation, target.result):
            if value is not None:
                found[str(value.name)] = None
    return list(found)


def _comment(collected: Collected, progress: Progress) -> None:
    if collected.samples > 1 and collected.distinct == 1:
        progress.warn(f"all {collected.samples} calibration samples are the same: use samples that differ")
    elif collected.enough is not None:
        grew = (
            ""
            if collected.widening is None
            else f" (the last half widened the ranges by {collected.widening:.0%})"
        )
        progress.warn(
            f"{collected.samples} calibration samples are too few{grew}; about {collected.enough} would do"
        )
