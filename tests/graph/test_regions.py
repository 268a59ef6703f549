"""Regions: written, found again from the file alone, dropped when they no longer hold, replaced whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxkit.graph.files import load_model
from onnxkit.graph.regions import ATTRS, OP, REGION, Region, find_regions, replace
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain

ONE = RuntimeOptions(threads=1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save_plain(build_encoder(EncoderSpec()), path)
    return path


def by_op(regions: list[Region], op: str) -> Region:
    return next(region for region in regions if region.op == op)


def test_found_again_from_the_file(saved: Path) -> None:
    regions = find_regions(load_model(saved))
    assert [region.op for region in regions] == ["mask", "attention", "gelu", "attention", "gelu"]
    assert len({region.id for region in regions}) == 5
    attention = by_op(regions, "attention")
    assert attention.attrs["num_heads"] == 4
    assert attention.attrs["layout"] == "bsh"
    assert set(attention.inputs) == {"q", "k", "v", "mask"}
    assert attention.outputs["out"].producer() in attention.nodes


def test_every_node_of_a_region_carries_it(saved: Path) -> None:
    model = onnx.load(saved)
    properties = [{entry.key: entry.value for entry in node.metadata_props} for node in model.graph.node]
    marked = [props for props in properties if REGION in props]
    assert all({OP, ATTRS} <= set(props) and json.loads(props[ATTRS])["outputs"]["out"] for props in marked)
    assert len(marked) > 20


def test_a_removed_node_drops_the_region(saved: Path) -> None:
    model = load_model(saved)
    gelu = by_op(find_regions(model), "gelu")
    last = gelu.nodes[-1]
    last.outputs[0].replace_all_uses_with(gelu.nodes[-2].outputs[0], replace_graph_outputs=True)
    model.graph.remove(last, safe=True)
    assert gelu.id not in {region.id for region in find_regions(model)}


def test_an_inner_value_that_is_read_outside_drops_the_region(saved: Path) -> None:
    model = load_model(saved)
    attention = by_op(find_regions(model), "attention")
    softmax = next(node for node in attention.nodes if node.op_type == "Softmax")
    leak = ir.node("Identity", [softmax.outputs[0]])
    model.graph.append(leak)
    assert attention.id not in {region.id for region in find_regions(model)}


def test_a_changed_operator_drops_the_region(saved: Path) -> None:
    model = load_model(saved)
    gelu = by_op(find_regions(model), "gelu")
    next(node for node in gelu.nodes if node.op_type == "Erf").op_type = "Tanh"
    assert gelu.id not in {region.id for region in find_regions(model)}


def test_an_unread_input_drops_the_region(saved: Path) -> None:
    model = load_model(saved)
    attention = by_op(find_regions(model), "attention")
    mask = attention.inputs["mask"]
    reader = next(node for node in attention.nodes if mask in node.inputs)
    reader.replace_input_with(list(reader.inputs).index(mask), attention.nodes[-1].inputs[0])
    assert attention.id not in {region.id for region in find_regions(model)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"inputs": {}}', '{"inputs":{"x":"no"},"outputs":{},"nodes":[]}']
)
def test_damaged_metadata_is_no_region(saved: Path, text: str) -> None:
    model = load_model(saved)
    gelu = by_op(find_regions(model), "gelu")
    for node in gelu.nodes:
        node.metadata_props[ATTRS] = text
    assert gelu.id not in {region.id for region in find_regions(model)}


def test_replaced_whole(saved: Path, tmp_path: Path) -> None:
    model = load_model(saved)
    for region in find_regions(model):
        if region.op == "gelu":
            node = ir.node("Gelu", [region.inputs["x"]], domain="com.microsoft")
            replace(model, region, [node], {"out": node.outputs[0]})
    model.opset_imports["com.microsoft"] = 1
    assert [region.op for region in find_regions(model)] == ["mask", "attention", "attention"]
    path = tmp_path / "replaced.onnx"
    ir.save(model, path)
    given = feeds(3, 9, padding="left")
    right, got = (open_session(file, ONE).run(given) for file in (saved, path))
    for name, values in right.items():
        np.testing.assert_allclose(got[name], values, atol=1e-5)
