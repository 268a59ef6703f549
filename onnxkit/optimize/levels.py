"""What `-O0` … `-O4` mean."""

from __future__ import annotations

from dataclasses import dataclass

from onnxkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Level:
    """One optimization level.

    Attributes:
        number: what `-O` takes.
        summary: one line for the documentation.
        clean: fold constants, share common subexpressions, drop dead code.
        lower: write regions (and, in foreign graphs, patterns) as the provider's own operators.
        approximate: fusions that compute another function, too.
        half: weights and arithmetic in float16; of the inputs and outputs only a decoder's cache.
        tolerance: key of `measure.agreement.TOLERANCES` that the result must keep.
    """

    number: int
    summary: str
    clean: bool
    lower: bool
    approximate: bool
    half: bool
    tolerance: str


LEVELS: tuple[Level, ...] = (
    Level(
        number=0,
        summary="a checked copy",
        clean=False,
        lower=False,
        approximate=False,
        half=False,
        tolerance="fp32",
    ),
    Level(
        number=1,
        summary="clean-up (constant folding, common subexpressions, dead code)",
        clean=True,
        lower=False,
        approximate=False,
        half=False,
        tolerance="fp32",
    ),
    Level(
        number=2,
        summary="clean-up and the provider's own operators",
        clean=True,
        lower=True,
        approximate=False,
        half=False,
        tolerance="fp32",
    ),
    Level(
        number=3,
        summary="the provider's own operators and approximations such as FastGelu",
        clean=True,
        lower=True,
        approximate=True,
        half=False,
        tolerance="fp32-O3",
    ),
    Level(
        number=4,
        summary="the provider's own operators, approximations and float16 (not in inputs, outputs)",
        clean=True,
        lower=True,
        approximate=True,
        half=True,
        tolerance="fp16",
    ),
)


def level_of(number: int) -> Level:
    """Return the level; UsageError when there is none of that number."""
    for level in LEVELS:
        if level.number == number:
            return level
    raise UsageError(f"-O{number}: levels are 0 to {LEVELS[-1].number}")
