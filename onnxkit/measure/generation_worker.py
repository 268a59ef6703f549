"""The child process that loads a model which generates and times prompts and decoding steps on command.

It is `measure.worker` with other shapes: `Workload` instead of `Shape`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit import machine
from onnxkit.artifact import ModelDir
from onnxkit.generate import Engine
from onnxkit.generate.decoder import Batch
from onnxkit.measure.cases import Shape, make_feeds, ten_seconds
from onnxkit.measure.generation_profile import STEPS, Workload
from onnxkit.measure.geometry import random_ids
from onnxkit.measure.latency import DEFAULT_SECONDS, MOST_RUNS
from onnxkit.measure.memory_speed import read_bandwidth
from onnxkit.measure.operators import keep_trace, operator_table, read_trace
from onnxkit.measure.settings import session_facts
from onnxkit.measure.worker import Reply, Worker, answer, geometry_from_plain
from onnxkit.report import to_plain
from onnxkit.runtime import RuntimeOptions

_OPERATOR_RUNS = 5
_ENCODER_TOKENS = 128


class GenerationWorker(Worker):
    """One generating model; what is timed is `call`, and `reset` goes before it, untimed."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.reset: Callable[[], object] = lambda: None
        self.one_step: Callable[[], object] = lambda: None
        self.steps = 1

    def open(self, *, model: str, options: Mapping[str, Any], geometry: Mapping[str, Any]) -> Reply:
        """Load all graphs; besides `Worker.open`'s answer, what the cache takes."""
        self.path, self.options = Path(model), RuntimeOptions(**options)
        self.known = geometry_from_plain(geometry)
        before = machine.resident_bytes()
        engine = self.engine = Engine.open(ModelDir.open(self.path), self.options)
        engine.decoder.pages.now()  # what a run does by itself after a while
        self.known = replace(self.known, vocab_size=self.known.vocab_size or engine.vocabulary)
        facts = session_facts(engine.decoder.session)
        if engine.encoder is not None:
            facts = replace(facts, load_ms=facts.load_ms + engine.encoder.session.load_ms)
        return {
            "session": to_plain(facts),
            "start_memory_bytes": before,
            "cache_bytes_per_token": engine.cache_bytes_per_token,
            "shared_cache": engine.decoder.roles.shared,
        }

    def shape(self, *, shape: Mapping[str, Any], seed: int, warmup: int) -> Reply:
        """Make ready what a workload times, run it once apart, then warm up."""
        workload = Workload(**shape)
        tokens = self._prepare(self._opened_engine(), workload, seed)
        first = self._timed()
        for _ in range(warmup if workload.phase == "prefill" else 1):
            self._timed()
        return {"first_run_ms": first, "tokens": tokens}

    def burst(self, *, runs: int | None, seconds: float | None, fewest: int) -> Reply:
        """Run again and again, as `latency.sample` does, the resets left out of the times."""
        limit = MOST_RUNS if runs is None else runs
        budget = 1e3 * (DEFAULT_SECONDS if seconds is None else seconds)
        times: list[float] = []
        spent = 0.0
        while len(times) < limit and (runs is not None or len(times) < fewest or spent < budget):
            times.append(self._timed())
            spent += times[-1] * self.steps
        return {"times": times}

    def operators(self, *, shapes: list[Mapping[str, Any]], seed: int, trace: str | None) -> Reply:
        """Run the last decoding workload under ONNX Runtime's profiler: one table, of one step."""
        self.engine, self.call, self.reset = None, lambda: None, lambda: None
        workloads = [Workload(**shape) for shape in shapes]
        last = max((each for each in workloads if each.phase == "decode"), key=lambda each: each.tokens)
        with tempfile.TemporaryDirectory(prefix="onnxkit-") as folder:
            options = replace(self.options, profile_prefix=Path(folder) / "trace")
            engine = Engine.open(ModelDir.open(self.path), options)
            self._prepare(engine, last, seed)
            self.reset()
            for _ in range(1 + _OPERATOR_RUNS):
                self.one_step()
            file = engine.decoder.session.end_profiling()
            keep_trace(file, trace)
            table = operator_table(read_trace(file), first=-_OPERATOR_RUNS)
        return {"tables": to_plain([table if each == last else () for each in workloads])}

    def bandwidth(self, *, threads: int) -> Reply:
        """Measure the machine's memory."""
        return {"bytes_per_s": read_bandwidth(threads)}

    def _timed(self) -> float:
        """Milliseconds of a prompt, or of a step."""
        self.reset()
        started = time.perf_counter()
        self.call()
        return (time.perf_counter() - started) * 1e3 / self.steps

    def _prepare(self, engine: Engine, workload: Workload, seed: int) -> int | None:
        """Set `reset` and `call`; return how many tokens a run computes, None for an encoder of audio."""
        rng = np.random.default_rng([seed, workload.tokens])
        if engine.encoder is not None and workload.phase == "prefill":
            return self._prepare_encoder(engine, workload, rng)
        cross = None
        if engine.encoder is not None:
            length = min(_ENCODER_TOKENS, self.known.positions or _ENCODER_TOKENS)
            cross = engine.encoder.run(self._encoder_rows(engine, workload.batch, length, rng))
        prompts = list(random_ids(self.known, (workload.batch, workload.tokens), rng))
        announced = (workload.batch, workload.tokens + STEPS + 1)
        batch = engine.decoder.batch(workload.batch, announced=announced, cross=cross)
        if workload.phase == "prefill":
            self.steps = 1
            self.reset = lambda: batch.truncate(0)
            self.call = lambda: _fill(batch, prompts)
            return workload.batch * workload.tokens
        self._prepare_steps(batch, prompts)
        return workload.batch

    def _prepare_steps(self, batch: Batch, prompts: list[np.ndarray[Any, Any]]) -> None:
        depth = len(prompts[0])
        first = _fill(batch, prompts)
        chosen = first

        def rewind() -> None:
            nonlocal chosen
            batch.truncate(depth)
            chosen = first

        def step() -> None:
            nonlocal chosen
            chosen = np.argmax(batch.step(chosen), axis=-1)

        def steps() -> None:
            for _ in range(STEPS):
                step()

        self.steps, self.reset, self.call, self.one_step = STEPS, rewind, steps, step

    def _prepare_encoder(self, engine: Engine, workload: Workload, rng: np.random.Generator) -> int | None:
        """An encoder's input of `tokens` positions and the decoder's first step after it."""
        rows = self._encoder_rows(engine, workload.batch, workload.tokens, rng)
        start = np.zeros((workload.batch, 1), np.int64)
        encoder = engine.encoder
        assert encoder is not None

        def first_token() -> None:
            cross = encoder.run(rows)
            batch = engine.decoder.batch(workload.batch, announced=(workload.batch, 2), cross=cross)
            _fill(batch, list(start))

        self.steps, self.reset, self.call = 1, lambda: None, first_token
        return workload.batch * workload.tokens if "input_ids" in rows[0] else None

    def _encoder_rows(
        self, engine: Engine, batch: int, tokens: int, rng: np.random.Generator
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        assert engine.encoder is not None
        specs = engine.encoder.session.inputs
        shape = Shape(batch=batch, sequence=ten_seconds(specs) or tokens)
        feeds = make_feeds(specs, self.known, shape, rng)
        return [{name: array[row] for name, array in feeds.items()} for row in range(batch)]

    def _opened_engine(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("open comes first")
        return self.engine


def _fill(batch: Batch, prompts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Compute the prompts and choose each row's first token, int64 [rows]."""
    logits = batch.extend(prompts[0]) if len(prompts) == 1 else batch.fill(prompts)
    return np.asarray(np.argmax(logits, axis=-1), dtype=np.int64).reshape(len(prompts))


if __name__ == "__main__":
    try:
        code = answer(GenerationWorker())
    except (KeyboardInterrupt, BrokenPipeError):
        code = 130
    # Neither threads of ONNX Runtime nor a closed pipe may hold up the end.
    os._exit(code)
