"""What tasks mean: pre-processing, post-processing, metrics. A file and a row of the registry a task."""

from __future__ import annotations

from onnxkit.tasks.base import Encoded, Feeds, Metric, Record, Task
from onnxkit.tasks.batches import feeds
from onnxkit.tasks.registry import (
    REGISTRY,
    options_of,
    served_by,
    split_options,
    task_for,
    task_options,
)

__all__ = [
    "REGISTRY",
    "Encoded",
    "Feeds",
    "Metric",
    "Record",
    "Task",
    "feeds",
    "options_of",
    "served_by",
    "split_options",
    "task_for",
    "task_options",
]
