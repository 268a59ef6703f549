"""Starts `measure.worker` processes and talks to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import onnxkit
from onnxkit import errors
from onnxkit.errors import OnnxkitError, ResourceError
from onnxkit.runtime.library import TELEMETRY_VARIABLE

_STOP_SECONDS = 5.0
# numpy's BLAS would start a thread a core, beside ONNX Runtime's own.
_ENVIRONMENT = {TELEMETRY_VARIABLE: "1", "OPENBLAS_NUM_THREADS": "1"}
_TAIL_CHARACTERS = 500


class Child:
    """A worker process. Use it as a context manager: leaving it ends the process."""

    def __init__(self, label: str, *, module: str = "onnxkit.measure.worker") -> None:
        self.label = label
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        package_parent = str(Path(onnxkit.__file__).parents[1])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        # -P: a file in the current directory must not shadow a module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            OnnxkitError: the one that the worker raised. ResourceError: the worker was killed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._death()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            kind: type[OnnxkitError] = getattr(errors, reply["error"])
            raise kind(reply["message"])
        return reply

    def __enter__(self) -> Child:
        """Return the child itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: politely when all went well, at once otherwise."""
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def _death(self) -> Exception:
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode("utf-8", errors="replace")[-_TAIL_CHARACTERS:]
        if code in (-2, 130):  # Ctrl-C reached the child first
            raise KeyboardInterrupt
        if code == -9:
            return ResourceError(f"{self.label}: the measuring process was killed, most likely out of memory")
        return RuntimeError(f"{self.label}: the measuring process ended with code {code}: {tail}")
