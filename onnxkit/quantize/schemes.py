"""The table of schemes. A new scheme is a row here and, where its algorithm is new, a file."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

from onnxkit.errors import UsageError
from onnxkit.machine import Cpu
from onnxkit.quantize.weights import Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights and activations become integers.

    Attributes:
        activations: "dynamic" takes each activation's range at run time; "static" from calibration; "float":
            only weights are quantized, in blocks (`blockwise`).
        summary: one line for help texts.
        bits: of a weight.
    """

    name: str
    activations: Literal["dynamic", "static", "float"]
    summary: str
    bits: int = 8

    @property
    def needs_calibration(self) -> bool:
        """Whether the scheme cannot work without samples."""
        return self.activations == "static"

    @property
    def weight_only(self) -> bool:
        """Whether activations stay float."""
        return self.activations == "float"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightGrids:
    """Which grid the weights of each kind of operator get, and why.

    Attributes:
        products: of matrix products.
        convolutions: of convolutions, whose kernels lay weights out in an order of their own.
        reason: why, in plain words.
    """

    products: Grid
    convolutions: Grid
    reason: str


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="int8-dynamic",
            activations="dynamic",
            summary="int8 weights; the range of each activation is taken at run time; needs no data",
        ),
        Scheme(
            name="int8-static",
            activations="static",
            summary="int8 weights; the ranges of the activations come from a calibration set",
        ),
        Scheme(
            name="int8-weight",
            activations="float",
            summary="int8 weights in blocks; for models that generate, nearly exact",
        ),
        Scheme(
            name="int4-weight",
            activations="float",
            bits=4,
            summary="int4 weights in blocks; for large models that generate, the fastest",
        ),
    )
}


def scheme_named(name: str) -> Scheme:
    """Return the row of the table. Raises UsageError with the nearest names."""
    if name in SCHEMES:
        return SCHEMES[name]
    near = difflib.get_close_matches(name, SCHEMES, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(SCHEMES)}"
    raise UsageError(f"unknown quantization scheme '{name}': {hint}")


def weight_grids(machine: Cpu) -> WeightGrids:
    """Choose the grids for this CPU: nothing may saturate, and no bit is given away for nothing."""
    if machine.saturates:
        return WeightGrids(
            products="paired",
            convolutions="seven",
            reason="8 bits, scaled so that no pair of products saturates on this CPU (x86 without VNNI)",
        )
    return WeightGrids(
        products="full",
        convolutions="full",
        reason="8 bits in full: this CPU adds products without saturating",
    )
