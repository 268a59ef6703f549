"""The files that stand beside the graph: config, tokenizer, preprocessor, pooling configs."""

from __future__ import annotations

from pathlib import Path

from onnxkit.artifact import copy_companions
from onnxkit.errors import InputError
from onnxkit.export.checkpoint import Checkpoint
from onnxkit.progress import Progress

_TEXT_TASKS = frozenset(
    {
        "feature-extraction",
        "sentence-similarity",
        "text-classification",
        "token-classification",
        "question-answering",
        "fill-mask",
    }
)
_SLOW = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model")


def write_companions(
    checkpoint: Checkpoint, staging: Path, *, task: str, text: bool, progress: Progress
) -> None:
    """Copy what belongs to the checkpoint; make tokenizer.json where only a slow tokenizer stands.

    Raises:
        InputError: the slow tokenizer cannot be converted.
    """
    copy_companions(checkpoint.path, staging)
    if checkpoint.weights_path != checkpoint.path:
        copy_companions(checkpoint.weights_path, staging)
    if not text or task not in _TEXT_TASKS or (staging / "tokenizer.json").is_file():
        return
    if any((checkpoint.weights_path / name).is_file() for name in _SLOW):
        _convert_tokenizer(checkpoint, staging)
    else:
        progress.warn(f"{checkpoint.source} has no tokenizer: the model takes token ids only, no text")


def _convert_tokenizer(checkpoint: Checkpoint, staging: Path) -> None:
    from transformers import AutoTokenizer

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
