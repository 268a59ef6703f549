"""The files that stand beside the graph: config, tokenizer, preprocessor, pooling configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxkit.artifact import copy_companions
from onnxkit.errors import InputError
from onnxkit.export.adapter import copy_adapter_tokenizer
from onnxkit.export.checkpoint import Checkpoint
from onnxkit.export.gguf import write_gguf_companions
from onnxkit.export.plan import GENERATING, Plan
from onnxkit.progress import Progress
from onnxkit.safety import read_json
from onnxkit.tasks.sentencepiece import from_sentencepiece

_TEXT_TASKS = frozenset(
    {
        "feature-extraction",
        "sentence-similarity",
        "text-classification",
        "token-classification",
        "question-answering",
        "fill-mask",
        *GENERATING,
    }
)
_SLOW = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model")


def write_companions(plan: Plan, staging: Path, *, progress: Progress) -> None:
    """Copy what belongs to the checkpoint; make tokenizer.json where only a slow tokenizer stands.

    Raises:
        InputError: the slow tokenizer cannot be converted.
    """
    checkpoint = plan.checkpoint
    if checkpoint.gguf is not None:
        write_gguf_companions(checkpoint.gguf, checkpoint.settings, staging)
        return
    copy_companions(checkpoint.path, staging)
    if checkpoint.packing is not None:
        _forget_packing(checkpoint.settings, staging / "config.json")
    if checkpoint.weights_path != checkpoint.path:
        copy_companions(checkpoint.weights_path, staging)
    if checkpoint.access.adapter is not None:
        copy_adapter_tokenizer(checkpoint.access.adapter, staging)
    text = any(given.name == "input_ids" for part in plan.parts for given in part.signature.inputs)
    if not text or plan.task not in _TEXT_TASKS or (staging / "tokenizer.json").is_file():
        return
    if any((checkpoint.weights_path / name).is_file() for name in _SLOW):
        _convert_tokenizer(checkpoint, staging)
    else:
        progress.warn(f"{checkpoint.source} has no tokenizer: the model takes token ids only, no text")


def _forget_packing(settings: Mapping[str, Any], config: Path) -> None:
    """The weights of the graph are stored another way: loaders would ask for the checkpoint's."""
    kept = {key: value for key, value in settings.items() if key != "quantization_config"}
    config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _convert_tokenizer(checkpoint: Checkpoint, staging: Path) -> None:
    from transformers import AutoTokenizer

    settings = staging / "tokenizer_config.json"
    made = from_sentencepiece(staging, read_json(settings) if settings.is_file() else {})
    if made is not None:  # Marian, M2M100: transformers has them in Python only
        made.save(str(staging / "tokenizer.json"))
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.weights_path, **checkpoint.load_arguments())
        backend = getattr(tokenizer, "backend_tokenizer", None)
    except (ValueError, OSError, ImportError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{checkpoint.source}: its tokenizer cannot be converted to tokenizer.json: {reason}"
        ) from error
    if backend is None:
        raise InputError(
            f"{checkpoint.source}: its tokenizer has no fast form, so no tokenizer.json can be written"
        )
    backend.save(str(staging / "tokenizer.json"))
