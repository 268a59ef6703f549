"""Gates: the smallest change that keeps the limits, found in few trials, resumed after an interruption."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.artifact.leftovers import reap
from onnxkit.errors import GateFailed, ResourceError, UsageError
from onnxkit.progress import Progress
from onnxkit.quantize.formats import Plan
from onnxkit.quantize.search.decide import Tools, decide, decide_mixed
from onnxkit.quantize.search.journal import Journal, journal_beside, plans_digest, search_key
from onnxkit.quantize.search.quality import Gates, Plans, Quality, SliceDrop, Trial, points_lost
from tests.quantize.searches import INT4, INT8, Model, layer, plans_for, quality_of, units, units_of


def tools(trial: Trial) -> Tools:
    return Tools(quick=trial, full=trial, error_of=None, progress=Progress())


def noises(values: list[float]) -> dict[str, float]:
    return {unit.name: value for unit, value in zip(units(len(values)), values, strict=True)}


def test_without_gates_nothing_is_measured():
    model, found = Model({}), units(3)
    decision = decide(found, plans_for(found), Gates(), tools(model))
    assert decision.plans == plans_for(found) and decision.holds and not model.calls


def test_a_model_that_holds_at_once_is_measured_once():
    found = units(3)
    model = Model(noises([0.1, 0.2, 0.3]))
    decision = decide(found, plans_for(found), Gates(max_kl=0.6), tools(model))
    assert decision.plans == plans_for(found) and len(model.calls) == 1
    assert [attempt.holds for attempt in decision.attempts] == [True]


@given(
    values=st.lists(st.floats(0.001, 1.0), min_size=2, max_size=40, unique=True),
    limit=st.floats(0.0005, 4.0),
)
def test_the_fewest_layers_are_released_most_sensitive_first(values: list[float], limit: float):
    found = units(len(values))
    model = Model(noises(values))
    decision = decide(found, plans_for(found), Gates(max_kl=limit), tools(model))
    order = sorted(values, reverse=True)
    needed = next((n for n in range(len(values)) if sum(order[n:]) <= limit), None)
    left = {name for plan in decision.plans.values() for name in plan}
    if needed is None:
        assert not decision.holds and left
        assert all(not attempt.holds for attempt in decision.attempts)
    else:
        gone = {noise for name, noise in model.noises.items() if name not in left}
        assert decision.holds
        assert gone == set(order[:needed]) and len(left) == len(values) - needed
    trials = len(decision.attempts)
    assert trials <= 2 + math.ceil(math.log2(len(values)))


def test_layers_that_share_a_weight_are_released_together():
    found = units_of([layer("embedding", weight="table"), layer("head", weight="table"), layer("other")])
    model = Model({"embedding": 0.3, "head": 0.5, "other": 0.1})
    decision = decide(found, plans_for(found), Gates(max_kl=0.2), tools(model))
    assert decision.plans == {"model": {"other": INT4}}


def test_a_gate_that_cannot_hold_gives_the_best_found():
    found = units(5)
    model = Model(noises([0.5, 0.4, 0.3, 0.2, 0.1]))
    decision = decide(found, plans_for(found), Gates(max_kl=0.05), tools(model))
    assert not decision.holds
    assert list(decision.plans["model"]) == [found[-1].name]  # one layer, the harmless one
    assert all(attempt.broken == (f"KL divergence {attempt.quality.kl:.4f} is over 0.05",)
               for attempt in decision.attempts)  # fmt: skip


def test_the_search_goes_on_where_it_was_interrupted(tmp_path: Path):
    found, gates = units(20), Gates(max_kl=0.05)
    values = noises([0.001 * (1 + i) for i in range(20)])
    whole = Model(values)
    expected = decide(found, plans_for(found), gates, tools(whole))

    class Interrupted(Model):
        def __call__(self, plans: Plans) -> Quality:
            if len(self.calls) == 15:
                raise KeyboardInterrupt
            return super().__call__(plans)

    out = tmp_path / "out"
    first, second = Interrupted(values), Model(values)
    with pytest.raises(KeyboardInterrupt), journal_beside(out, "key") as journal:
        decide(found, plans_for(found), gates, tools(journal.trial(first, "all")))
    (left,) = tmp_path.iterdir()
    assert left.name == ".out.onnxkit-search-key.jsonl"
    reap(out)  # what clears up after killed runs
    assert left.exists()
    with journal_beside(out, "key") as journal:
        assert journal.found == 15
        decision = decide(found, plans_for(found), gates, tools(journal.trial(second, "all")))
    assert decision.plans == expected.plans and decision.attempts == expected.attempts
    assert len(first.calls) + len(second.calls) == len(whole.calls)
    assert not set(first.calls) & set(second.calls)
    assert not list(tmp_path.iterdir())


def test_a_journal_stays_only_where_there_is_something_to_resume(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(ResourceError), journal_beside(out, "key") as journal:
        journal.trial(Model(noises([0.1])), "all")(plans_for(units(1)))
        raise ResourceError("the disk is full")
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(GateFailed), journal_beside(out, "key"):
        raise GateFailed("no")
    assert not list(tmp_path.iterdir())


def test_a_torn_or_foreign_journal_is_as_if_never_written(tmp_path: Path):
    out, found = tmp_path / "out", units(2)
    model = Model(noises([0.1, 0.2]))
    path = tmp_path / ".out.onnxkit-search-key.jsonl"
    journal = Journal(path)
    journal.trial(model, "all")(plans_for(found))
    whole = path.read_text()
    path.write_text(f'{whole}nonsense\n[1]\n{{"plans": "x", "quality": {{"kl": 1}}}}\n{whole[:40]}')
    assert Journal(path).found == 1
    Journal(path).trial(model, "all")(plans_for(found))
    assert len(model.calls) == 1
    Journal(path).trial(model, "quick")(plans_for(found))  # another way of measuring
    assert len(model.calls) == 2
    os.utime(path, (0, 0))
    with journal_beside(out, "another"):
        assert not path.exists()  # older than a week


def test_a_journal_does_not_follow_a_link(tmp_path: Path):
    victim, path = tmp_path / "victim", tmp_path / "journal"
    victim.write_text("")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        Journal(path).trial(Model(noises([0.1])), "all")(plans_for(units(1)))
    assert not victim.read_text()


def test_a_key_depends_on_model_options_and_data():
    base = search_key("sha256:1", {"seed": 0, "scheme": "int8"}, {"eval": "sha256:2"})
    assert base == search_key("sha256:1", {"scheme": "int8", "seed": 0}, {"eval": "sha256:2"})
    others = {
        search_key("sha256:9", {"seed": 0, "scheme": "int8"}, {"eval": "sha256:2"}),
        search_key("sha256:1", {"seed": 1, "scheme": "int8"}, {"eval": "sha256:2"}),
        search_key("sha256:1", {"seed": 0, "scheme": "int8"}, {"eval": "sha256:3"}),
    }
    assert len({base, *others}) == 4


def test_plans_have_one_digest_whatever_their_order():
    one: Plan = {"a": INT4, "b": INT8}
    assert plans_digest({"m": one}) == plans_digest({"m": dict(reversed(one.items()))})
    assert plans_digest({"m": one}) != plans_digest({"m": {"a": INT8, "b": INT4}})


def test_a_quality_survives_the_journal(tmp_path: Path):
    worst = SliceDrop(name="fi", before=0.9, after=0.8, drop=10.0, samples=12)
    quality = dataclasses.replace(quality_of(0.0), metric=0.5, worst_slice=worst)
    assert quality.sqnr_db == math.inf
    journal = Journal(tmp_path / "journal")
    journal.trial(lambda _: quality, "all")({})
    assert Journal(tmp_path / "journal").trial(Model({}), "all")({}) == quality


def test_every_broken_limit_is_named():
    worst = SliceDrop(name="fi", before=0.9, after=0.87, drop=3.0, samples=12)
    quality = dataclasses.replace(quality_of(0.2), worst_slice=worst)
    gates = Gates(max_drop=1, min_cosine=0.9, max_kl=0.1, max_worst_slice=2.5)
    assert gates.broken(quality) == (
        "cosine 0.80000 is below 0.9",
        "KL divergence 0.2000 is over 0.1",
        "2.00 points lost, over 1",
        "'fi' lost 3.00 points, over 2.5",
    )
    assert gates.excess(quality) == pytest.approx(1.0)
    assert not Gates(max_drop=2, min_cosine=0.8, max_kl=0.2, max_worst_slice=3).broken(quality)


def test_nan_breaks_a_limit():
    broken = Quality(cosine=math.nan, sqnr_db=-math.inf, kl=math.nan)
    assert len(Gates(min_cosine=0.5, max_kl=1).broken(broken)) == 2
    assert broken.noise == math.inf


@pytest.mark.parametrize("limits", [{"max_kl": 1.0}, {"max_drop": 1.0}, {"max_worst_slice": 1.0}])
def test_a_limit_on_what_was_not_measured_is_refused(limits: dict[str, float]):
    plain = Quality(cosine=1.0, sqnr_db=math.inf)
    with pytest.raises(UsageError, match=r"--max-.* needs"):
        Gates(**limits).broken(plain)


def test_points():
    assert points_lost("accuracy", 0.9, 0.88, higher_is_better=True) == pytest.approx(2.0)
    assert points_lost("wer", 0.1, 0.12, higher_is_better=False) == pytest.approx(2.0)
    assert points_lost("perplexity", 20.0, 21.0, higher_is_better=False) == pytest.approx(5.0)


def test_mixed_takes_the_cheapest_plan_that_keeps_a_gate():
    found = units(6)
    model = Model(noises([0.1, 0.02, 0.3, 0.01, 0.05, 0.2]))
    candidates = dict.fromkeys(found, (INT4, INT8, None))
    decision = decide_mixed(found, candidates, Gates(max_kl=0.1), tools(model), bits_per_weight=None)
    plan = decision.plans["model"]
    wide = {name for name, each in plan.items() if each == INT8}
    assert decision.holds and set(plan) == set(model.noises)
    assert wide == {name for name, noise in model.noises.items() if noise >= 0.1}
    assert model(decision.plans).noise <= 0.1


def test_mixed_with_a_budget_and_a_gate_that_do_not_meet():
    found = units(6)
    model = Model(noises([0.1, 0.02, 0.3, 0.01, 0.05, 0.2]))
    candidates = dict.fromkeys(found, (INT4, INT8))
    decision = decide_mixed(found, candidates, Gates(max_kl=0.001), tools(model), bits_per_weight=5.5)
    assert not decision.holds and len(decision.attempts) >= 2


@pytest.mark.parametrize("gates", [Gates(), Gates(max_kl=0.1)])
def test_a_budget_that_nothing_fits_is_refused_before_anything_is_measured(gates: Gates):
    found, model = units(6), Model(noises([0.1, 0.02, 0.3, 0.01, 0.05, 0.2]))
    with pytest.raises(UsageError, match="need 4"):
        decide_mixed(found, dict.fromkeys(found, (INT4, INT8)), gates, tools(model), bits_per_weight=4.0)
    assert not model.calls
