"""What calibrating takes of memory: measured in a process of its own, by the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.quantize.graphs import mlp

WIDTH, INNER, TOKENS = 256, 2048, 512

CHILD = """
import sys
from pathlib import Path

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.graph.files import load_model
from onnxkit.machine import peak_memory_bytes
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.ranges import calibrate
from onnxkit.quantize.calibration.data import read_data
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.rewrite import prepare
from onnxkit.quantize.calibration.runs import Graph
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.select import select
from onnxkit.runtime import RuntimeOptions

folder, count, calibrator = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
model = ModelDir.open(folder)
path = folder / "model.onnx"
graph = Graph(component="model", model=prepare(load_model(path), str(path)), path=path)
targets = select(graph.model, SCHEMES["int8-static"], QuantizeOptions(include=(".",))).targets
data = read_data("random", model, most=count, columns={}, seed=0, task=None)
calibrate(
    graph, targets, data, calibrator=calibrator, scratch=folder / "scratch",
    runtime=RuntimeOptions(threads=1), progress=Progress(),
)
print(peak_memory_bytes() / 2**20)  # getrusage would count what the parent had at its fork
"""


def peak_mb(folder: Path, samples: int, calibrator: str) -> float:
    """Peak resident memory, MB, of calibrating on random samples of 512 tokens."""
    arguments = [sys.executable, "-c", CHILD, str(folder), str(samples), calibrator]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    made = mlp(width=WIDTH, inner=INNER)
    for value in made.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = TOKENS
    onnx.save(made, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"model_type": "mlp"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "mse"])
def test_memory_does_not_depend_on_the_number_of_samples(wide, calibrator):
    few, many = (peak_mb(wide, samples, calibrator) for samples in (8, 512))
    assert many == pytest.approx(few, rel=0.05)
    model = (wide / "model.onnx").stat().st_size
    activations = 4 * TOKENS * (2 * WIDTH + 3 * INNER)
    assert many < 350 + (3 * model + 4 * activations) / 2**20
    assert np.isfinite(many)
