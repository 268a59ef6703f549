"""What a quantized model is measured on: samples, reference inputs, or seeded random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.cases import random_cases
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.tasks.tokenizer import padding_side

Feeds = Mapping[str, np.ndarray[Any, Any]]
Cases = tuple[tuple[str, Feeds], ...]

BATCH = 8  # what `run` feeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What is measured on.

    Attributes:
        name: for the report.
        cases: named feeds whose outputs are compared, by component.
        samples: how many samples they hold.
        text: what a model that generates is judged on: its metric and divergence, not its outputs.
        data: the samples, for the task's metric; None where there are only tensors.
        file: the whole evaluation file, where the metric is taken over all of it.
    """

    name: str
    cases: Mapping[str, Cases]
    samples: int
    text: str | None = None
    data: DataSet | None = None
    file: Path | None = None


def yardstick_of(
    model: ModelDir,
    data: DataSet,
    name: str,
    progress: Progress,
    *,
    file: Path | None = None,
    seed: int = 0,
) -> Yardstick:
    """Measure on samples, in batches as `run` makes them.

    A model that generates is judged on them by the task's metric; its graphs' outputs are compared on
    random inputs, as what it generated would be the inputs of its next step.
    """
    if generates(model):
        plain = yardstick_without_data(model, seed)
        return dataclasses.replace(plain, text=name, data=data, file=file)
    batches = list(data.feeds(BATCH, progress))
    cases = tuple((f"batch {number}", feeds) for number, feeds in enumerate(batches, 1))
    (component,) = model.components
    return Yardstick(name=name, cases={component: cases}, samples=len(data.samples), data=data, file=file)


def yardstick_without_data(model: ModelDir, seed: int) -> Yardstick:
    """Measure on the directory's reference inputs, else on seeded random ones."""
    name = "reference inputs of the model directory"
    cases: dict[str, Cases] = dict.fromkeys(model.components, ())
    for case in model.reference() or ():
        cases[case.component] = (*cases.get(case.component, ()), (case.name, case.inputs))
    if not all(cases.values()):
        name = "seeded random inputs"
        cases = {each: tuple(random_cases(model, seed=seed, component=each)) for each in model.components}
    cases = {component: _as_padded(model, each) for component, each in cases.items()}
    rows = sum(_rows(each) for each in cases.values())
    return Yardstick(name=name, cases=cases, samples=rows)


def _as_padded(model: ModelDir, cases: Cases) -> Cases:
    """Leave out left padding where the tokenizer pads right: heads that read the first token read padding."""
    if generates(model) or padding_side(model) != "right":
        return cases
    masks = [feeds.get("attention_mask", np.ones((1, 1))) for _, feeds in cases]
    return tuple(case for case, mask in zip(cases, masks, strict=True) if mask[:, 0].all()) or cases


def _rows(cases: Cases) -> int:
    return sum(len(next(iter(feeds.values()))) if feeds else 0 for _, feeds in cases)
