"""``pydoc-gpt2``: continues text in the manner of Python's documentation, on which it was trained."""

from __future__ import annotations

import ast
import json
import math
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
)

from sample_models.common import (
    SEED,
    Card,
    Result,
    Row,
    Side,
    Splits,
    batches,
    chunks,
    conclude,
    fit,
    side,
    store,
)

POSITIONS, VOCABULARY = 256, 2048
STEPS, BATCH, RATE = 2600, 16, 2e-3
CALIBRATION, EVALUATION = 128, 512
CALIBRATION_SHARE, EVALUATION_SHARE = 0.1, 0.14
SHORTEST, LONGEST = 80, 600  # characters of a sample
END = "<|endoftext|>"
# Not text for readers of the library, or not in every installation of it.
SKIPPED = {"__pycache__", "config", "ensurepip", "idlelib", "lib2to3", "site", "test", "tests", "turtledemo"}

CARD = Card(
    name="pydoc-gpt2",
    summary="Text generation in the manner of Python's documentation.",
    pipeline_tag="text-generation",
    licence="psf-2.0",
    languages=("en",),
    data=f"""The documentation strings of the Python standard library, read from its source, and the
        language topics of `pydoc` (PSF licence v2), cut at paragraphs into samples of up to {LONGEST}
        characters. A whole module or topic goes to the training, calibration or evaluation set, so the
        evaluation set is of unseen modules. The text depends a little on Python's version; the stored
        sets are of Python {sys.version_info.major}.{sys.version_info.minor}.""",
    architecture=f"""`GPT2LMHeadModel`, 4 layers of width 128, 4 heads, {POSITIONS} positions; byte-level
        BPE of {VOCABULARY} tokens trained on the training set. The padding token is the end-of-text
        token.""",
    training=f"""{STEPS} steps of batch {BATCH}, AdamW (peak rate {RATE:g}, cosine with warm-up), padded
        batches with an attention mask.""",
    limits="""It has the words and the layout of documentation, but what it says is not true. The
        perplexity is per token of its own vocabulary, over each text's tokens after the first, so compare
        it only with that of variants of this model.""",
)


def _docstrings() -> Iterator[tuple[str, str]]:
    """Yield every documentation string of the standard library with its top-level module."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(part.partition("-")[0] for part in parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield parts[0], ast.get_docstring(node) or ""


def _pieces(text: str) -> Iterator[str]:
    """Cut a text at its paragraphs into samples of at most ``LONGEST`` characters."""
    piece = ""
    for paragraph in (*text.split("\n\n"), None):
        if paragraph is not None and len(piece) + len(paragraph) + 2 <= LONGEST:
            piece = f"{piece}\n\n{paragraph}" if piece else paragraph
            continue
        if SHORTEST <= len(piece.strip()) <= LONGEST:
            yield piece.strip("\n")
        piece = paragraph or ""


@cache
def _texts() -> dict[Side, list[str]]:
    """Return the samples of each set, sorted; one that two sets share is left to the smaller one."""
    found: dict[Side, set[str]] = {"train": set(), "calibration": set(), "evaluation": set()}
    for module, text in (*_docstrings(), *((f"topic {name}", text) for name, text in sorted(topics.items()))):
        found[side(module, CALIBRATION_SHARE, EVALUATION_SHARE)].update(_pieces(text))
    found["calibration"] -= found["evaluation"]
    found["train"] -= found["evaluation"] | found["calibration"]
    return {name: sorted(texts) for name, texts in found.items()}


def splits() -> Splits:
    """Return the training, calibration and evaluation sets, the same ones on every call."""
    texts, rng = _texts(), random.Random(SEED)
    chosen = (
        texts["train"],
        rng.sample(texts["calibration"], CALIBRATION),
        rng.sample(texts["evaluation"], EVALUATION),
    )
    return Splits(*([{"text": text} for text in part] for part in chosen))


def build_tokenizer(texts: Sequence[str]) -> GPT2Tokenizer:
    """Train a byte-level BPE vocabulary as GPT-2's."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    model = json.loads(trainer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]  # annotated as list[str], but pairs are meant
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges, pad_token=END, model_max_length=POSITIONS)


def _batches(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Iterator[dict[str, Tensor]]:
    """Yield padded training batches; the end of a text is learnt, the padding is not."""
    for batch in batches(rows, BATCH, key=lambda row: len(row["text"])):
        encoded = _encode(tokenizer, [row["text"] + END for row in batch])
        yield {**encoded, "labels": encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)}


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Tensor]:
    """Tokenize, pad and mask a batch."""
    return dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))


def train(directory: Path, splits: Splits) -> Result:
    """Train the tokenizer and the model, and store both with the measured perplexity."""
    tokenizer = build_tokenizer([row["text"] for row in splits.train])
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=POSITIONS,
            n_embd=128,
            n_layer=4,
            n_head=4,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model.generation_config = GenerationConfig.from_dict({**ends, "max_new_tokens": 64, "do_sample": False})
    seconds = fit(model, _batches(tokenizer, splits.train), STEPS, RATE)
    store(directory, model, tokenizer)
    return conclude(directory, model, splits, CARD, metric="perplexity", evaluate=evaluate, seconds=seconds)


def evaluate(directory: Path, rows: Sequence[Row]) -> float:
    """Return the stored model's perplexity per token, the first token of each text given."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    loss, count = 0.0, 0
    with torch.inference_mode():
        for batch in chunks(rows, 32):
            encoded = _encode(tokenizer, [row["text"] for row in batch])
            logits = model(**encoded).logits[:, :-1].flatten(0, 1)
            labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)[:, 1:].flatten()
            loss += cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return math.exp(loss / count)
