"""onnxkit: export, optimize, quantize, run and profile Transformers models on ONNX Runtime."""

from __future__ import annotations

TYPE_CHECKING = False  # that of `typing`, which would be most of what is imported before a signal is handled
if TYPE_CHECKING:
    from onnxkit.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> object:
    """Import `Predictor` only when it is asked for, so that `import onnxkit` stays free."""
    if name == "Predictor":
        from onnxkit.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'onnxkit' has no attribute {name!r}")
