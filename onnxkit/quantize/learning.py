"""What a calibration set teaches: how the inputs of layers look, how to smooth them, and their ranges."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.errors import UsageError
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.cache import (
    CacheKey,
    CalibrationCache,
    KeptScaling,
    cache_key,
    read_cache,
    write_cache,
)
from onnxkit.quantize.calibration.calibrators import CALIBRATORS, DEFAULT_CALIBRATOR
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.enough import warn_of_statistics
from onnxkit.quantize.calibration.prior import prior_statistics
from onnxkit.quantize.calibration.ranges import calibrate, without_constants
from onnxkit.quantize.calibration.runs import Graph
from onnxkit.quantize.calibration.statistics import collect_statistics
from onnxkit.quantize.codes.blocks import ALGORITHMS, awq_scales
from onnxkit.quantize.codes.layer_error import weight_rows
from onnxkit.quantize.codes.weights import Floats
from onnxkit.quantize.formats import BlockFormat, Format, IntegerFormat, Plan
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.operators import Target
from onnxkit.quantize.options import holds_out
from onnxkit.quantize.report import Calibration
from onnxkit.quantize.select import Selection, listed
from onnxkit.quantize.smoothing.folding import groups_of, scale_inputs
from onnxkit.quantize.smoothing.smooth import Smoothing, smooth
from onnxkit.quantize.workshop import FloatGraph, Workshop, reads
from onnxkit.runtime import RuntimeOptions


def learn(
    workshop: Workshop, data: DataSet, *, scratch: Path, runtime: RuntimeOptions, progress: Progress
) -> Calibration | None:
    """Run the calibration set through the float graphs, and let the workshop know what the scheme needs.

    Args:
        scratch: a folder of its own, for Hessians that do not fit in memory: keep it until all is written.

    Returns:
        What the report says about it; None where the scheme asks nothing of data.

    Raises:
        UsageError: a calibration cache that would keep nothing of use.
        InputError: a sample that cannot be used, or a cache of something else.
    """
    learner = _Learner(workshop, data, scratch, runtime, progress)
    learner.statistics()
    if workshop.scheme.needs_calibration:
        learner.ranges()
    learner.keep()
    learnt = next(iter(learner.cache.facts.values()), None)
    if learnt is None and not holds_out(workshop.options):
        progress.note(f"nothing was learnt from {data.source}: the algorithm takes no data (gptq does)")
    return learnt


class _Learner:
    """One pass of learning: what the cache has is taken from it, and what it has not is put into it."""

    def __init__(
        self, workshop: Workshop, data: DataSet, scratch: Path, runtime: RuntimeOptions, progress: Progress
    ) -> None:
        self._workshop, self._data, self._scratch = workshop, data, scratch
        self._runtime, self._progress = runtime, progress
        self._plans, self._path = workshop.plans(data=True), workshop.options.calibration_cache
        self._needs = {_need(each) for each in workshop.formats(data=True)} - {"none"}
        self._smooths = workshop.scheme.family == "integer" and workshop.options.smooth_quant != "off"
        self.cache = CalibrationCache(key=CacheKey(model="", data="", options={}))
        if self._path is not None:
            self._check_use()
            self.cache = read_cache(self._path, cache_key(workshop.model, data, _choices(workshop)))
        self._found = self.cache.holds
        if self._found:
            progress.note(f"from {self._path}: {', '.join(self._found)}")

    def _check_use(self) -> None:
        """Refuse a cache that no run would be spared by."""
        if self._workshop.scheme.family != "integer" and "importance" not in self._needs:
            why = "keeps no Hessians, which gptq learns from" if self._needs else "has nothing to keep of rtn"
            raise UsageError(f"--calibration-cache {why}: leave it away, or take --algorithm search or awq")

    def statistics(self) -> None:
        """Collect statistics where a planned format is found by them, and smooth."""
        if not (self._needs or self._smooths or self._workshop.options.bias_correction):
            return
        started = time.perf_counter()
        found = [
            each for component in self._workshop.files for each in self._statistics_of(component).values()
        ]
        if not self._workshop.scheme.needs_calibration:  # where ranges tell more
            warn_of_statistics(found, self._data, self._progress)
        seconds = time.perf_counter() - started
        data = self._data
        facts = Calibration(
            source=data.source, samples=len(data.samples), available=data.total, method="statistics",
            distinct=None, widening=None, seconds=seconds,
        )  # fmt: skip
        for component in self._workshop.files:
            self.cache.facts.setdefault(component, facts)

    def _statistics_of(self, component: str) -> Mapping[str, InputStatistics]:
        workshop, cache = self._workshop, self.cache
        graph, plan = workshop.graph(component), self._plans[component]
        found = cache.channels.get(component)
        if "hessian" in self._needs or found is None:
            if found is not None:
                self._progress.note("a cache keeps no Hessians: collecting them (--algorithm rtn needs none)")
            found = collect_statistics(
                Graph(component=component, model=graph.model, path=workshop.source(component)),
                graph.targets, self._data, hessians="hessian" in self._needs,
                scratch=self._scratch / component, runtime=self._runtime, progress=self._progress,
            )  # fmt: skip
            cache.channels[component] = {
                name: dataclasses.replace(each, hessian=None, sample=None) for name, each in found.items()
            }
        workshop.take_statistics(component, found)
        if component not in cache.scaling:
            cache.scaling[component] = _kept(self._scaled(graph, found, plan))
        if done := _done(cache.scaling[component]):
            workshop.smooth(component, done)
        return found

    def _scaled(
        self, graph: FloatGraph, found: Mapping[str, InputStatistics], plan: Plan
    ) -> Mapping[str, Smoothing]:
        if self._smooths:
            alpha = self._workshop.options.smooth_quant
            wanted = "auto" if alpha is None or isinstance(alpha, str) else alpha
            return smooth(graph.model, graph.targets, found, plan, alpha=wanted)  # type: ignore[arg-type]
        if any(_scales(each) for each in plan.values()):
            return scale_for_blocks(graph.model, graph.targets, found, plan)
        return {}

    def ranges(self) -> None:
        """Find the ranges of a static scheme, or take them from the cache."""
        workshop, cache = self._workshop, self.cache
        for component in workshop.files:
            graph = workshop.graph(component)
            if component not in cache.ranges:
                cache.ranges[component], cache.facts[component] = calibrate(
                    Graph(component=component, model=graph.model, path=workshop.source(component)),
                    graph.targets, self._data,
                    calibrator=workshop.options.calibrator or DEFAULT_CALIBRATOR,
                    scratch=self._scratch / "ranges", runtime=self._runtime, progress=self._progress,
                )  # fmt: skip
            workshop.ranges[component] = cache.ranges[component]
            # As smoothed: the ranges are of what the layers read then.
            seen = Selection(targets=graph.targets, kept=workshop.selections[component].kept)
            workshop.selections[component] = without_constants(seen, cache.ranges[component])

    def keep(self) -> None:
        """Write the cache where there is more in it than there was."""
        if self._path is not None and self.cache.holds != self._found:
            write_cache(self._path, self.cache)


def _kept(done: Mapping[str, Smoothing]) -> tuple[KeptScaling, ...]:
    """One entry for the layers that share their factors."""
    layers: dict[int, list[str]] = {}
    for name, one in done.items():
        layers.setdefault(id(one), []).append(name)
    return tuple(
        KeptScaling(layers=tuple(names), alpha=done[names[0]].alpha, factors=done[names[0]].factors)
        for names in layers.values()
    )


def _done(kept: Sequence[KeptScaling]) -> dict[str, Smoothing]:
    found = [(one.layers, Smoothing(alpha=one.alpha, factors=one.factors)) for one in kept]
    return {name: smoothing for layers, smoothing in found for name in layers}


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


def _choices(workshop: Workshop) -> dict[str, str | int | float | bool | None]:
    """Options that decide which values are looked at, and what is found; the calibrator's constants."""
    options, hardware = workshop.options, workshop.hardware
    patterns = {name: ",".join(getattr(options, name)) or None for name in ("include", "exclude", "op_types")}
    patterns["exclude_from"] = ",".join(listed(options.exclude_from)) or None
    found: dict[str, str | int | float | bool | None] = {"--scheme": workshop.scheme.name}
    found |= {f"--{name.replace('_', '-')}": text for name, text in patterns.items()}
    if workshop.scheme.family != "integer":
        return {
            **found, "--algorithm": options.algorithm, "--block-size": options.block_size,
            "--symmetric": options.symmetric,
        }  # fmt: skip
    method = options.calibrator or DEFAULT_CALIBRATOR
    if workshop.scheme.needs_calibration:
        found |= {"--calibrator": method}
        found |= CALIBRATORS[method].parameters() if method in CALIBRATORS else {}
    return {
        **found,
        "--smooth-quant": "auto" if options.smooth_quant is None else options.smooth_quant,
        "--per-channel": options.per_channel,
        "the grid (--target)": f"{hardware.products} {hardware.convolutions}",
    }
