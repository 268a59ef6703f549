"""Small statistics that metrics need."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from onnxkit.tasks.base import Array, Metric


def spearman(values: Sequence[float], truth: Sequence[float]) -> Metric | None:
    """Rank correlation (Spearman's rho; ties share their mean rank); None when it is undefined."""
    if len(values) < 2:
        return None
    ranks = np.stack([mean_ranks(np.asarray(values, float)), mean_ranks(np.asarray(truth, float))])
    deviation = ranks - ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((deviation**2).sum(axis=1)).prod()
    if norm == 0:
        return None
    return Metric(name="spearman", value=float((deviation[0] * deviation[1]).sum() / norm), count=len(values))


def mean_ranks(values: Array) -> Array:
    """Return the ranks (from 1) of values [n]; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[inverse]
    return ranks


def macro_f1(predicted: Sequence[Hashable], true: Sequence[Hashable]) -> float:
    """Mean F1 over the classes that occur in either sequence."""
    scores = []
    for label in set(true) | set(predicted):
        hits = sum(p == label == t for p, t in zip(predicted, true, strict=True))
        total = sum(p == label for p in predicted) + sum(t == label for t in true)
        scores.append(2 * hits / total)
    return float(np.mean(scores)) if scores else 0.0
