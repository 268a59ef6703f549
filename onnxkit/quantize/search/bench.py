"""Measures variants of a model against its float form, which is run and judged once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError
from onnxkit.generate import Engine
from onnxkit.inputs import read_samples
from onnxkit.measure.agreement import Agreement, compare, fed, run_case, valid_positions, weighted_cosine
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.divergence import WINDOW, Divergence, Reference, Window, windows
from onnxkit.measure.evaluate import Evaluation, evaluate_slices, is_labelled
from onnxkit.predictor import Predictor
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.token_rows import token_rows
from onnxkit.quantize.report import MetricChange
from onnxkit.quantize.search.quality import Quality, SliceDrop, points_lost
from onnxkit.quantize.yardstick import BATCH, Yardstick
from onnxkit.runtime import RuntimeOptions, Session, open_session

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

MOST_REMEMBERED = 256 << 20
"""Bytes of the float model's outputs that are kept; what is over is computed anew each time."""
MOST_KEPT = 1 << 30
"""Bytes of its log-probabilities that are kept on disk."""

QUICK_CASES = 8
"""Batches on which a sensitivity run compares outputs: it asks which layer is worse, not how bad."""
QUICK_SAMPLES = 128
QUICK_TOKENS = 512
MOST_TOKENS = 4096
"""Tokens of text that a language model's divergence is taken over."""


class Quiet(Progress):
    """Says nothing: what there is to say about samples is said once."""

    def warn(self, text: str) -> None:
        """Say nothing."""


class Bench:
    """The float model and what variants are measured on.

    Attributes:
        quick: on a bounded part of the samples, as sensitivity runs do.
    """

    def __init__(
        self,
        model: ModelDir,
        yardstick: Yardstick,
        *,
        columns: Mapping[str, str],
        runtime: RuntimeOptions,
        quick: bool = False,
        scratch: Path | None = None,
    ) -> None:
        """`scratch`: an existing folder where a language model's own log-probabilities may be kept."""
        self.model, self.yardstick, self.quick = model, yardstick, quick
        self._columns, self._runtime, self._keep = columns, runtime, scratch
        self._outputs: dict[tuple[str, int], dict[str, Array]] = {}
        self._room = MOST_REMEMBERED

    def measure(self, written: Path, files: Mapping[str, Path]) -> Quality:
        """Measure the variant whose graphs are `files`, in the directory `written`."""
        quality = Quality()
        if not (self.quick and self._language):  # a language model's divergence says more
            compared = (
                part
                for component, file in files.items()
                for part in self._compared(component, open_session(file, self._runtime))
            )
            cosine, sqnr = _worst(list(compared))
            quality = Quality(cosine=cosine, sqnr_db=sqnr)
        divergence = self.divergence(written)
        if divergence is not None:
            quality = dataclasses.replace(quality, kl=divergence.kl_mean)
        return self._with_metric(quality, self.evaluation(written), divergence)

    def divergence(self, written: Path) -> Divergence | None:
        """Of the language model in a directory from the float one; None for other models, or without text."""
        if self._language is None:
            return None
        return self._language.compare(Engine.open(self._opened(written), self._runtime))

    @cached_property
    def _language(self) -> Reference | None:
        data = self.yardstick.data
        if data is None or not generates(self.model):
            return None
        engine = Engine.open(self.model, self._runtime)
        tokens = QUICK_TOKENS if self.quick else MOST_TOKENS
        texts = text_windows(data, self._runtime, tokens, engine.limit)
        if not texts:
            raise InputError(
                f"{data.source}: no text of two tokens or more, which a divergence is taken on; give longer"
                " texts or, where an encoder-decoder answers nothing, targets"
            )
        size = 4 * engine.vocabulary * sum(len(window.ids) for window in texts)
        return Reference(engine, texts, remember=self._keep if size <= MOST_KEPT else None)

    @cached_property
    def before(self) -> Evaluation | None:
        """The float model's metric, over all samples and by slice; None without labels."""
        return self.evaluation(self.model.path)

    def _compared(self, component: str, session: Session) -> Iterator[tuple[str, Agreement]]:
        cases = self.yardstick.cases[component]
        for number, (case, feeds) in enumerate(cases[:QUICK_CASES] if self.quick else cases):
            right = self._reference(component, number, case, feeds)
            got = session.run(fed(session, feeds), list(right))
            for name, array in right.items():
                yield name, compare(array, got[name], valid_positions(feeds, array, name=name))

    def _reference(self, component: str, number: int, case: str, feeds: Feeds) -> dict[str, Array]:
        key = (component, number)
        if key in self._outputs:
            return self._outputs[key]
        session = self._sources[component]
        names = [spec.name for spec in session.outputs if not spec.name.startswith("present.")]
        made = run_case(session, case, feeds, names or None)
        size = sum(array.nbytes for array in made.values())
        if size <= self._room:
            self._room -= size
            self._outputs[key] = made
        return made

    @cached_property
    def _sources(self) -> dict[str, Session]:
        return {
            name: open_session(self.model.path / component.file, self._runtime)
            for name, component in self.model.components.items()
        }

    def evaluation(self, written: Path) -> Evaluation | None:
        """The metric of the model in a directory, over all samples and by slice; None without labels."""
        data, file = self.yardstick.data, self.yardstick.file
        if data is None or data.task is None or not is_labelled(data.samples[0]):
            return None
        samples: Any = data.samples if file is None else read_samples(file, columns=self._columns)
        if self.quick:
            samples = data.samples[:QUICK_SAMPLES]
        predictor = Predictor(
            self._opened(written), task=data.task.name, runtime=self._runtime, batch_size=BATCH,
            progress=Quiet(),
        )  # fmt: skip
        return evaluate_slices(predictor, samples)

    def _opened(self, path: Path) -> ModelDir:
        """The directory as a model. A variant is our own work and is not vetted."""
        if path == self.model.path:
            return self.model
        single = len(self.model.components) == 1
        components = {
            name: dataclasses.replace(each, file="model.onnx" if single else Path(each.file).name)
            for name, each in self.model.components.items()
        }
        return dataclasses.replace(self.model, path=path, components=components, manifest=None)

    def _with_metric(
        self, quality: Quality, after: Evaluation | None, divergence: Divergence | None
    ) -> Quality:
        metric = metric_change(self.before if after is not None else None, after, divergence)
        if metric is None:
            return quality
        drops = slice_drops(self.before, after)
        return dataclasses.replace(
            quality,
            metric=metric.after,
            drop=points_lost(
                metric.name, metric.before, metric.after, higher_is_better=metric.higher_is_better
            ),
            worst_slice=drops[0] if drops else None,
        )


def metric_change(
    before: Evaluation | None, after: Evaluation | None, divergence: Divergence | None
) -> MetricChange | None:
    """The task's metric before and after; without labels a language model's perplexity."""
    if before is not None and before.metric is not None and after is not None and after.metric is not None:
        metric = before.metric
        return MetricChange(
            name=metric.name, before=metric.value, after=after.metric.value, samples=metric.count,
            higher_is_better=metric.higher_is_better,
        )  # fmt: skip
    if divergence is None:
        return None
    return MetricChange(
        name="perplexity", before=divergence.perplexity_before, after=divergence.perplexity_after,
        samples=divergence.tokens, higher_is_better=False,
    )  # fmt: skip


def slice_drops(before: Evaluation | None, after: Evaluation | None) -> tuple[SliceDrop, ...]:
    """What each slice lost, the most first."""
    found = []
    for name, metric in before.slices.items() if before is not None and after is not None else ():
        if after is not None and name in after.slices:
            value = after.slices[name].value
            drop = points_lost(metric.name, metric.value, value, higher_is_better=metric.higher_is_better)
            found.append(
                SliceDrop(name=name, before=metric.value, after=value, drop=drop, samples=metric.count)
            )
    return tuple(sorted(found, key=lambda each: (-each.drop, each.name)))


def text_windows(data: DataSet, runtime: RuntimeOptions, tokens: int, limit: int | None) -> list[Window]:
    """The first `tokens` of the samples, as a language model is run on them; 512 at a time at most."""
    length = min(WINDOW, limit or WINDOW)
    found: list[Window] = []
    for _, row in token_rows(data, runtime, Quiet()):
        room = tokens - sum(len(window.ids) - 1 for window in found)
        if room < 1:
            break
        if row.features:
            found.append(Window(ids=row.ids[:length], encoder=row.features, where=row.where))
        else:
            found += windows([row.ids], length=length, tokens=room, where=row.where)
    return [window for window in found if len(window.ids) > 1]


def _worst(parts: Sequence[tuple[str, Agreement]]) -> tuple[float, float]:
    """Cosine and SQNR of the worst output, its cases joined by their positions."""
    if any(not part.finite for _, part in parts):
        return 0.0, -math.inf
    outputs = [[part for name, part in parts if name == output] for output in dict(parts)]
    return (
        min((weighted_cosine(group) for group in outputs), default=1.0),
        min((joined_sqnr(group) for group in outputs), default=math.inf),
    )


def joined_sqnr(parts: Sequence[Agreement]) -> float:
    """-10 log10 of the mean noise-to-signal power, weighted by positions, in dB."""
    weight = sum(part.positions for part in parts)
    noise = sum(part.positions * 10.0 ** (-part.sqnr_db / 10.0) for part in parts)
    return math.inf if noise == 0.0 or not weight else -10.0 * math.log10(noise / weight)


__all__ = ["QUICK_TOKENS", "Bench", "Quiet", "joined_sqnr", "metric_change", "slice_drops"]
