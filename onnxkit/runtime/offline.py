"""ONNX Runtime's own graph optimizations, written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxkit.errors import InputError
from onnxkit.runtime.failures import load_failure
from onnxkit.runtime.library import import_onnxruntime
from onnxkit.runtime.options import GraphOptimization
from onnxkit.runtime.session import session_options

# A protobuf file ends at 2 GB; above this, ONNX Runtime is told to put the weights beside it.
_SIDECAR_ABOVE_BYTES = 1 << 30


def optimize_offline(
    model: Path, out: Path, level: GraphOptimization = "basic", disabled: Sequence[str] = ()
) -> None:
    """Write `model` as ONNX Runtime rewrites it for the CPU at `level`.

    Args:
        model: the ONNX file; external data beside it.
        out: the file to write; weights over 1 GB go into `<out>.data`.
        level: "basic" keeps standard operators, "extended" fuses into ONNX Runtime's own, "all"
            also chooses layouts for this very CPU (such a file should not travel).
        disabled: names of optimizers to leave out ("ConstantFolding").

    Raises:
        InputError: ONNX Runtime refuses the file. ResourceError: not enough memory or disk.
    """
    ort = import_onnxruntime()
    if not model.is_file():
        raise InputError(f"{model}: no such file")
    options = session_options(ort, threads=1, level=level)
    options.optimized_model_filepath = str(out)
    if _weight_bytes(model) > _SIDECAR_ABOVE_BYTES:
        entry = options.add_session_config_entry
        entry("session.optimized_model_external_initializers_file_name", f"{out.name}.data")
        entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(
            str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=set(disabled),
            enable_fallback=0,
        )
    except Exception as error:  # pybind classes without a common base
        raise load_failure(error, str(model)) from error


def _weight_bytes(model: Path) -> int:
    """Return the size of the model file and of the usual sidecars, in bytes."""
    sidecars = (model.with_name(f"{model.name}{suffix}") for suffix in (".data", "_data"))
    return model.stat().st_size + sum(file.stat().st_size for file in sidecars if file.is_file())
