"""What only a process of its own shows: imports, telemetry, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.patience import WAIT_S

ROOT = Path(__file__).parents[2]

# A loop of small nodes: a run that nothing ends from within.
ENDLESS_RUN = """
import sys
import numpy as np
from onnxkit.runtime import RuntimeOptions, open_session
from tests.endless import endless_model

session = open_session(endless_model().SerializeToString(), RuntimeOptions(threads=1))
try:
    print("running", flush=True)
    session.run({"x": np.zeros(1, np.float32)})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
print("finished", flush=True)
"""


def _python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(ROOT)}


def test_ctrl_c_ends_a_run(tmp_path: Path) -> None:
    process = subprocess.Popen(
        _python(ENDLESS_RUN), stdout=subprocess.PIPE, text=True, env=_environment(tmp_path)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.3)  # for the run to begin
    process.send_signal(signal.SIGINT)
    try:
        said, _ = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "interrupted\n")


def test_importing_the_package_imports_no_runtime(tmp_path: Path) -> None:
    script = (
        "import sys, onnxkit.runtime, onnxkit.machine, onnxkit.measure\n"
        "print([m for m in ('onnxruntime', 'numpy', 'onnx', 'torch', 'onnx_ir') if m in sys.modules])"
    )
    done = subprocess.run(
        _python(script), capture_output=True, text=True, check=True, env=_environment(tmp_path)
    )
    assert done.stdout.strip() == "[]"


def test_no_telemetry_file(tmp_path: Path) -> None:
    """Importing ONNX Runtime without the variable writes a device id below ~/.cache."""
    script = "from onnxkit.runtime import opset_ceiling; print(opset_ceiling().onnxruntime)"
    done = subprocess.run(
        _python(script), capture_output=True, text=True, check=True, env=_environment(tmp_path)
    )
    assert done.stdout.strip()
    assert done.stderr == ""
    assert list(tmp_path.rglob("*")) == []


def test_a_missing_onnxruntime_is_said_with_the_pip_line(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from onnxkit.runtime import opset_ceiling\n"
        "try: opset_ceiling()\n"
        "except Exception as error: print(error.code, error)"
    )
    done = subprocess.run(
        _python(script), capture_output=True, text=True, check=True, env=_environment(tmp_path)
    )
    assert done.stdout.startswith("4 onnxruntime cannot be imported")
    assert "pip install onnxruntime-gpu" in done.stdout
