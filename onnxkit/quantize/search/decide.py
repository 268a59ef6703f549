"""Which format each layer gets in the end: what was planned, released or upgraded until the limits hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from onnxkit.progress import Progress
from onnxkit.quantize.formats import Format
from onnxkit.quantize.search.allocation import (
    ErrorOf,
    check_budget,
    items_of,
    plans_of,
    stored_bits,
    upgrade_path,
    within_budget,
)
from onnxkit.quantize.search.gate import Attempt, Found, Step, release_path, search
from onnxkit.quantize.search.quality import Gates, Plans, Trial
from onnxkit.quantize.search.sensitivity import Prior, Sensitivity, measure_sensitivity
from onnxkit.quantize.search.units import Unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """What decisions are made with.

    Attributes:
        quick: measures a variant on a bounded part of the samples, for the sensitivity run.
        full: measures it on all, for the gates.
        error_of: a unit's own error in a format (power); None: not known.
        progress: is told what is tried.
    """

    quick: Trial
    full: Trial
    error_of: ErrorOf | None
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The plans to write, and how they were found.

    Attributes:
        plans: what holds or, where nothing does, what misses by least.
        attempts: what was measured against the gates.
        holds: whether the gates hold (also where there are none).
    """

    plans: Plans
    attempts: tuple[Attempt, ...] = ()
    holds: bool = True


def decide(units: Sequence[Unit], plans: Plans, gates: Gates, tools: Tools) -> Decision:
    """Release layers from quantization, most sensitive first, until the gates hold.

    Args:
        units: every quantized layer.
        plans: everything quantized.
        gates: may be empty: then the plans stand.
        tools: to measure with.
    """
    if not gates:
        return Decision(plans=plans)

    def path() -> Sequence[Step]:
        found = sensitivity_of(units, plans, tools)
        return release_path(plans, [each.unit for each in found.units])

    first = Step(label="everything quantized", plans=plans)
    return _decision(search(first, path, tools.full, gates, tools.progress))


def decide_mixed(
    units: Sequence[Unit],
    candidates: Mapping[Unit, Sequence[Format | None]],
    gates: Gates,
    tools: Tools,
    *,
    bits_per_weight: float | None,
) -> Decision:
    """Give each layer the cheapest of its candidate formats that the goal allows.

    Args:
        units: every layer that gets a format.
        candidates: what each may become; None is float.
        gates: the cheapest plan that keeps them is taken; without any, the best within the budget.
        tools: to measure with.
        bits_per_weight: the budget: average stored bits; None: whatever the gates need.

    Raises:
        UsageError: the budget is below the cheapest formats.
    """
    cheapest = {unit: min(candidates[unit], key=lambda each: stored_bits(each, unit.depth)) for unit in units}
    if bits_per_weight is not None:
        check_budget(cheapest, bits_per_weight)
    base = _plans(cheapest)
    found = sensitivity_of([unit for unit in units if cheapest[unit] is not None], base, tools)
    noises = {**dict.fromkeys(units, 0.0), **found.noise_of()}
    items = items_of(units, candidates.__getitem__, noises, tools.error_of)
    if not gates:
        chosen = within_budget(items, bits_per_weight if bits_per_weight is not None else 32.0)
        return Decision(plans=plans_of(chosen))
    first, *more = upgrade_path(items, most_bits=bits_per_weight)
    return _decision(search(first, lambda: more, tools.full, gates, tools.progress))


def _decision(found: Found) -> Decision:
    return Decision(plans=found.step.plans, attempts=found.attempts, holds=found.holds)


def sensitivity_of(units: Sequence[Unit], plans: Plans, tools: Tools) -> Sensitivity:
    """Find what each unit costs in the format that `plans` give it."""
    return measure_sensitivity(units, plans, tools.quick, tools.progress, prior=_prior(plans, tools.error_of))


def _prior(plans: Plans, error_of: ErrorOf | None) -> Prior | None:
    if error_of is None:
        return None

    def prior(unit: Unit) -> float:
        component, name = unit.keys[0]
        return error_of(unit, plans[component][name])

    return prior


def _plans(chosen: Mapping[Unit, Format | None]) -> Plans:
    plans: dict[str, dict[str, Format]] = {}
    for unit, each in chosen.items():
        for component, name in unit.keys:
            plan = plans.setdefault(component, {})
            if each is not None:
                plan[name] = each
    return plans


__all__ = ["Decision", "Tools", "decide", "decide_mixed", "sensitivity_of"]
