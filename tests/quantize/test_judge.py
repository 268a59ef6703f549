"""Joining the agreement of several batches."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.artifact import ModelDir
from onnxkit.measure.agreement import compare
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.judge import join_outputs
from onnxkit.quantize.search.bench import joined_sqnr
from onnxkit.quantize.yardstick import yardstick_without_data
from tests.model_dirs import table, text_dir
from tests.quantize.graphs import random


def test_batches_join_to_what_the_whole_gives():
    right = np.sign(random(12, 5, 8)).astype(np.float32)  # the same power everywhere
    got = right + random(12, 5, 8, seed=1, scale=0.1)
    cuts = [slice(0, 2), slice(2, 9), slice(9, 12)]
    joined = join_outputs([("y", compare(right[cut], got[cut])) for cut in cuts])
    whole = compare(right, got)
    assert [one.output for one in joined] == ["y"]
    assert joined[0].cosine == pytest.approx(whole.token_cosine)
    assert joined[0].sqnr_db == pytest.approx(whole.sqnr_db)
    assert joined[0].max_abs == whole.max_abs


def test_outputs_stay_apart_and_equal_ones_are_infinitely_good():
    same = compare(random(2, 4), random(2, 4))
    other = compare(random(2, 4), random(2, 4, seed=1))
    joined = join_outputs([("a", same), ("b", other)])
    assert [one.output for one in joined] == ["a", "b"]
    assert math.isinf(joined_sqnr([same]))
    assert joined[1].sqnr_db < 10


@pytest.mark.parametrize(("side", "judged"), [("right", False), ("left", True)])
def test_the_padding_that_the_tokenizer_never_makes_is_not_judged(tmp_path, side, judged):
    """A classifier that reads the first token reads a padding token under left padding."""
    folder = text_dir(tmp_path, "text-classification", table(4), outputs=("logits",))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": side}))
    cases = yardstick_without_data(ModelDir.open(folder), 0).cases["model"]
    assert ("left padding" in dict(cases)) is judged
    assert "right padding" in dict(cases)


@pytest.mark.parametrize(("ids", "shape"), [([2, 7], "2x7"), ([2, "tokens"], "2x128"), (None, "no inputs")])
def test_a_graph_is_timed_on_the_sizes_that_it_fixes(tmp_path, ids, shape):
    """Other tools' graphs: of one batch size alone, or without any input."""
    table = numpy_helper.from_array(random(200, 64), "table")
    weight = numpy_helper.from_array(random(64, 64, seed=1), "weight")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["h"]),
        helper.make_node("MatMul", ["h", "weight"], ["y"], name="dense"),
    ]
    stored = [table, weight]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids)] if ids else []
    if not ids:
        stored.append(numpy_helper.from_array(np.arange(6).reshape(1, 6), "input_ids"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    report = quantize_model(tmp_path / "m.onnx", tmp_path / "out", QuantizeOptions())
    assert report.measurement is not None and report.measurement.speed is not None
    assert report.measurement.speed.shape == shape
