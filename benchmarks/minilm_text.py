"""English sentences that ship with Python, for calibration and for evaluation, disjoint by topic."""

from __future__ import annotations

import re

_FEWEST_WORDS = 6
_MOST_WORDS = 60


def sentences(part: str) -> list[str]:
    """Return the sentences of every other topic of Python's help: `part` is "calibration" or "evaluation"."""
    from pydoc_data.topics import topics

    first = {"calibration": 0, "evaluation": 1}[part]
    found: dict[str, None] = {}
    for name in sorted(topics)[first::2]:
        for paragraph in _paragraphs(topics[name]):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph):
                if _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS and sentence[-1] in ".!?":
                    found.setdefault(sentence)
    return list(found)


def evaluation_sentences(count: int) -> list[str]:
    """Return `count` sentences of the evaluation part, spread over it, none of them used for calibration."""
    used = set(sentences("calibration"))
    free = [sentence for sentence in sentences("evaluation") if sentence not in used]
    return free[:: max(1, len(free) // count)][:count]


def _paragraphs(text: str) -> list[str]:
    """Return the prose of a topic: blocks that are neither indented, grammar, nor a heading."""
    blocks = []
    for block in text.split("\n\n"):
        lines = block.strip("\n").splitlines()
        is_prose = lines and not any(line[:1].isspace() or set(line) <= set("*=-~") for line in lines)
        if is_prose and "::=" not in block:
            blocks.append(re.sub(r"(\w)- (\w)", r"\1-\2", " ".join(lines)))
    return blocks
