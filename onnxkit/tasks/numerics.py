"""Arithmetic on outputs."""

from __future__ import annotations

import numpy as np

from onnxkit.tasks.base import Array


def softmax(logits: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum(exp(x)) along `axis`, in float32, shifted so that it cannot overflow."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    result: Array = shifted / shifted.sum(axis=axis, keepdims=True)
    return result


def sigmoid(logits: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow for large negative x."""
    result: Array = np.exp(-np.logaddexp(0.0, -logits)).astype(logits.dtype)
    return result


def unit_length(vectors: Array) -> Array:
    """Divide vectors by their Euclidean length along the last axis (at least 1e-12, as torch does)."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Array = vectors / np.maximum(norms, 1e-12)
    return result
