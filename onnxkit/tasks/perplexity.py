"""Perplexity of scored texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxkit.tasks.base import Array, Metric, Record


def score_record(log_probabilities: Array) -> Record:
    """Make the record of one text of its tokens' log-probabilities [n] (nats)."""
    total, count = float(log_probabilities.sum(dtype="float64")), len(log_probabilities)
    return {"log_probability": total, "scored_tokens": count, "perplexity": safe_exp(-total / count)}


def perplexity(records: Sequence[Record]) -> Metric:
    """exp of the mean negative log-probability of all tokens of all texts."""
    total = sum(record["log_probability"] for record in records)
    count = sum(record["scored_tokens"] for record in records)
    value = safe_exp(-total / count) if count else math.nan
    return Metric(name="perplexity", value=value, higher_is_better=False, count=len(records))


def safe_exp(value: float) -> float:
    """exp, infinite where it would overflow."""
    return math.exp(value) if value < 700 else math.inf
