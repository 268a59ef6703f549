"""Fusions by pattern, against ONNX Runtime's results without them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.graph import fusions, ort_cpu
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.lowering import lower
from onnxkit.graph.passes import FoldConstants
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import build_encoder, feeds, save_plain

ONE = RuntimeOptions(threads=1)


def scalar(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def gelu_graph(path: Path, form: str) -> None:
    """GELU as exporters write it: torch.jit's, torch.export's, the tanh form, the standard operator."""
    node, constants = helper.make_node, {"half": 0.5, "one": 1.0, "root": math.sqrt(2.0)}
    forms = {
        "half last": [("Div", "x root"), ("Erf", "0"), ("Add", "1 one"), ("Mul", "x 2"), ("Mul", "3 half")],
        "half first": [("Div", "x root"), ("Erf", "0"), ("Add", "1 one"), ("Mul", "half 2"), ("Mul", "x 3")],
        "standard": [("Gelu", "x")],
    }
    nodes = [
        node(op, [f"t{name}" if name.isdigit() else name for name in inputs.split()], [f"t{number}"])
        for number, (op, inputs) in enumerate(forms[form])
    ]
    nodes.append(node("Identity", [f"t{len(nodes) - 1}"], ["y"]))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 8]) for name in "xy"]
    used = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes, "gelu", shapes[:1], shapes[1:], [scalar(k, v) for k, v in constants.items() if k in used]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


@pytest.mark.parametrize("form", ["half last", "half first", "standard"])
def test_gelu_is_found_in_every_form(tmp_path, form):
    gelu_graph(tmp_path / "in.onnx", form)
    model = load_model(tmp_path / "in.onnx")
    assert fusions.fuse_gelu(model) == 1
    assert [n.op_type for n in model.graph if n.domain == "com.microsoft"] == ["Gelu"]
    save_model(model, tmp_path / "out.onnx")
    x = np.linspace(-6, 6, 64, dtype=np.float32).reshape(8, 8)
    expected = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.flat]).reshape(x.shape)
    np.testing.assert_allclose(
        open_session(tmp_path / "out.onnx", ONE).run({"x": x})["y"], expected, atol=1e-6
    )


def lowered(tmp_path: Path, *rows: fusions.Fusion) -> tuple[ir.Model, Counter[str]]:
    save_plain(build_encoder(), tmp_path / "in.onnx")
    model = load_model(tmp_path / "in.onnx")
    FoldConstants()(model)
    lower(model, ort_cpu.LOWERINGS)
    found = Counter({row.name: row.apply(model) for row in rows})
    save_model(model, tmp_path / "out.onnx")
    return model, found


def assert_equal(tmp_path: Path, atol: float) -> None:
    case = feeds(3, 9, padding="left")
    before, after = (
        open_session(tmp_path / name, ONE).run(case)["last_hidden_state"] for name in ("in.onnx", "out.onnx")
    )
    valid = case["attention_mask"].astype(bool)
    np.testing.assert_allclose(after[valid], before[valid], atol=atol)


def test_fast_gelu_keeps_names_and_is_near(tmp_path):
    model, found = lowered(tmp_path, fusions.FAST_GELU)
    assert found == {"fast-gelu": 2}
    assert [n.name for n in model.graph if n.op_type == "FastGelu"] == [
        "encoder.layer.0.act/gelu",
        "encoder.layer.1.act/gelu",
    ]
    assert_equal(tmp_path, 2e-3)


def test_bias_gelu_and_skip_layer_norm_are_exact(tmp_path):
    model, found = lowered(tmp_path, fusions.BIAS_GELU, fusions.SKIP_LAYER_NORM)
    # The first sum reads the embedding, which is no residual stream by its operator.
    assert found == {"bias-gelu": 2, "skip-layer-norm": 3}
    assert Counter(n.op_type for n in model.graph)["LayerNormalization"] == 1
    assert_equal(tmp_path, 2e-5)


def test_a_sum_with_another_user_is_kept_as_the_fourth_output(tmp_path):
    model = build_encoder()
    total = next(n for n in model.graph if n.name.endswith("1.n2")).inputs[0]
    model.graph.outputs.append(total)
    total.shape = ir.Shape(["batch_size", "sequence_length", 32])
    save_plain(model, tmp_path / "in.onnx")
    changed = load_model(tmp_path / "in.onnx")
    fusions.SKIP_LAYER_NORM.apply(changed)
    save_model(changed, tmp_path / "out.onnx")
    before, after = (open_session(tmp_path / n, ONE).run(feeds(2, 5)) for n in ("in.onnx", "out.onnx"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=2e-5)
