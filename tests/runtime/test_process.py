"""What only a process of its own shows: imports, telemetry, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A chain of large MatMuls: one run takes minutes, one node a few milliseconds.
LONG_RUN = """
import sys
import numpy as np
from onnx import TensorProto, helper
from onnxkit.runtime import RuntimeOptions, open_session

nodes = [helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(20000)]
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [256, 256])
graph = helper.make_graph(nodes, "g", [value("v0"), value("w")], [value("v20000")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
session = open_session(model.SerializeToString(), RuntimeOptions(threads=1, graph_optimization="none"))
print("running", flush=True)
try:
    session.run({"v0": np.zeros((256, 256), np.float32), "w": np.zeros((256, 256), np.float32)})
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
        _python(LONG_RUN), stdout=subprocess.PIPE, text=True, env=_environment(tmp_path)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.3)
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    answer = process.stdout.readline()
    waited = time.perf_counter() - sent
    process.kill() if process.poll() is None and answer != "interrupted\n" else None
    assert answer == "interrupted\n"
    assert process.wait(timeout=30) == 130
    assert waited < 2.0  # 0.1 s on an idle machine; tests share theirs


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
