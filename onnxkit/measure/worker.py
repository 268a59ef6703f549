"""A child process that loads one model and times it on command.

`python -P -m onnxkit.measure.worker` reads one JSON object a line from stdin and answers each with
one on stdout. Memory is the child's own, so a peak belongs to one model; the parent lets several
children take turns. It imports numpy, onnxruntime and little else.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit import machine
from onnxkit.errors import InputError, OnnxkitError
from onnxkit.measure.cases import Shape, make_feeds
from onnxkit.measure.geometry import Geometry
from onnxkit.measure.latency import sample
from onnxkit.measure.operators import keep_trace, operator_table, read_trace
from onnxkit.measure.settings import session_facts
from onnxkit.report import to_plain
from onnxkit.runtime import RuntimeOptions, Session, open_session

Reply = dict[str, Any]
_OPERATOR_RUNS = 5


class Worker:
    """One model, its session, and the feeds that it is timed on."""

    def __init__(self) -> None:
        self.path = Path()
        self.options = RuntimeOptions()
        self.known = Geometry()
        self.inputs: Mapping[str, np.ndarray[Any, Any]] | None = None
        self.session: Session | None = None
        self.call: Callable[[], object] = lambda: None

    def open(self, *, model: str, options: Mapping[str, Any], geometry: Mapping[str, Any]) -> Reply:
        """Load the model; `start_memory_bytes` is what the process held before."""
        self.path, self.options = Path(model), RuntimeOptions(**options)
        self.known = geometry_from_plain(geometry)
        before = machine.resident_bytes()
        self.session = open_session(self.path, self.options)
        return {"session": to_plain(session_facts(self.session)), "start_memory_bytes": before}

    def read(self, *, inputs: str) -> Reply:
        """Run on the arrays of an .npz file from now on, whatever the shapes are."""
        from onnxkit.safety import read_npz

        self.inputs = read_npz(Path(inputs))
        return {}

    def shape(self, *, shape: Mapping[str, Any], seed: int, warmup: int) -> Reply:
        """Make feeds of a shape, run them once apart, then warm up."""
        session = self._opened()
        feeds = self._feeds(session, shape, seed)
        self.call = partial(session.run, feeds)
        try:
            first = sample(self.call, runs=1)[0]
        except InputError as error:
            if self.inputs is not None:
                raise
            from onnxkit.measure.made_up import misfit

            raise misfit(error, "--inputs") from error
        for _ in range(warmup):
            self.call()
        mask = feeds.get("attention_mask")
        ids = feeds.get("input_ids")
        tokens = int(np.sum(mask)) if mask is not None else int(ids.size) if ids is not None else None
        return {"first_run_ms": first, "tokens": tokens}

    def burst(self, *, runs: int | None, seconds: float | None, fewest: int) -> Reply:
        """Run again and again; see `latency.sample`."""
        return {"times": sample(self.call, runs=runs, seconds=seconds, fewest=fewest)}

    def usage(self) -> Reply:
        """Return the peak memory so far and the CPU seconds of this process."""
        return {"peak_memory_bytes": machine.peak_memory_bytes(), "cpu_seconds": time.process_time()}

    def operators(self, *, shapes: list[Mapping[str, Any]], seed: int, trace: str | None) -> Reply:
        """Run every shape under ONNX Runtime's profiler, in a session of its own."""
        self.session, self.call = None, lambda: None
        with tempfile.TemporaryDirectory(prefix="onnxkit-") as folder:
            options = replace(self.options, profile_prefix=Path(folder) / "trace")
            session = open_session(self.path, options)
            for shape in shapes:
                feeds = self._feeds(session, shape, seed)
                for _ in range(1 + _OPERATOR_RUNS):
                    session.run(feeds)
            file = session.end_profiling()
            keep_trace(file, trace)
            events = read_trace(file)
        step = 1 + _OPERATOR_RUNS
        tables = [operator_table(events, first=i * step + 1, last=(i + 1) * step) for i in range(len(shapes))]
        return {"tables": to_plain(tables)}

    def _feeds(
        self, session: Session, shape: Mapping[str, Any], seed: int
    ) -> Mapping[str, np.ndarray[Any, Any]]:
        if self.inputs is not None:
            return self.inputs
        return make_feeds(session.inputs, self.known, _shape(shape), np.random.default_rng(seed))

    def _opened(self) -> Session:
        if self.session is None:
            raise RuntimeError("open comes first")
        return self.session


def geometry_from_plain(plain: Mapping[str, Any]) -> Geometry:
    """Rebuild a Geometry that went through JSON."""
    values = dict(plain)
    values["special_ids"] = frozenset(values["special_ids"])
    values["image_size"] = tuple(values["image_size"]) if values["image_size"] else None
    return Geometry(**values)


def _shape(plain: Mapping[str, Any]) -> Shape:
    values = dict(plain)
    values["image"] = tuple(values["image"]) if values["image"] else None
    return Shape(**values)


def answer(worker: Worker) -> int:
    """Answer commands until stdin ends."""
    # Whatever a library prints must not get between the answers.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = getattr(worker, command.pop("do"))(**command)
        except OnnxkitError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            reply = {"error": "ResourceError", "message": f"{worker.path}: out of memory"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()
    return 0


if __name__ == "__main__":
    try:
        code = answer(Worker())
    except (KeyboardInterrupt, BrokenPipeError):
        code = 130
    # Neither threads of ONNX Runtime nor a closed pipe may hold up the end.
    os._exit(code)
