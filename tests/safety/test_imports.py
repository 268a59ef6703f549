"""Reading JSON, and knowing names, costs neither onnx nor numpy nor Pillow."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "PIL", "torch", "transformers")


@pytest.mark.parametrize(
    "statement",
    [
        "from onnxkit.safety import read_json, check_checkpoint, contained, printable, read_modules",
        "from onnxkit.artifact import TASKS, normalize_task, Invocation, Manifest, publish, check_target",
        "import onnxkit.safety, onnxkit.artifact",
    ],
)
def test_light_names(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {_HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_reader_of_models_needs_no_onnx_ir() -> None:
    code = (
        "import sys; from onnxkit.artifact import ModelDir, load_reference, seal;"
        "from onnxkit.safety import read_model;"
        "print([m for m in ('onnx_ir', 'onnxruntime', 'torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors() -> None:
    import onnxkit.artifact
    import onnxkit.safety

    for package in (onnxkit.artifact, onnxkit.safety):
        with pytest.raises(AttributeError, match="nothing"):
            package.nothing  # noqa: B018
        assert all(hasattr(package, name) for name in package.__all__)
