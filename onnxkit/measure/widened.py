"""Sessions for checks, on machines whose provider has no bfloat16 kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxkit.runtime import RuntimeOptions, Session, open_session


def open_for_check(path: Path, runtime: RuntimeOptions | None = None, *, widen: bool) -> Session:
    """Open a graph as it is or, with `widen`, as `open_widened` does: no CPU kernel takes bfloat16.

    Raises:
        InputError, EnvironmentProblem, ResourceError: as `open_session`.
    """
    return open_widened(path, runtime) if widen else open_session(path, runtime)


def open_widened(path: Path, runtime: RuntimeOptions | None = None) -> Session:
    """Open a copy of a graph whose bfloat16 values are cast to float32, exactly.

    Raises:
        InputError, EnvironmentProblem, ResourceError: as `open_session`.
    """
    from onnxkit.graph.files import load_model, save_model
    from onnxkit.graph.upcast import bf16_to_fp32

    with tempfile.TemporaryDirectory(prefix="onnxkit-") as scratch:
        model = load_model(path)
        bf16_to_fp32(model)
        save_model(model, Path(scratch) / path.name)
        return open_session(Path(scratch) / path.name, runtime)


def holds_bfloat16(path: Path) -> bool:
    """Whether a graph has weights in bfloat16."""
    import onnx

    from onnxkit.safety.onnx_files import read_model

    weights = read_model(path).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in weights)
