"""Load onnxkit's directories with transformers 5's own loaders.

Run by `benchmarks/interop/run`, in onnxkit's environment.

    python transformers_runtime.py WORK_DIR
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.exporters import ExportedModel

TEXTS = ["Samstag", "samedi, le premier jour", "sábado"]


def main(work: Path) -> None:
    """ExportedModel against the checkpoint in PyTorch, a padded batch."""
    batch = AutoTokenizer.from_pretrained(work / "langid")(TEXTS, padding=True, return_tensors="pt")
    checkpoint = Path("sample_models/langid-bert")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()(**batch).logits
    actual = ExportedModel.from_pretrained(work / "langid", device="cpu")(**batch).logits
    difference = float((actual - expected).abs().max())
    print(f"{'ok  ' if difference <= 1e-4 else 'FAIL'} transformers.exporters, langid: {difference:.1e}")
    sys.exit(0 if difference <= 1e-4 else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
