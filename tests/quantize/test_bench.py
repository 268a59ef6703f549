"""Measuring variants: against independent figures, and the whole way from a directory to a decision."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxkit.artifact import ModelDir, copy_companions
from onnxkit.errors import InputError
from onnxkit.measure.evaluate import SMALLEST_SLICE, Evaluation, evaluate_slices
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import read_data
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.search.bench import Bench, slice_drops
from onnxkit.quantize.search.decide import Tools, decide
from onnxkit.quantize.search.journal import journal_beside
from onnxkit.quantize.search.quality import Gates, Plans, Quality, Trial
from onnxkit.quantize.search.units import Layer, Unit, units_of
from onnxkit.quantize.workshop import Workshop
from onnxkit.quantize.yardstick import yardstick_of, yardstick_without_data
from onnxkit.runtime import RuntimeOptions, open_session
from onnxkit.tasks import Metric
from tests.generating_models import language_model
from tests.quantize.graphs import mlp_dir, random

ONE = RuntimeOptions(threads=1)
TEXT = "the cat sat on the mat.\nwhat a day, said the dog.\n"


def workshop(path: Path, scheme: str, **options: Any) -> Workshop:
    made = QuantizeOptions(scheme=scheme, include=(".",), threads=1, **options)
    return Workshop(ModelDir.open(path), SCHEMES[scheme], made)


def trial_of(shop: Workshop, bench: Bench, folder: Path) -> Trial:
    def measure(plans: Plans) -> Quality:
        files = shop.write(plans, folder, scratch=True)
        copy_companions(shop.model, folder)
        try:
            return bench.measure(folder, files)
        finally:
            shutil.rmtree(folder)

    return measure


def units_in(shop: Workshop) -> tuple[Unit, ...]:
    return units_of(
        Layer(
            component=component, name=target.name, op_type=target.node.op_type,
            weight=str(target.weight.name), parameters=target.parameters, depth=target.depth,
        )
        for component in shop.files
        for target in shop.targets(component)
    )  # fmt: skip


def language(tmp_path: Path, *, quick: bool) -> tuple[Workshop, Bench]:
    (tmp_path / "eval.txt").write_text(TEXT)
    shop = workshop(language_model(tmp_path / "in"), "int8-dynamic")
    data = read_data(tmp_path / "eval.txt", shop.model, most=8, columns={}, seed=0, task="text-generation")
    yardstick = yardstick_of(shop.model, data, "eval.txt", Progress())
    return shop, Bench(shop.model, yardstick, columns={}, runtime=ONE, quick=quick, scratch=tmp_path)


@pytest.mark.parametrize("quick", [False, True])
def test_a_language_model_is_measured_by_its_divergence(tmp_path, quick):
    shop, bench = language(tmp_path, quick=quick)
    trial = trial_of(shop, bench, tmp_path / ".variant")
    same, coarse = trial({}), trial(shop.plans(data=False))
    assert same.kl == pytest.approx(0.0, abs=1e-6)
    assert same.drop == pytest.approx(0.0, abs=1e-3)
    assert coarse.kl is not None and coarse.kl > 10 * same.kl and coarse.noise == coarse.kl
    assert coarse.metric is not None and coarse.metric > 1.0  # perplexity
    assert (coarse.cosine is None) == quick
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.txt", "in"]


def test_text_that_predicts_nothing_is_refused_by_its_name(tmp_path, monkeypatch):
    """An encoder-decoder that answers with the end alone, for instance."""
    _, bench = language(tmp_path, quick=False)
    monkeypatch.setattr("onnxkit.quantize.search.bench.text_windows", lambda *_: [])
    with pytest.raises(InputError, match=r"eval\.txt: no text of two tokens or more"):
        bench.divergence(tmp_path / "in")


def test_outputs_are_compared_as_numpy_would(tmp_path):
    shop = workshop(mlp_dir(tmp_path / "in"), "int8-dynamic")
    case = {"x": random(2, 5, 32, seed=9)}
    yardstick = yardstick_without_data(shop.model, 0)
    yardstick = dataclasses.replace(yardstick, cases={"model": (("only", case),)})
    bench = Bench(shop.model, yardstick, columns={}, runtime=ONE)
    plans = shop.plans(data=False)
    got = trial_of(shop, bench, tmp_path / ".variant")(plans)
    shop.write(plans, tmp_path / "kept")
    right = open_session(tmp_path / "in/model.onnx", ONE).run(case)["y"].astype(np.float64)
    left = open_session(tmp_path / "kept/model.onnx", ONE).run(case)["y"].astype(np.float64)
    cosine = (right * left).sum(-1) / np.sqrt((right**2).sum(-1) * (left**2).sum(-1))
    assert got.cosine == pytest.approx(cosine.mean(), abs=1e-9)
    assert got.sqnr_db == pytest.approx(10 * np.log10((right**2).sum() / ((left - right) ** 2).sum()))
    assert got.kl is None and got.drop is None
    assert got.noise == pytest.approx(((left - right) ** 2).sum() / (right**2).sum())


def test_from_a_directory_to_a_decision_that_is_resumed(tmp_path):
    shop = workshop(mlp_dir(tmp_path / "in"), "int4-weight")
    bench = Bench(shop.model, yardstick_without_data(shop.model, 0), columns={}, runtime=ONE)
    plans = shop.plans(data=False)
    measure = trial_of(shop, bench, tmp_path / ".variant")
    alone = [measure({"model": {name: plans["model"][name]}}) for name in plans["model"]]
    best = max(quality.cosine or 0.0 for quality in alone)
    both = measure(plans).cosine or 0.0
    gates = Gates(min_cosine=(best + both) / 2)
    calls: list[Plans] = []

    def counted(plans: Plans) -> Quality:
        calls.append(plans)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(plans)

    def run() -> Any:
        with journal_beside(tmp_path / "out", "key") as journal:
            trial: Trial = journal.trial(counted, "all")
            tools = Tools(quick=trial, full=trial, error_of=None, progress=Progress())
            return decide(units_in(shop), plans, gates, tools)

    with pytest.raises(KeyboardInterrupt):
        run()
    decision = run()
    worst = min(zip(alone, plans["model"], strict=True), key=lambda each: each[0].sqnr_db or 0.0)
    assert decision.holds and set(plans["model"]) - set(decision.plans["model"]) == {worst[1]}
    assert [attempt.holds for attempt in decision.attempts] == [False, True]
    assert len(calls) == 4  # all, one layer, the interrupted one again; the release was that layer's trial


class Oracle:
    """A predictor that is right where the sample says so."""

    def __init__(self) -> None:
        self.task = SimpleNamespace(needs_labels=True, metric=self._metric)

    def stream(self, samples):
        return iter([sample["right"] for sample in samples])

    @staticmethod
    def _metric(records, samples) -> Metric:
        return Metric(name="accuracy", value=sum(records) / len(records), count=len(samples))


def samples(**rights: list[bool]) -> list[dict[str, Any]]:
    return [{"language": name, "label": "a", "right": each} for name, row in rights.items() for each in row]


def test_slices_are_measured_apart_and_small_ones_left_out():
    half = SMALLEST_SLICE // 2
    rows = samples(en=[True] * SMALLEST_SLICE, fi=[True, False] * half, sv=[False] * (SMALLEST_SLICE - 1))
    found = evaluate_slices(Oracle(), rows)
    assert {name: metric.value for name, metric in found.slices.items()} == {"en": 1.0, "fi": 0.5}
    assert found.metric.count == len(rows)
    by_label = evaluate_slices(Oracle(), [{**row, "language": None} for row in rows])
    assert list(by_label.slices) == ["a"]
    scores = evaluate_slices(Oracle(), [{"label": 0.5, "right": True}] * 20)
    assert not scores.slices


def test_the_largest_drop_comes_first():
    def metric(value: float, *, name: str = "accuracy", higher: bool = True) -> Metric:
        return Metric(name=name, value=value, count=20, higher_is_better=higher)

    before = Evaluation(metric=None, slices={"a": metric(0.9), "b": metric(0.8), "c": metric(0.7)})
    after = Evaluation(metric=None, slices={"a": metric(0.85), "b": metric(0.5), "c": metric(0.75)})
    drops = slice_drops(before, after)
    assert [(each.name, pytest.approx(each.drop)) for each in drops] == [("b", 30), ("a", 5), ("c", -5)]
    assert slice_drops(None, after) == ()
