"""Mixed precision: each layer gets the cheapest format that the whole can afford.

Every unit starts in its cheapest format. What a wider one wins is noise (KL divergence, or noise over signal)
that the sensitivity run measured for the cheapest and that scales with the layer's own error; noise adds up
over layers to first order. What it costs is bits. Of each unit only the formats on the lower convex hull of
noise over bits are worth buying; all those purchases sorted by noise won per bit are the greedy solution of
this multiple-choice knapsack (Sinha and Zoltners, 1979): optimal wherever the budget falls between two
purchases, and at most one of them worse elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxkit.errors import UsageError
from onnxkit.quantize.formats import Format, IntegerFormat
from onnxkit.quantize.search.gate import Step
from onnxkit.quantize.search.quality import Plans
from onnxkit.quantize.search.units import Unit

FLOAT_BITS = 32.0

_ROUNDED = 1.0 + 1e-12
"""What rounding may add to a sum of bits that meets its budget."""

ErrorOf = Callable[[Unit, Format], float]
"""A unit's own error in a format, in any measure that is additive (power, not amplitude)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A format of a unit (None: float), its stored bits a weight, and the noise to expect of it."""

    format: Format | None
    bits: float
    noise: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A unit and the formats worth taking: more bits, less noise, along the convex hull."""

    unit: Unit
    choices: tuple[Choice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purchase:
    """The next wider format of an item: `cost` in bits (of all its weights), `gain` in noise."""

    item: Item
    rank: int
    cost: float
    gain: float

    @property
    def worth(self) -> float:
        """Noise won per bit."""
        return self.gain / self.cost


def items_of(
    units: Sequence[Unit],
    candidates: Callable[[Unit], Sequence[Format | None]],
    noises: Mapping[Unit, float],
    error_of: ErrorOf | None = None,
) -> tuple[Item, ...]:
    """Make the items of an allocation.

    Args:
        units: what is decided on.
        candidates: formats that a unit may get; None is float.
        noises: measured in each unit's cheapest candidate.
        error_of: its own error; None: a quarter for each further bit of a code (the step halves).
    """
    return tuple(_item(unit, candidates(unit), noises[unit], error_of) for unit in units)


def _item(unit: Unit, formats: Sequence[Format | None], noise: float, error_of: ErrorOf | None) -> Item:
    bits = {each: stored_bits(each, unit.depth) for each in formats}
    cheapest = min(formats, key=lambda each: bits[each])
    found = [Choice(format=cheapest, bits=bits[cheapest], noise=noise)]
    base = None if error_of is None or cheapest is None else error_of(unit, cheapest)
    for each in formats:
        if each is None:
            found.append(Choice(format=None, bits=bits[each], noise=0.0))
        elif each != cheapest:
            share = 4.0 ** (_code_bits(cheapest) - _code_bits(each))
            if base is not None and error_of is not None:
                share = error_of(unit, each) / base if base > 0.0 else 0.0
            found.append(Choice(format=each, bits=bits[each], noise=noise * share))
    return Item(unit=unit, choices=_hull(found))


def _code_bits(each: Format | None) -> int:
    return 8 if each is None or isinstance(each, IntegerFormat) else each.bits


def stored_bits(each: Format | None, depth: int) -> float:
    """Bits of storage a weight, with scales and zero points."""
    return FLOAT_BITS if each is None else each.bits_per_weight(depth)


def _hull(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The lower convex hull of noise over bits, from the fewest bits to the least noise."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.bits, each.noise)):
        if kept and choice.noise >= kept[-1].noise:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], choice):
            kept.pop()
        kept.append(choice)
    return tuple(kept)


def _slope(one: Choice, other: Choice) -> float:
    return (one.noise - other.noise) / (other.bits - one.bits)


def purchases(items: Iterable[Item]) -> tuple[Purchase, ...]:
    """All of them, the best first; those of one item stay in order, as its hull is convex."""
    found = []
    for item in items:
        for rank in range(1, len(item.choices)):
            before, after = item.choices[rank - 1], item.choices[rank]
            cost = (after.bits - before.bits) * item.unit.parameters
            found.append(Purchase(item=item, rank=rank, cost=cost, gain=before.noise - after.noise))
    return tuple(sorted(found, key=lambda each: (-each.worth, each.item.unit.name, each.rank)))


def check_budget(cheapest: Mapping[Unit, Format | None], bits_per_weight: float) -> None:
    """Refuse a budget that nothing fits, before anything is measured for it.

    Raises:
        UsageError: the cheapest formats need more already.
    """
    weights = sum(unit.parameters for unit in cheapest)
    spent = sum(stored_bits(each, unit.depth) * unit.parameters for unit, each in cheapest.items())
    if spent > bits_per_weight * weights * _ROUNDED:
        least = math.ceil(100.0 * spent / weights) / 100.0
        raise UsageError(
            f"--bits-per-weight {bits_per_weight:g}: the smallest formats need {least:.2f} already"
        )


def within_budget(items: Sequence[Item], bits_per_weight: float) -> dict[Unit, Choice]:
    """Choose formats whose stored bits are at most `bits_per_weight` on average over all weights.

    What no longer fits is skipped, so that a smaller purchase may fill the rest. The cheapest formats fit:
    `check_budget`.
    """
    weights = sum(item.unit.parameters for item in items)
    spent = sum(item.choices[0].bits * item.unit.parameters for item in items)
    budget = bits_per_weight * weights * _ROUNDED
    ranks = dict.fromkeys((item.unit for item in items), 0)
    for each in purchases(items):
        if ranks[each.item.unit] == each.rank - 1 and spent + each.cost <= budget:
            ranks[each.item.unit] = each.rank
            spent += each.cost
    return {item.unit: item.choices[ranks[item.unit]] for item in items}


def upgrade_path(items: Sequence[Item], *, most_bits: float | None = None) -> list[Step]:
    """Steps from everything cheapest to everything widest, the best purchase first.

    Args:
        items: of the allocation.
        most_bits: where to stop: average stored bits a weight.
    """
    ranks = dict.fromkeys((item.unit for item in items), 0)
    weights = sum(item.unit.parameters for item in items)
    steps = [_step(items, ranks, weights)]
    for each in purchases(items):
        ranks = {**ranks, each.item.unit: each.rank}
        step = _step(items, ranks, weights)
        if most_bits is not None and average_bits(_chosen(items, ranks)) > most_bits * _ROUNDED:
            break
        steps.append(step)
    return steps


def _chosen(items: Sequence[Item], ranks: Mapping[Unit, int]) -> dict[Unit, Choice]:
    return {item.unit: item.choices[ranks[item.unit]] for item in items}


def _step(items: Sequence[Item], ranks: Mapping[Unit, int], weights: int) -> Step:
    chosen = _chosen(items, ranks)
    wider = sum(1 for rank in ranks.values() if rank)
    label = f"{average_bits(chosen):.3f} bits a weight, {wider} {'layer' if wider == 1 else 'layers'} wider"
    return Step(label=label, plans=plans_of(chosen))


def average_bits(chosen: Mapping[Unit, Choice]) -> float:
    """Stored bits a weight over all units."""
    weights = sum(unit.parameters for unit in chosen)
    return sum(choice.bits * unit.parameters for unit, choice in chosen.items()) / weights if weights else 0.0


def plans_of(chosen: Mapping[Unit, Choice]) -> Plans:
    """The plans that say so; float units are in none."""
    plans: dict[str, dict[str, Format]] = {}
    for unit, choice in chosen.items():
        for component, name in unit.keys:
            plan = plans.setdefault(component, {})
            if choice.format is not None:
                plan[name] = choice.format
    return plans


__all__ = [
    "FLOAT_BITS", "Choice", "ErrorOf", "Item", "Purchase", "average_bits", "check_budget", "items_of",
    "plans_of", "purchases", "stored_bits", "upgrade_path", "within_budget",
]  # fmt: skip
