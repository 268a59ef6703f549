"""Sensitivity: each layer alone where there are few, from blocks and kinds where there are many."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxkit.progress import Progress
from onnxkit.quantize.search.analysis import Analysis, layer_rows, write_analysis
from onnxkit.quantize.search.sensitivity import MOST_ALONE, REFINED, Sensitivity, measure_sensitivity
from onnxkit.quantize.search.units import Unit, units_of
from tests.quantize.searches import Model, layer, plans_for, units

KINDS = {"self_attn.q_proj": 1.0, "self_attn.v_proj": 6.0, "mlp.up_proj": 2.0, "mlp.down_proj": 3.0}


def decoder(blocks: int) -> tuple[tuple[Unit, ...], dict[str, float]]:
    """A language model whose noise is a block's factor times a kind's, but for one outlier."""
    names = {
        f"model.layers.{b}.{kind}": 1e-4 * factor * (5.0 if b in (0, blocks - 1) else 1.0 + 0.1 * b)
        for b in range(blocks)
        for kind, factor in KINDS.items()
    }
    names["lm_head"] = 2e-3
    return units_of(layer(name) for name in names), names


def measured(found: tuple[Unit, ...], model: Model) -> Sensitivity:
    return measure_sensitivity(found, plans_for(found), model, Progress())


def test_few_layers_are_tried_one_by_one():
    found = units(5)
    noises = {unit.name: 0.1 * (1 + i) for i, unit in enumerate(found)}
    model = Model(noises)
    result = measured(found, model)
    assert model.calls == [frozenset([unit.name]) for unit in found]
    assert [each.unit.name for each in result.units] == sorted(noises, key=noises.__getitem__, reverse=True)
    assert all(each.noise == pytest.approx(noises[each.unit.name]) for each in result.units)
    assert result.total == pytest.approx(sum(noises.values())) and not result.groups


def test_many_layers_cost_blocks_plus_kinds_plus_the_worst():
    found, noises = decoder(30)
    assert len(found) > MOST_ALONE
    model = Model(noises)
    result = measured(found, model)
    assert len(model.calls) == 30 + len(KINDS) + 1 + REFINED
    assert len(result.units) == len(found)
    for each in result.units:  # noise that is a product of block and kind is estimated exactly
        assert each.noise == pytest.approx(noises[each.unit.name], rel=1e-3)
    assert sum(each.quality is not None for each in result.units) == REFINED + 1
    assert result.groups.keys() == {
        *(f"model:model.layers.{b}" for b in range(30)),
        *(f"model:model.layers.*.{kind}" for kind in KINDS),
    }


def test_each_layers_own_error_tells_the_layers_of_a_block_apart():
    found, noises = decoder(30)
    odd = "model.layers.7.mlp.up_proj"
    noises[odd] *= 40
    result = measure_sensitivity(
        found, plans_for(found), Model(noises), Progress(), prior=lambda unit: noises[unit.name] ** 0.9
    )
    (estimated,) = (each for each in result.units if each.unit.name == odd)
    assert estimated.quality is not None  # found among the worst, and tried alone
    assert estimated.noise == pytest.approx(noises[odd])


def test_names_give_blocks_and_kinds():
    (one,) = units_of([layer("encoder.layers.0.blocks.1.attention.query")])
    assert one.block == "model:encoder.layers.0.blocks.1"
    assert one.kind == "model:encoder.layers.*.blocks.*.attention.query"
    (plain,) = units_of([layer("lm_head")])
    assert plain.block == "" and plain.kind == "model:lm_head"
    (fc1,) = units_of([layer("block.fc1")])
    assert fc1.block == ""


def test_layers_that_share_a_weight_are_one_unit_across_graphs():
    shared = [layer("embed", weight="t", component="encoder"), layer("head", weight="t", component="decoder")]
    found = units_of([*shared, layer("other", component="decoder")])
    assert [unit.keys for unit in found] == [
        (("encoder", "embed"), ("decoder", "head")),
        (("decoder", "other"),),
    ]
    assert found[0].parameters == 4096


def analysis_of(found: tuple[Unit, ...], model: Model) -> Analysis:
    result = measured(found, model)
    return Analysis(
        out="out", scheme="int4-weight", measured_on="text.txt", samples=3, noise="KL divergence, nats",
        whole=model(plans_for(found)), layers=layer_rows(result, plans_for(found)), groups=result.groups,
        seconds=1.0,
    )  # fmt: skip


def test_the_files(tmp_path: Path):
    found, noises = decoder(30)
    analysis = analysis_of(found, Model(noises))
    write_analysis(analysis, [unit.name for unit in found], tmp_path)
    plain = json.loads((tmp_path / "analysis.json").read_text())
    assert plain["schema"] == "onnxkit/1"
    rows = plain["result"]["layers"]
    assert len(rows) == len(found) and sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows == sorted(rows, key=lambda row: -row["noise"])

    active = [line for line in (tmp_path / "exclude.txt").read_text().splitlines() if line and line[0] != "#"]
    proposed = [row["name"] for row in rows if row["proposed"]]
    assert proposed and len(proposed) <= 0.2 * len(found)
    for pattern, name in zip(active, proposed, strict=True):
        assert [unit.name for unit in found if re.search(pattern, unit.name)] == [name]

    tree = ElementTree.fromstring((tmp_path / "sensitivity.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    bars = tree.findall(f"{space}g/{space}rect")
    labels = [text.text for text in tree.findall(f"{space}g/{space}text")]
    assert labels == [unit.name for unit in found]  # graph order
    lengths = {name: float(bar.attrib["width"]) for name, bar in zip(labels, bars, strict=True)}
    assert max(lengths, key=lengths.__getitem__) == rows[0]["name"]
    assert {name for name, bar in zip(labels, bars, strict=True) if bar.attrib["class"][0] == "w"} == {
        *proposed
    }


def test_a_name_that_is_no_xml_and_no_pattern(tmp_path: Path):
    noises = {'a<b>&"(+': 0.0, "b" * 200: 0.2, **{f"more_{i}": 0.01 for i in range(8)}}
    found = units_of(layer(name) for name in noises)
    analysis = analysis_of(found, Model(noises))
    write_analysis(analysis, [], tmp_path)
    ElementTree.fromstring((tmp_path / "sensitivity.svg").read_text())
    text = (tmp_path / "exclude.txt").read_text()
    assert f"^{'b' * 200}$" in text.splitlines()
    (pattern,) = (line[1:] for line in text.splitlines() if line.startswith("#^a"))
    assert re.fullmatch(pattern, 'a<b>&"(+')
