"""How much each layer costs when it alone is quantized.

Few layers are tried one by one. Of many (a language model's), the noise of each block (all layers of
`model.layers.3`) and of each kind (all `mlp.down_proj`) is measured, the layers are estimated from these
margins, and the worst are then tried alone. The estimate is iterative proportional fitting (Deming and
Stephan, 1940): a table of blocks by kinds that starts from each layer's own error, scaled until its sums are
the measured ones; noise adds up, to first order, over layers that are quantized together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxkit.progress import Progress
from onnxkit.quantize.search.quality import Plans, Quality, Trial
from onnxkit.quantize.search.units import Unit

MOST_ALONE = 64
"""Up to so many units each is tried alone."""

REFINED = 16
"""Of more, so many of the worst are tried alone after the estimate."""

_ROUNDS = 50
_LEAST = 1e-30

Prior = Callable[[Unit], float]
"""A unit's own error in its format, in any unit that is the same for all (see `Workshop`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitNoise:
    """What one unit costs.

    Attributes:
        unit: the layers.
        noise: KL divergence (nats) or noise over signal of the worst output; see `Quality.noise`.
        quality: what was measured; None where the noise is estimated from its block and its kind.
    """

    unit: Unit
    noise: float
    quality: Quality | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All units, the costliest first, and the groups that were measured to estimate them."""

    units: tuple[UnitNoise, ...]
    groups: Mapping[str, Quality]

    def noise_of(self) -> dict[Unit, float]:
        """The noise of each unit."""
        return {each.unit: each.noise for each in self.units}

    @property
    def total(self) -> float:
        """Sum over units: what to expect, to first order, when all are quantized."""
        return sum(each.noise for each in self.units)


def measure_sensitivity(
    units: Sequence[Unit], plans: Plans, trial: Trial, progress: Progress, *, prior: Prior | None = None
) -> Sensitivity:
    """Find the noise of each unit in the format that `plans` give it.

    Args:
        units: what is decided on.
        plans: a format for each layer of the units.
        trial: measures a variant.
        progress: shows how far it is.
        prior: each unit's own error, to tell the layers of a block apart; None: their parameters.
    """
    if len(units) <= MOST_ALONE:
        return Sensitivity(units=_sorted(_alone(units, plans, trial, progress)), groups={})
    inside, apart = _divided(units)
    groups = {name: trial(restricted(plans, members)) for name, members in _track(inside, progress)}
    noises = {name: quality.noise for name, quality in groups.items()}
    estimated = _estimate([unit for units_ in inside.values() for unit in units_], noises, prior or _size)
    refined = sorted(estimated, key=lambda unit: (-estimated[unit], unit.name))[:REFINED]
    found = _alone([*apart, *refined], plans, trial, progress)
    known = {each.unit for each in found}
    found += [
        UnitNoise(unit=unit, noise=noise, quality=None)
        for unit, noise in estimated.items()
        if unit not in known
    ]
    return Sensitivity(units=_sorted(found), groups=groups)


def restricted(plans: Plans, units: Iterable[Unit]) -> Plans:
    """The plans of these units only: everything else stays float."""
    wanted = {key for unit in units for key in unit.keys}
    return {
        component: {name: each for name, each in plan.items() if (component, name) in wanted}
        for component, plan in plans.items()
    }


def _alone(units: Sequence[Unit], plans: Plans, trial: Trial, progress: Progress) -> list[UnitNoise]:
    found = []
    for unit in progress.track(units, total=len(units), text="trying layers"):
        quality = trial(restricted(plans, [unit]))
        found.append(UnitNoise(unit=unit, noise=quality.noise, quality=quality))
    return found


def _sorted(found: Iterable[UnitNoise]) -> tuple[UnitNoise, ...]:
    return tuple(sorted(found, key=lambda each: (-each.noise, each.unit.name)))


def _track(groups: Mapping[str, list[Unit]], progress: Progress) -> Iterable[tuple[str, list[Unit]]]:
    return progress.track(list(groups.items()), total=len(groups), text="trying blocks and kinds")


def _divided(units: Sequence[Unit]) -> tuple[dict[str, list[Unit]], list[Unit]]:
    """Groups (blocks and kinds of two members or more), and the units that are in no block."""
    blocks: dict[str, list[Unit]] = {}
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.block:
            blocks.setdefault(unit.block, []).append(unit)
            kinds.setdefault(unit.kind, []).append(unit)
    return {**blocks, **kinds}, [unit for unit in units if not unit.block]


def _size(unit: Unit) -> float:
    return float(unit.parameters)


def _estimate(units: Iterable[Unit], noises: Mapping[str, float], prior: Prior) -> dict[Unit, float]:
    """Scale the priors until they sum to the blocks' noises, and in proportion to the kinds'."""
    table = {unit: max(prior(unit), _LEAST) for unit in dict.fromkeys(units)}
    blocks = {unit.block for unit in table}
    kinds = {unit.kind for unit in table}
    whole = sum(_finite(noises[name]) for name in blocks)
    by_kind = sum(_finite(noises[name]) for name in kinds)
    scale = whole / by_kind if by_kind > 0.0 else 1.0
    wanted = {name: max(_finite(noises[name]), _LEAST) for name in blocks}
    wanted |= {name: max(_finite(noises[name]) * scale, _LEAST) for name in kinds}
    for _ in range(_ROUNDS):
        table = _scaled(table, wanted, {unit: unit.kind for unit in table})
        table = _scaled(table, wanted, {unit: unit.block for unit in table})
    return table


def _scaled(
    table: Mapping[Unit, float], wanted: Mapping[str, float], group: Mapping[Unit, str]
) -> dict[Unit, float]:
    """Scale the members of each group to the sum that is wanted."""
    sums: dict[str, float] = {}
    for unit, value in table.items():
        sums[group[unit]] = sums.get(group[unit], 0.0) + value
    return {unit: value * wanted[group[unit]] / sums[group[unit]] for unit, value in table.items()}


def _finite(noise: float) -> float:
    return noise if math.isfinite(noise) else 1e9


__all__ = ["MOST_ALONE", "REFINED", "Prior", "Sensitivity", "UnitNoise", "measure_sensitivity", "restricted"]
