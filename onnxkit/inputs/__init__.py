"""Reads samples: text, tables, images, audio, raw tensors. Streams; nothing is held in memory whole."""

from __future__ import annotations

from onnxkit.inputs.columns import COLUMNS
from onnxkit.inputs.reader import FORMATS, read_samples
from onnxkit.inputs.sample import Located, LocatedBatch, Sample, blamed, place

__all__ = ["COLUMNS", "FORMATS", "Located", "LocatedBatch", "Sample", "blamed", "place", "read_samples"]
