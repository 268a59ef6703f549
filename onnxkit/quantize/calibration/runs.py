"""The runs that samples make of one graph, and what they make of the values inside it.

Samples come one by one: no padding, and memory for one run's activations whatever their number. A graph
with a cache is run as a decoder is: the sample's tokens but the last in one go, then those one by one over
the cache.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.artifact import ModelDir
from onnxkit.inputs import blamed
from onnxkit.measure.cached_cases import is_cached
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.expose import open_exposed
from onnxkit.quantize.calibration.token_rows import TokenRow, token_rows
from onnxkit.runtime import RuntimeOptions, Session, TensorSpec, open_session

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

DECODE_STEPS = 2
"""Tokens of a sample that are decoded one by one. What a layer sees of them is what it would see in one go;
the branches of a graph that only a step takes have to be seen, not often."""

_PAST, _PRESENT = "past_key_values.", "present."
_STATES = "encoder_hidden_states"
_IDS = ("input_ids", "decoder_input_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the graph.

    Attributes:
        sample: number of the sample that it belongs to, from 1.
        where: the place of that sample, for errors.
        feeds: what the graph was given.
        values: the values asked for, float32, as the graph made them.
    """

    sample: int
    where: str
    feeds: Feeds
    values: Feeds

    def tokens(self, name: str) -> Array:
        """A value without what padding makes of it: float32 [tokens, width], or as it is without padding."""
        array, mask = self.values[name], self.feeds.get("attention_mask")
        if mask is None or mask.all() or array.shape[: mask.ndim] != mask.shape:
            return array
        real: Array = array[mask.astype(bool)]
        return real


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph that samples are run through.

    Attributes:
        component: its name in the model directory.
        model: prepared (`rewrite.prepare`), perhaps changed in memory.
        path: the file that it was loaded from.
    """

    component: str
    model: ir.Model
    path: Path


def runs(
    graph: Graph,
    values: Sequence[str],
    data: DataSet,
    *,
    scratch: Path,
    runtime: RuntimeOptions,
    progress: Progress,
    text: str = "calibrating",
) -> Iterator[Run]:
    """Run every sample through the graph and yield the named values of each run.

    The arrays live until the next run. `scratch` is made and removed.

    Raises:
        InputError: a sample that cannot be used; names its place.
    """
    try:
        session = open_exposed(graph.model, values, graph.path, scratch, runtime)
        driver = _Driver(graph, session, values, data, runtime)
        yield from driver.runs(progress, text)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Driver:
    """Knows how a component's inputs come of samples: directly, or through the graphs before it."""

    def __init__(
        self, graph: Graph, session: Session, values: Sequence[str], data: DataSet, runtime: RuntimeOptions
    ) -> None:
        self._component, self._session, self._data, self._runtime = graph.component, session, data, runtime
        given = {spec.name for spec in session.outputs}
        self._made = [name for name in values if name in given]
        self._stored = _stored(graph.model, values)
        self._fed = [name for name in values if name not in given and name not in self._stored]
        self._present = [spec.name for spec in session.outputs if spec.name.startswith(_PRESENT)]

    def runs(self, progress: Progress, text: str) -> Iterator[Run]:
        """Yield the runs of all samples."""
        of_rows = self._of_rows()
        if of_rows is None:
            items = self._data.numbered_feeds(progress)
            for number, feeds in progress.track(items, total=len(self._data.samples), text=text):
                with blamed(feeds.places[0]):
                    yield self._run(number, feeds.places[0], feeds)[0]
            return
        rows = token_rows(self._data, self._runtime, progress)
        for number, row in progress.track(rows, total=len(self._data.samples), text=text):
            with blamed(row.where):
                yield from of_rows(number, row)

    def _of_rows(self) -> Callable[[int, TokenRow], Iterator[Run]] | None:
        """How a row of tokens is run; None for a graph that samples are fed to as they are."""
        if is_cached(self._session.inputs):
            return self._steps if self._component == "decoder_with_past" else self._prefill_and_steps
        if any(spec.name == _STATES for spec in self._session.inputs):
            return self._first_step
        return None

    def _prefill_and_steps(self, number: int, row: TokenRow) -> Iterator[Run]:
        """A decoder: most of the tokens at once, the last ones over the cache."""
        state = self._encoded(row)
        first = max(1, len(row.ids) - DECODE_STEPS)
        for start, end in [(0, first), *((place, place + 1) for place in range(first, len(row.ids)))]:
            feeds = step_feeds(self._session.inputs, row.ids[start:end], start, state)
            run, presents = self._run(number, row.where, feeds)
            yield run
            state = {**state, **presents}

    def _first_step(self, number: int, row: TokenRow) -> Iterator[Run]:
        """Optimum's decoder without a past: it takes the encoder's output."""
        feeds = step_feeds(self._session.inputs, row.ids, 0, self._encoded(row))
        yield self._run(number, row.where, feeds)[0]

    def _steps(self, number: int, row: TokenRow) -> Iterator[Run]:
        """Optimum's decoder with a past: one token at a time, after the decoder of the first step."""
        state = self._encoded(row)
        state |= self._first.run(step_feeds(self._first.inputs, row.ids[:1], 0, state))
        for place in range(1, len(row.ids)):
            feeds = step_feeds(self._session.inputs, row.ids[place : place + 1], place, state)
            run, presents = self._run(number, row.where, feeds)
            yield run
            state = {**state, **presents}

    def _encoded(self, row: TokenRow) -> dict[str, Array]:
        """What the encoder makes of a row: its output or every layer's keys and values; its mask."""
        if not row.features:
            return {}
        feeds = {spec.name: row.features[spec.name][None] for spec in self._encoder.inputs}
        mask = feeds.get("attention_mask")
        state = self._encoder.run(feeds)
        return state if mask is None else {"encoder_attention_mask": mask, **state}

    @cached_property
    def _encoder(self) -> Session:
        return self._other("encoder")

    @cached_property
    def _first(self) -> Session:
        return self._other("decoder")

    def _other(self, component: str) -> Session:
        model: ModelDir = self._data.model
        return open_session(model.path / model.components[component].file, self._runtime)

    def _run(self, number: int, where: str, feeds: Feeds) -> tuple[Run, dict[str, Array]]:
        feeds = {spec.name: feeds[spec.name] for spec in self._session.inputs if spec.name in feeds}
        wanted = [*self._made, *self._present]
        outputs = self._session.run(feeds, wanted) if wanted else {}
        values = {name: outputs[name] for name in self._made}
        values |= self._stored | {name: feeds[name] for name in self._fed}
        presents = {name: outputs[name] for name in self._present}
        return Run(sample=number, where=where, feeds=feeds, values=values), presents


def _stored(model: ir.Model, values: Sequence[str]) -> dict[str, Array]:
    """Those values that are constants: DeBERTa's layers project a table of relative positions."""
    found = {name: model.graph.initializers.get(name) for name in values}
    return {
        name: value.const_value.numpy()
        for name, value in found.items()
        if value is not None and value.const_value is not None
    }


def step_feeds(
    specs: Sequence[TensorSpec], ids: Array, past: int, state: Mapping[str, Array]
) -> dict[str, Array]:
    """The inputs of a decoder for new tokens after `past` others, one row.

    Args:
        specs: the graph's inputs.
        ids: int64 [new].
        past: how many tokens came before.
        state: outputs of the runs before, of the encoder too, by name; and `encoder_attention_mask`.
    """
    new = len(ids)
    known: dict[str, Array] = {
        **dict.fromkeys(_IDS, ids[None]),
        "attention_mask": np.ones((1, past + new), np.int64),
        "position_ids": np.arange(past, past + new, dtype=np.int64)[None],
    }
    known |= {name: array for name, array in state.items() if name == "encoder_attention_mask"}
    if "last_hidden_state" in state:
        known[_STATES] = state["last_hidden_state"]
    feeds = {}
    for spec in specs:
        found = known.get(spec.name)
        if found is None and spec.name.startswith(_PAST):
            found = state.get(_PRESENT + spec.name.removeprefix(_PAST))
            found = _nothing_cached(spec) if found is None else found
        if found is not None:
            feeds[spec.name] = found
    return feeds


def _nothing_cached(spec: TensorSpec) -> Array:
    """An empty past: [1, heads, 0, width]."""
    sizes = [1, *(size if isinstance(size, int) else 0 for size in spec.shape[1:])]
    return np.zeros(sizes, spec.dtype)
