"""How SQuAD 1.1's evaluation script compares answers."""

from __future__ import annotations

import re
import string
from collections import Counter


def normalized(answer: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    kept = "".join(one for one in answer.lower() if one not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def token_f1(answer: str, truth: str) -> float:
    """F1 of the words of two normalized answers."""
    found, right = normalized(answer).split(), normalized(truth).split()
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
