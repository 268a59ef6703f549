"""What a calibration set teaches: how the inputs of layers look, how to smooth them, and their ranges."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.progress import Progress
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.cache import CachedCalibration, cache_key, read_cache, write_cache
from onnxkit.quantize.calibration.calibrators import CALIBRATORS, DEFAULT_CALIBRATOR
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.prior import prior_statistics
from onnxkit.quantize.calibration.ranges import calibrate, without_constants
from onnxkit.quantize.calibration.runs import Graph
from onnxkit.quantize.calibration.statistics import InputStatistics, collect_statistics
from onnxkit.quantize.codes.blocks import ALGORITHMS, awq_scales
from onnxkit.quantize.codes.layer_error import weight_rows
from onnxkit.quantize.codes.weights import Floats
from onnxkit.quantize.formats import BlockFormat, Format, IntegerFormat, Plan
from onnxkit.quantize.operators import Target
from onnxkit.quantize.report import Calibration
from onnxkit.quantize.select import Selection
from onnxkit.quantize.smoothing.folding import groups_of, scale_inputs
from onnxkit.quantize.smoothing.smooth import Smoothing, smooth
from onnxkit.quantize.workshop import Workshop, reads
from onnxkit.runtime import RuntimeOptions


def learn(
    workshop: Workshop, data: DataSet, *, scratch: Path, runtime: RuntimeOptions, progress: Progress
) -> Calibration | None:
    """Run the calibration set through the float graphs, and let the workshop know what the scheme needs.

    Args:
        scratch: a folder of its own, for Hessians that do not fit in memory: keep it until all is written.

    Returns:
        What the report says about it; None where the scheme asks nothing of data.
    """
    facts = _statistics(workshop, data, scratch, runtime, progress)
    if not workshop.scheme.needs_calibration:
        return facts
    return _ranges(workshop, data, scratch, runtime, progress)


def _statistics(
    workshop: Workshop, data: DataSet, scratch: Path, runtime: RuntimeOptions, progress: Progress
) -> Calibration | None:
    """Collect statistics where a planned format is found by them, and smooth."""
    started, options = time.perf_counter(), workshop.options
    plans = workshop.plans(data=True)
    needs = {_need(each) for plan in plans.values() for each in plan.values()} - {"none"}
    smooths = workshop.scheme.family == "integer" and options.smooth_quant != "off"
    if not (needs or smooths or options.bias_correction):
        return None
    for component in workshop.files:
        graph = workshop.graph(component)
        found = collect_statistics(
            Graph(component=component, model=graph.model, path=workshop.source(component)),
            graph.targets, data,
            hessians="hessian" in needs, scratch=scratch / component, runtime=runtime, progress=progress,
        )  # fmt: skip
        workshop.take_statistics(component, found)
        done: Mapping[str, Smoothing] = {}
        if smooths:
            alpha = options.smooth_quant
            done = smooth(
                graph.model, graph.targets, found, plans[component],
                alpha="auto" if alpha is None or isinstance(alpha, str) else alpha,
            )  # fmt: skip
        elif any(_scales(each) for each in plans[component].values()):
            done = scale_for_blocks(graph.model, graph.targets, found, plans[component])
        if done:
            workshop.smooth(component, done)
    return Calibration(
        source=data.source, samples=len(data.samples), available=data.total, method="statistics",
        distinct=None, widening=None, seconds=time.perf_counter() - started,
    )  # fmt: skip


def assume(workshop: Workshop, progress: Progress) -> None:
    """Without a calibration set: let codes be found by what the graph says of the layers' inputs."""
    plans = workshop.plans(data=False)
    for component, plan in plans.items():
        if "importance" not in map(_need, plan.values()):
            continue
        graph = workshop.graph(component)
        found = prior_statistics(graph.model, graph.targets)
        workshop.take_statistics(component, found)
        weighted = [name for name in workshop.books[component].statistics if _need(plan[name]) != "none"]
        progress.note(f"no calibration set: {len(weighted)} layers weighted by norms' gains and weights")


def _scales(format: Format) -> bool:
    """Whether a format wants its input channels scaled."""
    return isinstance(format, BlockFormat) and format.algorithm == "awq"


def scale_for_blocks(
    model: ir.Model, targets: Sequence[Target], statistics: Mapping[str, InputStatistics], plan: Plan
) -> dict[str, Smoothing]:
    """Scale the inputs of products whose blocks are found by AWQ, in place; return what was done."""
    done: dict[str, Smoothing] = {}
    chosen = [t for t in targets if (each := plan.get(t.name)) is not None and _scales(each)]
    for group in reversed(groups_of(chosen)):
        seen, format = statistics.get(reads(group.targets[0])), plan[group.targets[0].name]
        if seen is None or not isinstance(format, BlockFormat):
            continue
        factors = tied_means(awq_scales([weight_rows(t) for t in group.targets], seen, format), group.ties)
        scale_inputs(model, group, factors)
        found = Smoothing(alpha=1.0, factors=factors)
        done |= {target.name: found for target in group.targets}
    return done


def tied_means(factors: Floats, ties: npt.NDArray[np.int64]) -> Floats:
    """Give all channels that share a number the geometric mean of their factors; float32 `[K]`."""
    counts = np.bincount(ties)
    means = np.bincount(ties, weights=np.log(factors)) / np.maximum(counts, 1)
    found: Floats = np.exp(means)[ties].astype(np.float32)
    return found


def _need(format: Format) -> str:
    """What a format's codes are found by: "none", "importance" or "hessian"."""
    match format:
        case BlockFormat():
            return ALGORITHMS[format.algorithm].needs
        case IntegerFormat(rounding="gptq"):
            return "hessian"
        case _:
            return "none"


def _ranges(
    workshop: Workshop, data: DataSet, scratch: Path, runtime: RuntimeOptions, progress: Progress
) -> Calibration:
    """Find the ranges of a static scheme, or take them from the cache."""
    method = workshop.options.calibrator or DEFAULT_CALIBRATOR
    path, cached = workshop.options.calibration_cache, None
    if path is not None:
        key = cache_key(workshop.model, data, _choices(workshop, method))
        cached = read_cache(path, key)
    if cached is None:
        ranges: dict[str, Mapping[str, Range]] = {}
        facts: dict[str, Calibration] = {}
        for component in workshop.files:
            graph = workshop.graph(component)
            ranges[component], facts[component] = calibrate(
                Graph(component=component, model=graph.model, path=workshop.source(component)),
                graph.targets, data,
                calibrator=method, scratch=scratch / "ranges", runtime=runtime, progress=progress,
            )  # fmt: skip
        if path is not None:
            write_cache(path, CachedCalibration(key=key, ranges=ranges, facts=facts))
    else:
        progress.note(f"ranges: from {path}")
        ranges, facts = dict(cached.ranges), dict(cached.facts)
    for component, found in ranges.items():
        workshop.ranges[component] = found
        seen = Selection(
            targets=workshop.graph(component).targets, kept=workshop.selections[component].kept
        )  # as smoothed: the ranges are of what they read then
        workshop.selections[component] = without_constants(seen, found)
    return next(iter(facts.values()))


def _choices(workshop: Workshop, method: str) -> dict[str, str | int | float | bool | None]:
    """Options that decide which values have ranges, and what they are; the calibrator's constants."""
    options = workshop.options
    lists = {name: ",".join(getattr(options, name)) for name in ("include", "exclude", "op_types")}
    smooth = options.smooth_quant
    constants = CALIBRATORS[method].parameters() if method in CALIBRATORS else {}
    return {
        "--calibrator": method, **constants, "--smooth-quant": smooth,
        **{f"--{name.replace('_', '-')}": text or None for name, text in lists.items()},
    }  # fmt: skip
