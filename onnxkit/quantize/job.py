"""What one call works on: the workshop, and the samples that it learns from and is measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onnxkit.artifact import ModelDir
from onnxkit.measure.made_up import run_all
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import MOST_COMPARED, DataSet, most_to_read, read_data, split
from onnxkit.quantize.options import QuantizeOptions, holds_out
from onnxkit.quantize.schemes import Scheme
from onnxkit.quantize.workshop import Workshop
from onnxkit.quantize.yardstick import Yardstick, yardstick_of, yardstick_without_data
from onnxkit.runtime import RuntimeOptions, open_session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A workshop, and who is told about the work."""

    workshop: Workshop
    progress: Progress

    @property
    def model(self) -> ModelDir:
        """The input model."""
        return self.workshop.model

    @property
    def scheme(self) -> Scheme:
        """What is done with it."""
        return self.workshop.scheme

    @property
    def options(self) -> QuantizeOptions:
        """What the caller chose."""
        return self.workshop.options

    @property
    def runtime(self) -> RuntimeOptions:
        """Every session of this call runs on the CPU with the threads asked for."""
        return RuntimeOptions(threads=self.options.threads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a call; None where there are none.

    Attributes:
        calibration: what is learned from.
        held_out: what was kept out of that, or given to be measured on only.
    """

    calibration: DataSet | None
    held_out: DataSet | None


def read_samples(job: Job) -> Samples:
    """Read the calibration set, and keep a part of it out where there is nothing else to measure on."""
    options = job.options
    if options.calibration is None:
        return Samples(calibration=None, held_out=None)
    hold_out = holds_out(options)
    learns = job.scheme.learns
    most = most_to_read(options.samples, hold_out=hold_out) if learns else options.samples
    data = _read(job, options.calibration, most)
    if not learns:
        return Samples(calibration=None, held_out=data)
    parts = split(data, samples=options.samples, hold_out=hold_out, seed=options.seed)
    return Samples(calibration=parts.calibration, held_out=parts.held_out)


def _read(job: Job, path: Path | str, most: int) -> DataSet:
    options = job.options
    return read_data(
        path, job.model, most=most, columns=options.columns, seed=options.seed, task=options.task,
        max_length=options.max_length,
    )  # fmt: skip


def choose_yardstick(job: Job, samples: Samples) -> Yardstick:
    """Measure on --eval, else on what was kept out of calibration, else on whatever there is."""
    options, held_out = job.options, samples.held_out
    if options.eval is not None:
        name = str(options.eval)
        if samples.calibration is not None and _same_file(options.eval, options.calibration):
            name += ", the calibration set itself"
            job.progress.warn(
                "--eval is the calibration set itself: leave it away, and a part is kept out of it"
            )
        data = _read(job, options.eval, MOST_COMPARED)
        return yardstick_of(job.model, data, name, job.progress, file=options.eval, seed=options.seed)
    if held_out is not None:
        kept = ", kept out of calibration" if samples.calibration is not None else ""
        return yardstick_of(job.model, held_out, f"{held_out.source}{kept}", job.progress, seed=options.seed)
    yardstick = _runnable(job, yardstick_without_data(job.model, options.seed))
    if options.measure or options.searches:
        job.progress.warn(
            f"accuracy is measured on {yardstick.name}, which says little about real data: pass --eval"
        )
    return yardstick


def _runnable(job: Job, yardstick: Yardstick) -> Yardstick:
    """Leave out what was made up for another tool's graph and does not fit it."""
    if job.model.manifest is not None:
        return yardstick
    cases = {}
    for component, each in yardstick.cases.items():
        session = open_session(job.workshop.source(component), job.runtime)
        found = run_all(session, each, job.progress, option="--eval")
        cases[component] = tuple((one.name, one.feeds) for one in found)
    return dataclasses.replace(yardstick, cases=cases)


def _same_file(one: Path, other: Path | str | None) -> bool:
    return other is not None and one.exists() and Path(other).exists() and one.samefile(other)
