"""Sentence similarity: the embedding of a text, or the cosine of a pair's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxkit.inputs import Sample
from onnxkit.tasks.base import Encoded, Metric, Record
from onnxkit.tasks.feature_extraction import FeatureExtraction
from onnxkit.tasks.labels import as_number, expected, labelled
from onnxkit.tasks.statistics import spearman
from onnxkit.tasks.text import text_column


class SentenceSimilarity(FeatureExtraction):
    """Records: `embedding` for a text; for a pair `score`, the cosine of its two embeddings (-1 to 1)."""

    name = "sentence-similarity"
    outputs: tuple[tuple[str, ...], ...] = FeatureExtraction.outputs

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Tokenize samples: one row a text, two a pair."""
        counts = [1 if sample.get("text_pair") is None else 2 for sample in samples]
        flat = [
            (sample, column)
            for sample, count in zip(samples, counts, strict=True)
            for column in _TEXTS[:count]
        ]
        encodings = self.tokenize([text_column(sample, column) for sample, column in flat])
        made = iter(
            [self.row(encoding, sample) for encoding, (sample, _) in zip(encodings, flat, strict=True)]
        )
        return [[next(made) for _ in range(count)] for count in counts]

    def merge(self, records: Sequence[Record]) -> Record:
        """Return the embedding, or the cosine of two."""
        if len(records) == 1:
            return records[0]
        first, second = (np.asarray(record["embedding"], dtype=np.float64) for record in records)
        length = float(np.linalg.norm(first) * np.linalg.norm(second))
        return {"score": float(first @ second) / length if length else 0.0}

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Spearman's rho of the scores of pairs and their labels (numbers)."""
        pairs = [pair for pair in labelled(records, samples) if "score" in pair[0]]
        truth = [as_number(expected(sample), sample) for _, sample in pairs]
        return spearman([record["score"] for record, _ in pairs], truth)


_TEXTS = ("text", "text_pair")
