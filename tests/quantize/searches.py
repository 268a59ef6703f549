"""A model whose quality is a known function of its plans, for the tests of searches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxkit.quantize.formats import BlockFormat, Format
from onnxkit.quantize.search.quality import Plans, Quality
from onnxkit.quantize.search.units import Layer, Unit, units_of

INT4 = BlockFormat(bits=4)
INT8 = BlockFormat(bits=8, symmetric=True)


def layer(name: str, *, parameters: int = 4096, component: str = "model", weight: str = "") -> Layer:
    """A layer of depth 64."""
    return Layer(
        component=component, name=name, op_type="MatMul", weight=weight or name, parameters=parameters,
        depth=64,
    )  # fmt: skip


def units(count: int) -> tuple[Unit, ...]:
    """`count` layers that belong to no block."""
    return units_of(layer(f"layer_{chr(97 + i // 26)}{chr(97 + i % 26)}") for i in range(count))


def plans_for(found: Sequence[Unit], format_: Format = INT4) -> Plans:
    """Every layer in one format."""
    plans: dict[str, dict[str, Format]] = {}
    for unit in found:
        for component, name in unit.keys:
            plans.setdefault(component, {})[name] = format_
    return plans


class Model:
    """Noise adds up: each layer has its own in int4, 1/256 of it in int8, none in float."""

    def __init__(self, noises: Mapping[str, float]) -> None:
        self.noises = noises
        self.calls: list[frozenset[str]] = []

    def __call__(self, plans: Plans) -> Quality:
        """Measure, and remember which layers were quantized."""
        formats = {name: each for plan in plans.values() for name, each in plan.items()}
        self.calls.append(frozenset(formats))
        return quality_of(
            sum(self.noises[name] * (1.0 if f == INT4 else 1 / 256) for name, f in formats.items())
        )


def quality_of(kl: float) -> Quality:
    """A quality that goes with a KL divergence: cosine falls and points are lost as it grows."""
    sqnr = math.inf if kl == 0.0 else -10.0 * math.log10(kl)
    return Quality(cosine=1.0 - kl, sqnr_db=sqnr, kl=kl, drop=10.0 * kl)
