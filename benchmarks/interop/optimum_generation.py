"""Generate with onnxkit's directories in optimum-onnx, and compare with transformers.

Run by `benchmarks/interop/run` in an environment of its own: optimum-onnx needs transformers 4.

    python optimum_generation.py causal|seq2seq CHECKPOINT DIR
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

PROMPTS = {
    "causal": ["import os\nfor name in os.listdir(", "def main(", "The first thing that a programmer learns"],
    "seq2seq": ["seven", "nine hundred and ninety-nine thousand four hundred and five", "twelve thousand"],
}
CLASSES = {
    "causal": (AutoModelForCausalLM, ORTModelForCausalLM),
    "seq2seq": (AutoModelForSeq2SeqLM, ORTModelForSeq2SeqLM),
}
NEW = 24


def generate(model: Any, tokenizer: Any, prompts: list[str], **settings: Any) -> list[list[int]]:
    """Ids of every row, prompt and padding at the end cut off where there is any."""
    batch = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id, **settings)
    start = 0 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
    return [row[start:].tolist() for row in ids]


def main(kind: str, checkpoint: Path, directory: Path) -> None:
    """Greedily and with beams, a batch of unequal prompts and every prompt alone."""
    torch_class, ort_class = CLASSES[kind]
    # By its file: transformers 4 does not understand every tokenizer_config.json of transformers 5.
    names = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        pad_token=names.get("pad_token", names["eos_token"]),
        eos_token=names["eos_token"],
        padding_side="left" if kind == "causal" else "right",
    )
    reference = torch_class.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    actual = ort_class.from_pretrained(directory)
    cases = [(PROMPTS[kind], "a batch of unequal prompts"), *(([one], repr(one)) for one in PROMPTS[kind])]
    for prompts, what in cases:
        for settings in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
            expected = generate(reference, tokenizer, prompts, **settings)
            found = generate(actual, tokenizer, prompts, **settings)
            beams = f", {settings['num_beams']} beams" if "num_beams" in settings else ""
            if found != expected:
                print(f"FAIL optimum-onnx, {directory.name}, {what}{beams}: {found} instead of {expected}")
                sys.exit(1)
            print(f"ok   optimum-onnx, {directory.name}: same tokens as transformers, {what}{beams}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
