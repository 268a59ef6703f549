"""The one place that imports ONNX Runtime and creates its sessions.

Importing this package imports neither onnxruntime nor numpy (`--help` must stay light); the
first session does, after telemetry has been switched off in the environment.
"""

from __future__ import annotations

from onnxkit.runtime.binding import Binding, Buffer, array_of, bits_dtype
from onnxkit.runtime.ceiling import Ceiling, opset_ceiling
from onnxkit.runtime.library import import_onnxruntime
from onnxkit.runtime.options import GraphOptimization, RuntimeOptions, TensorSpec
from onnxkit.runtime.providers import provider_name
from onnxkit.runtime.session import Placement, Session, open_session

__all__ = [
    "Binding",
    "Buffer",
    "Ceiling",
    "GraphOptimization",
    "Placement",
    "RuntimeOptions",
    "Session",
    "TensorSpec",
    "array_of",
    "bits_dtype",
    "import_onnxruntime",
    "open_session",
    "opset_ceiling",
    "provider_name",
]
