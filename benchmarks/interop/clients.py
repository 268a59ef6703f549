"""Load onnxkit's directories in optimum-onnx, sentence-transformers, OpenVINO and plain onnxruntime.

Run by `benchmarks/interop/run` in an environment of its own: these clients need transformers 4.

    python clients.py WORK_DIR MINILM_CHECKPOINT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")

import numpy as np
import onnxruntime as ort
import openvino
import torch
from optimum.onnxruntime import (
    ORTModelForFeatureExtraction,
    ORTModelForImageClassification,
    ORTModelForSequenceClassification,
)
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, pipeline

SENTENCES = [
    "The file was saved before the machine went down.",
    "Short.",
    "Two cats sat on the wall and watched the rain fall over the harbour, all afternoon long.",
]


def check(what: str, difference: float, tolerance: float = 1e-4) -> None:
    """Print one line, and stop the script where the difference is too large."""
    print(f"{'ok  ' if difference <= tolerance else 'FAIL'} {what}: largest difference {difference:.1e}")
    if not difference <= tolerance:
        sys.exit(1)


def optimum_features(work: Path, checkpoint: Path) -> None:
    """ORTModelForFeatureExtraction against PyTorch, a padded batch."""
    directory = work / "minilm-features"
    batch = AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(checkpoint).eval()(**batch).last_hidden_state
    actual = ORTModelForFeatureExtraction.from_pretrained(directory)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    check("optimum-onnx, feature-extraction", float(((actual - expected) * mask).abs().max()))


def optimum_classifiers(work: Path) -> None:
    """Transformers' pipelines over optimum's ORT models."""
    text = ORTModelForSequenceClassification.from_pretrained(work / "langid")
    classify = pipeline(
        "text-classification", model=text, tokenizer=AutoTokenizer.from_pretrained(work / "langid")
    )
    print("ok   optimum-onnx, text-classification:", classify(["Samstag", "samedi"]))
    image = ORTModelForImageClassification.from_pretrained(work / "digits")
    processor = AutoImageProcessor.from_pretrained(work / "digits", use_fast=False)
    pixels = processor(Image.new("RGB", (8, 8), "white"), return_tensors="pt")
    print("ok   optimum-onnx, image-classification:", tuple(image(**pixels).logits.shape))


def sentence_transformers(work: Path, checkpoint: Path) -> None:
    """SentenceTransformer(backend="onnx") against its own PyTorch backend."""
    expected = SentenceTransformer(str(checkpoint)).encode(SENTENCES)
    for name in ("minilm-sentence", "minilm-features"):
        model = SentenceTransformer(
            str(work / name), backend="onnx", model_kwargs={"file_name": "model.onnx"}
        )
        actual = model.encode(SENTENCES)
        check(f"sentence-transformers, {name}", float(np.abs(actual - expected).max()))


def openvino_features(work: Path, checkpoint: Path) -> None:
    """OpenVINO on the CPU, a left-padded batch, against PyTorch."""
    tokenizer = AutoTokenizer.from_pretrained(work / "minilm-features", padding_side="left")
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(checkpoint).eval()(**batch).last_hidden_state.numpy()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(work / "minilm-features" / "model.onnx", "CPU", settings)
    actual = model({name: tensor.numpy() for name, tensor in batch.items()})[0]
    mask = batch["attention_mask"].numpy()[..., None]
    check(f"openvino {openvino.__version__.split('-')[0]}", float(np.abs((actual - expected) * mask).max()))


def openvino_quantized(work: Path) -> None:
    """Every scheme's file on OpenVINO, a padded batch, against ONNX Runtime on the same file.

    Activations are rounded to 8 bits, where the last digit of a sum moves a value by a step of the grid.
    """
    batch = AutoTokenizer.from_pretrained(work / "langid")(SENTENCES, padding=True, return_tensors="np")
    for directory in sorted(work.glob("langid-*")):
        file = directory / "model.onnx"
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        feeds = {each.name: batch[each.name].astype(np.int64) for each in session.get_inputs()}
        expected = session.run(None, feeds)[0]
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        actual = openvino.Core().compile_model(file, "CPU", settings)(feeds)[0]
        check(f"openvino, {directory.name}", float(np.abs(actual - expected).max()), 0.1)


def plain_runtime(work: Path) -> None:
    """A bare InferenceSession."""
    for name in ("minilm-features", "minilm-sentence", "langid", "digits"):
        session = ort.InferenceSession(work / name / "model.onnx", providers=["CPUExecutionProvider"])
        print(
            f"ok   onnxruntime {ort.__version__}, {name}:",
            [i.name for i in session.get_inputs()],
            [o.name for o in session.get_outputs()],
        )


if __name__ == "__main__":
    work_dir, minilm = Path(sys.argv[1]), Path(sys.argv[2])
    plain_runtime(work_dir)
    optimum_features(work_dir, minilm)
    optimum_classifiers(work_dir)
    sentence_transformers(work_dir, minilm)
    openvino_features(work_dir, minilm)
    openvino_quantized(work_dir)
