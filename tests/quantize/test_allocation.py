"""Mixed precision: the greedy allocation against every possible one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.errors import UsageError
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.search.allocation import (
    ErrorOf,
    Item,
    average_bits,
    check_budget,
    items_of,
    plans_of,
    purchases,
    upgrade_path,
    within_budget,
)
from onnxkit.quantize.search.units import Unit, units_of
from tests.quantize.searches import INT4, INT8, layer

FINE = BlockFormat(bits=4, size=16)
CANDIDATES = (INT4, FINE, INT8, None)
ERRORS = {INT4: 3.0, FINE: 2.0, INT8: 3.0 / 256}


def items(
    sizes: list[int], noises: list[float], *, fine: bool = False
) -> tuple[tuple[Unit, ...], tuple[Item, ...]]:
    found = units_of(layer(f"layer_{i}", parameters=64 * size) for i, size in enumerate(sizes))
    errors: ErrorOf | None = (lambda _, each: ERRORS[each]) if fine else None
    return found, items_of(found, lambda _: CANDIDATES, dict(zip(found, noises, strict=True)), errors)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    data=st.data(),
)
def test_no_more_than_one_purchase_from_the_best_of_all(sizes: list[int], data: st.DataObject):
    noises = data.draw(st.lists(st.floats(0.001, 1.0), min_size=len(sizes), max_size=len(sizes)))
    budget = data.draw(st.floats(4.7, 33.0))
    found, made = items(sizes, noises, fine=True)
    assert {FINE, INT8} <= {choice.format for choice in made[0].choices}
    chosen = within_budget(made, budget)
    assert average_bits(chosen) <= budget * (1 + 1e-9)
    best = min(
        sum(choice.noise for choice in combination)
        for combination in itertools.product(*(item.choices for item in made))
        if average_bits(dict(zip(found, combination, strict=True))) <= budget * (1 + 1e-9)
    )
    got = sum(choice.noise for choice in chosen.values())
    worst_gain = max((each.gain for each in purchases(made)), default=0.0)
    assert best - 1e-12 <= got <= best + worst_gain + 1e-12


def test_the_budget_goes_where_the_noise_is():
    _, made = items([1, 1, 1, 1], [0.1, 0.4, 0.2, 0.3])
    chosen = within_budget(made, 6.7)
    wide = {unit.name for unit, choice in chosen.items() if choice.format == INT8}
    assert wide == {"layer_1", "layer_3"}
    assert plans_of(chosen)["model"]["layer_1"] == INT8


def test_a_small_layer_is_widened_before_a_large_one_of_the_same_noise():
    _, made = items([1, 8], [0.1, 0.1])
    assert purchases(made)[0].item.unit.name == "layer_0"


def test_formats_above_the_hull_are_never_taken():
    _, made = items([1], [1.0], fine=True)
    bits = [choice.bits for choice in made[0].choices]
    slopes = [(a.noise - b.noise) / (b.bits - a.bits) for a, b in itertools.pairwise(made[0].choices)]
    assert bits == sorted(bits) and slopes == sorted(slopes, reverse=True)
    assert made[0].choices[-1].format is None


def test_a_units_own_error_decides_between_formats():
    (unit,) = units_of([layer("layer")])
    useless = {INT4: 2.0, INT8: 2.0}
    (item,) = items_of([unit], lambda _: (INT4, INT8), {unit: 0.5}, lambda _, each: useless[each])
    assert [choice.format for choice in item.choices] == [INT4]
    halved = {INT4: 2.0, INT8: 1.0}
    (item,) = items_of([unit], lambda _: (INT4, INT8), {unit: 0.5}, lambda _, each: halved[each])
    assert item.choices[-1].noise == pytest.approx(0.25)


def test_the_path_begins_cheapest_and_ends_widest():
    _, made = items([1, 2, 3], [0.1, 0.4, 0.2], fine=True)
    steps = upgrade_path(made)
    assert set(steps[0].plans["model"].values()) == {INT4} and steps[-1].plans["model"] == {}
    assert len(steps) == 1 + len(purchases(made))
    assert len({step.label for step in steps}) == len(steps)
    few = upgrade_path(made, most_bits=9.0)
    assert [step.label for step in few] == [step.label for step in steps[: len(few)]]


def test_a_tied_table_counts_once():
    found: tuple[Unit, ...] = units_of([layer("embed", weight="t"), layer("head", weight="t"), layer("x")])
    made = items_of(found, lambda _: (INT4, INT8), {found[0]: 1.0, found[1]: 0.1})
    chosen = within_budget(made, 6.7)
    assert plans_of(chosen) == {"model": {"embed": INT8, "head": INT8, "x": INT4}}


def test_a_budget_below_the_cheapest_is_refused():
    (unit,) = units_of([layer("layer")])
    with pytest.raises(UsageError, match=r"--bits-per-weight 4: the smallest formats need 4\.\d+ already"):
        check_budget({unit: INT4}, 4.0)
    check_budget({unit: INT4}, INT4.bits_per_weight(unit.depth))
