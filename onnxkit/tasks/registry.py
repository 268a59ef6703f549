"""The table of tasks: a task is one file and one row here."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxkit.artifact.task_names import normalize_task
from onnxkit.errors import InputError, UsageError
from onnxkit.tasks.base import Task

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

REGISTRY: Mapping[str, str] = {
    "text-classification": "text_classification:TextClassification",
    "token-classification": "token_classification:TokenClassification",
    "question-answering": "question_answering:QuestionAnswering",
    "fill-mask": "fill_mask:FillMask",
    "feature-extraction": "feature_extraction:FeatureExtraction",
    "sentence-similarity": "sentence_similarity:SentenceSimilarity",
    "image-classification": "image_classification:ImageClassification",
    "image-feature-extraction": "image_feature_extraction:ImageFeatureExtraction",
    "text-generation": "text_generation:TextGeneration",
    "text2text-generation": "text2text_generation:Text2TextGeneration",
    "translation": "translation:Translation",
    "summarization": "summarization:Summarization",
    "audio-classification": "audio_classification:AudioClassification",
    "automatic-speech-recognition": "whisper:Whisper",  # or another: its `for_model` tells
    "raw": "raw:Raw",
}
"""Task name -> module and class below onnxkit.tasks. Modules load when they are asked for."""


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        InputError: no class runs this task.
    """
    if name not in REGISTRY:
        raise InputError(
            f"the task {name!r} cannot be run on samples (those that can: {', '.join(REGISTRY)}); "
            "pass raw tensors instead"
        )
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Task] = getattr(importlib.import_module(f"onnxkit.tasks.{module}"), attribute)
    return found


def served_by(model: ModelDir, *, task: str | None = None) -> type[Task]:
    """Return the class that serves a model directory's task, or another `task` on it.

    Raises:
        InputError: no class runs this task.
        UsageError: `task` is no task.
    """
    return task_class(normalize_task(task) if task else model.task).for_model(model)


def task_options(name: str) -> tuple[str, ...]:
    """Return the names of the options that a task takes (`max_length`, `top_k`, …)."""
    return options_of(task_class(name))


def task_for(model: ModelDir, *, task: str | None = None, **options: Any) -> Task:
    """Make the task of a model directory.

    Args:
        model: the opened directory.
        task: another task than the directory's own.
        options: the task's options; those that are None count as not given.

    Raises:
        UsageError: an option that the task does not have.
        InputError: a task that cannot be run, or that the model's inputs and outputs do not fit.
    """
    chosen = served_by(model, task=task)
    given = {key: value for key, value in options.items() if value is not None}
    known = options_of(chosen)
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(option, known) or known
            advice = f"it takes {', '.join(near)}" if near else "it takes none"
            raise UsageError(f"{chosen.kind or chosen.name} has no option {option!r}; {advice}")
    return chosen(model, **given)


def split_options(
    model: ModelDir, task: str | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part options into those of the task, and those of what generates (none for a task that does not).

    Options that are None count as not given.

    Raises:
        InputError: a task that cannot be run.
    """
    given = {key: value for key, value in options.items() if value is not None}
    chosen = served_by(model, task=task)
    if not chosen.generates:
        return given, {}
    known = options_of(chosen)
    own = {key: value for key, value in given.items() if key in known}
    return own, {key: value for key, value in given.items() if key not in known}


def options_of(task: type[Task]) -> tuple[str, ...]:
    """Return the names of a class' keyword-only arguments."""
    parameters = inspect.signature(task).parameters.values()
    return tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)
