"""What quantization cost and won: outputs, metric and time against the input model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.inputs import read_samples
from onnxkit.measure.agreement import Agreement, compare_sessions, weighted_cosine
from onnxkit.measure.cases import Shape, longest_sequence, make_feeds, random_cases, specs_of, takes_sequence
from onnxkit.measure.evaluate import evaluate
from onnxkit.measure.geometry import geometry
from onnxkit.measure.latency import interleaved
from onnxkit.predictor import Predictor
from onnxkit.progress import Progress
from onnxkit.quantize.data import DataSet
from onnxkit.quantize.report import Measurement, MetricChange, OutputAgreement, SpeedChange
from onnxkit.runtime import RuntimeOptions, Session

Feeds = Mapping[str, np.ndarray[Any, Any]]

BATCH = 8  # what `run` feeds
TIMED_TOKENS = 128
_TRUTH = ("label", "labels", "target", "score", "answers", "answer", "entities")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What is measured on.

    Attributes:
        name: for the report.
        cases: named feeds whose outputs are compared.
        samples: how many samples they hold.
        data: the samples, for the task's metric; None where there are only tensors.
        file: the whole evaluation file, where the metric is taken over all of it.
    """

    name: str
    cases: tuple[tuple[str, Feeds], ...]
    samples: int
    data: DataSet | None = None
    file: Path | None = None


def yardstick_of(data: DataSet, name: str, progress: Progress, *, file: Path | None = None) -> Yardstick:
    """Measure on samples, in batches as `run` makes them."""
    batches = list(data.feeds(BATCH, progress))
    cases = tuple((f"batch {number}", feeds) for number, feeds in enumerate(batches, 1))
    return Yardstick(name=name, cases=cases, samples=len(data.samples), data=data, file=file)


def yardstick_without_data(model: ModelDir, seed: int) -> Yardstick:
    """Measure on the directory's reference inputs, else on seeded random ones."""
    reference = model.reference()
    if reference:
        cases = tuple((case.name, case.inputs) for case in reference)
        return Yardstick(name="reference inputs of the model directory", cases=cases, samples=_rows(cases))
    cases = tuple(random_cases(model, seed=seed))
    return Yardstick(name="seeded random inputs", cases=cases, samples=_rows(cases))


def judge(
    source: Session,
    result: Session,
    model: ModelDir,
    written: Path,
    yardstick: Yardstick,
    *,
    columns: Mapping[str, str],
    runtime: RuntimeOptions,
    seed: int,
    progress: Progress,
) -> Measurement:
    """Compare the quantized model in the directory `written` with the input model."""
    progress.note(f"measuring on {yardstick.name}")
    tracked = progress.track(yardstick.cases, total=len(yardstick.cases), text="comparing outputs")
    agreement = join_outputs(
        [(case.output, case.agreement) for case in compare_sessions(source, result, tracked)]
    )
    metric = _metric(model, written, yardstick, columns, runtime, progress)
    return Measurement(
        measured_on=yardstick.name,
        samples=yardstick.samples,
        agreement=agreement,
        metric=metric,
        speed=_speed(source, result, _timed_feeds(model, yardstick, seed)),
    )


def join_outputs(found: Sequence[tuple[str, Agreement]]) -> tuple[OutputAgreement, ...]:
    """Join the agreements of several cases by output, each weighted by its number of positions."""
    outputs = dict.fromkeys(name for name, _ in found)
    joined = []
    for output in outputs:
        parts = [part for name, part in found if name == output]
        joined.append(
            OutputAgreement(
                output=output,
                cosine=weighted_cosine(parts),
                sqnr_db=joined_sqnr(parts),
                max_abs=max(part.max_abs for part in parts),
            )
        )
    return tuple(joined)


def joined_sqnr(parts: Sequence[Agreement]) -> float:
    """-10 log10 of the mean noise-to-signal power, weighted by positions, in dB."""
    weight = sum(part.positions for part in parts)
    noise = sum(part.positions * 10.0 ** (-part.sqnr_db / 10.0) for part in parts)
    return math.inf if noise == 0.0 or not weight else -10.0 * math.log10(noise / weight)


def _metric(
    model: ModelDir,
    written: Path,
    yardstick: Yardstick,
    columns: Mapping[str, str],
    runtime: RuntimeOptions,
    progress: Progress,
) -> MetricChange | None:
    data = yardstick.data
    if data is None or data.task is None or not any(key in data.samples[0] for key in _TRUTH):
        return None
    values = []
    quiet = _Quiet()  # what there is to say about the samples has been said when their outputs were compared
    for path in (model, ModelDir.open(written, task=data.task.name)):
        samples: Iterable[Any] = data.samples
        if yardstick.file is not None:
            samples = read_samples(yardstick.file, columns=columns)
        predictor = Predictor(path, task=data.task.name, runtime=runtime, batch_size=BATCH, progress=quiet)
        found = evaluate(predictor, progress.track(samples, total=None, text="evaluating"))
        if found is None:
            return None
        values.append(found)
    before, after = values
    return MetricChange(
        name=before.name,
        before=before.value,
        after=after.value,
        samples=before.count,
        higher_is_better=before.higher_is_better,
    )


class _Quiet(Progress):
    """Says nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""


def _timed_feeds(model: ModelDir, yardstick: Yardstick, seed: int) -> Feeds:
    """The batch of middling size of real data, else a batch of 8 by up to 128 tokens."""
    if yardstick.data is not None:
        full = sorted((feeds for _, feeds in yardstick.cases), key=_elements)
        return full[len(full) // 2]
    specs, known = specs_of(model), geometry(model.config)
    if not takes_sequence(specs):
        return max((feeds for _, feeds in yardstick.cases), key=_elements)
    shape = Shape(batch=BATCH, sequence=longest_sequence(known, TIMED_TOKENS))
    return make_feeds(specs, known, shape, np.random.default_rng(seed))


def _speed(source: Session, result: Session, feeds: Feeds) -> SpeedChange:
    found = interleaved({"input": source, "quantized": result}, feeds)
    before, after = found.summaries["input"], found.summaries["quantized"]
    ratio = found.ratios[0]
    largest = max(feeds.values(), key=lambda array: array.size)
    return SpeedChange(
        shape="x".join(map(str, largest.shape)),
        before_ms=before.p50_ms,
        after_ms=after.p50_ms,
        ratio=ratio.paired,
        ratio_error=ratio.error,
        threads=result.threads.count,
    )


def _elements(feeds: Feeds) -> int:
    return sum(array.size for array in feeds.values())


def _rows(cases: Sequence[tuple[str, Feeds]]) -> int:
    return sum(len(next(iter(feeds.values()))) if feeds else 0 for _, feeds in cases)
