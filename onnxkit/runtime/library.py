"""Imports ONNX Runtime: telemetry off before the import, its own log silent.

ONNX Runtime 1.29 and later sends telemetry on Linux unless this variable is set before the
import; the call that disables it afterwards comes too late.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import metadata
from types import ModuleType

from onnxkit.errors import EnvironmentProblem

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
# Nothing below "fatal": what ONNX Runtime would log as an error, it raises as well, and the
# user gets it as one line.
LOG_FATAL = 4


def import_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`; raise EnvironmentProblem when it is missing or broken."""
    os.environ[TELEMETRY_VARIABLE] = "1"
    first = "onnxruntime" not in sys.modules
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem(_import_advice(error)) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder: two wheels, one uninstalled
        raise EnvironmentProblem(_import_advice(None))
    if first:
        onnxruntime.set_default_logger_severity(LOG_FATAL)
    module: ModuleType = onnxruntime
    return module


def installed_wheels() -> dict[str, str]:
    """Return the installed ONNX Runtime distributions and their versions, without importing."""
    found: dict[str, str] = {}
    for name in WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def library_version() -> str:
    """Return the version of the ONNX Runtime that is really imported."""
    version: str = import_onnxruntime().__version__
    return version


def _import_advice(error: ImportError | None) -> str:
    wheels = installed_wheels()
    if not wheels:
        return "onnxruntime is not installed: pip install onnxruntime-gpu (or onnxruntime without a GPU)"
    names = " and ".join(wheels)
    reason = f" ({error})" if error else ""
    return (
        f"onnxruntime cannot be imported{reason}, although {names} is installed: "
        f"pip uninstall -y {' '.join(wheels)} && pip install onnxruntime-gpu"
    )
