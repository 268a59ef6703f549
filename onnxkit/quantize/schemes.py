"""The table of schemes. A new scheme is a row here and, where its algorithm is new, a file."""

from __future__ import annotations

import dataclasses
from typing import Literal

from onnxkit.errors import UsageError, suggestion
from onnxkit.quantize.formats import Way

Family = Literal["integer", "blocks", "log", "half", "mixed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a scheme does.

    Attributes:
        family: integers through and through, weights in blocks, logarithmic weights, the whole graph in half
            precision, or the cheapest type for each layer.
        way: what it does with layers; None where it changes the whole graph.
        bits: of a weight; of a mixed scheme the fewest.
        summary: one line for help texts.
        options: those of `QuantizeOptions` that only some schemes take.
    """

    name: str
    family: Family
    way: Way | None
    bits: int
    summary: str
    options: frozenset[str]

    @property
    def needs_calibration(self) -> bool:
        """Whether the scheme cannot work without samples."""
        return self.way == "static"

    @property
    def learns(self) -> bool:
        """Whether a calibration set, where there is one, makes the result better."""
        return self.family in ("integer", "blocks", "mixed")

    @property
    def weight_only(self) -> bool:
        """Whether activations stay float."""
        return self.way in ("blocks", "log")


_LAYERS = frozenset(
    {
        "include", "op_types", "exclude_from", "max_drop", "min_cosine", "max_kl", "max_worst_slice",
    }
)  # fmt: skip
_DATA = frozenset({"calibration", "samples", "max_length"})
_LEARNS = _DATA | {"calibration_cache"}
_INTEGER = _LAYERS | _LEARNS | {"per_channel", "smooth_quant", "bias_correction", "algorithm"}
_BLOCKS = _LAYERS | _LEARNS | {"algorithm", "block_size", "symmetric", "accuracy_level", "embeddings"}
_LOG = _LAYERS | {"block_size"}
_HALF = _DATA | {"include"}

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="int8-dynamic", family="integer", way="dynamic", bits=8, options=_INTEGER,
            summary="int8 weights; the range of each activation is taken at run time; needs no data",
        ),
        Scheme(
            name="int8-static", family="integer", way="static", bits=8,
            options=_INTEGER | {"format", "calibrator"},
            summary="int8 weights; the ranges of the activations come from a calibration set",
        ),
        Scheme(
            name="int8-weight", family="blocks", way="blocks", bits=8, options=_BLOCKS,
            summary="int8 weights in blocks; for models that generate, nearly exact",
        ),
        Scheme(
            name="int4-weight", family="blocks", way="blocks", bits=4, options=_BLOCKS,
            summary="int4 weights in blocks; for large models that generate, the fastest",
        ),
        Scheme(
            name="fp16", family="half", way=None, bits=16, options=_HALF,
            summary="half precision, but for what overflows in it",
        ),
        Scheme(
            name="bf16", family="half", way=None, bits=16, options=_HALF,
            summary="bfloat16, but for what loses too much in it",
        ),
        Scheme(
            name="log8", family="log", way="log", bits=8, options=_LOG,
            summary="weights as powers of two, 8 bits: a smaller file, no time saved",
        ),
        Scheme(
            name="log4", family="log", way="log", bits=4, options=_LOG,
            summary="weights as powers of two, 4 bits: a smaller file, no time saved",
        ),
        Scheme(
            name="mixed", family="mixed", way="blocks", bits=4, options=_BLOCKS | {"bits_per_weight"},
            summary="int4 or int8 blocks, each layer the cheapest that keeps the target",
        ),
    )
}  # fmt: skip


def scheme_named(name: str) -> Scheme:
    """Return the row of the table. Raises UsageError with the nearest names."""
    if name in SCHEMES:
        return SCHEMES[name]
    raise UsageError(f"unknown quantization scheme '{name}': {suggestion(name, SCHEMES)}")


def taking(option: str) -> tuple[str, ...]:
    """The schemes that take an option; empty for one that all take."""
    return tuple(scheme.name for scheme in SCHEMES.values() if option in scheme.options)
