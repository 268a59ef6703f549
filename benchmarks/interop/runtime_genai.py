"""Generate with onnxkit's directories in onnxruntime-genai, and compare with transformers.

Run by `benchmarks/interop/run` in an environment with onnxruntime-genai, torch and transformers.

    python runtime_genai.py CHECKPOINT DIR…

genai pads the shorter prompts of a batch at the right and chooses each row's first token from its last
real position; the new tokens follow after the padding, which stays masked. Our graphs read masks and
positions as they are given, so rows of a batch equal the same prompts alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np
import onnxruntime_genai as genai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["import os\nfor name in os.listdir(", "def main(", "The first thing that a programmer learns"]
NEW = 24


def references(checkpoint: Path) -> list[list[int]]:
    """New tokens of every prompt alone, greedily, in PyTorch."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    for prompt in PROMPTS:
        batch = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            settings = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
            ids = model.generate(**batch, **settings, pad_token_id=0)
        found.append(ids[0, batch["input_ids"].shape[1] :].tolist())
    return found


def generated(directory: Path) -> tuple[list[list[int]], list[list[int]]]:
    """New tokens of every prompt: alone, and all in one batch."""
    model = genai.Model(str(directory))
    tokenizer = genai.Tokenizer(model)
    alone = [continuation(model, np.array([tokenizer.encode(prompt)]))[0] for prompt in PROMPTS]
    return alone, continuation(model, tokenizer.encode_batch(PROMPTS).as_numpy())


def continuation(model: genai.Model, ids: np.ndarray) -> list[list[int]]:
    """New tokens of a batch of padded prompts."""
    batch, length = ids.shape
    params = genai.GeneratorParams(model)
    params.set_search_options(
        batch_size=batch, max_length=length + NEW, min_length=length + NEW, do_sample=False
    )
    generator = genai.Generator(model, params)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[length:].tolist() for row in range(batch)]


def main(checkpoint: Path, directories: list[Path]) -> None:
    """Every directory alone and in a batch; exits with 1 at the first difference."""
    expected = references(checkpoint)
    for directory in directories:
        alone, together = generated(directory)
        for what, found in (("one by one", alone), ("a batch of unequal prompts", together)):
            if found != expected:
                print(f"FAIL onnxruntime-genai, {directory.name}, {what}: {found} instead of {expected}")
                sys.exit(1)
            print(f"ok   onnxruntime-genai {genai.__version__}, {directory.name}: {NEW} tokens, {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
