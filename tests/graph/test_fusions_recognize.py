"""Attention in foreign graphs: what is recognized, and what a mask is proven to mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.graph import ort_cpu
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.lowering import lower
from onnxkit.graph.recognize import recognize_attention
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain

ONE = RuntimeOptions(threads=1)
CASES = [feeds(1, 7), feeds(3, 9, padding="right"), feeds(3, 10, padding="left", seed=1)]


def recognized(path: Path, spec: EncoderSpec):
    save_plain(build_encoder(spec), path / "in.onnx", regions=False)
    model = load_model(path / "in.onnx")
    return model, recognize_attention(model, CASES, path)


def ops(regions) -> list[str]:
    return [region.op for region in regions]


def test_padding_mask_and_sizes_are_learned(tmp_path):
    _, regions = recognized(tmp_path, EncoderSpec())
    assert ops(regions) == ["mask", "attention", "attention"]
    assert regions[0].inputs["padding"].name == "attention_mask"
    attrs = dict(regions[1].attrs)
    assert attrs.pop("scale") == pytest.approx(8**-0.5)
    assert attrs == {"num_heads": 4, "kv_num_heads": 4, "head_dim": 8, "v_head_dim": 8, "causal": False,
                     "layout": "bsh"}  # fmt: skip


@pytest.mark.parametrize("spec", [EncoderSpec(causal=True), EncoderSpec(window=2)], ids=["causal", "window"])
def test_any_other_mask_is_not_taken_for_padding(tmp_path, spec):
    _, regions = recognized(tmp_path, spec)
    assert ops(regions) == ["attention", "attention"]


SPECS = {
    "padding": (EncoderSpec(), {"packed-attention": 2}),
    "causal": (EncoderSpec(causal=True), {"attention": 2}),
    "window": (EncoderSpec(window=2), {"attention": 2}),
    "position bias": (EncoderSpec(position_bias=True), {"attention": 2}),
    "no mask": (EncoderSpec(padding=False), {"attention": 2}),
    "wide v": (EncoderSpec(v_size=16), {"packed-attention": 2}),
}


@pytest.mark.parametrize("name", SPECS)
def test_recognized_attention_is_exact_with_padding_on_both_sides(tmp_path, name):
    spec, expected = SPECS[name]
    model, regions = recognized(tmp_path, spec)
    assert lower(model, ort_cpu.LOWERINGS, regions=regions).lowered == expected
    save_model(model, tmp_path / "out.onnx")
    sessions = [open_session(tmp_path / file, ONE) for file in ("in.onnx", "out.onnx")]
    for case in CASES:
        taken = {s.name: case[s.name] for s in sessions[0].inputs}
        before, after = (session.run(taken)["last_hidden_state"] for session in sessions)
        valid = case["attention_mask"].astype(bool) if "attention_mask" in taken else slice(None)
        np.testing.assert_allclose(after[valid], before[valid], atol=2e-5)


def sdpa(path: Path, *, inverted: bool = False, first_only: bool = False) -> None:
    """Torch's scaled_dot_product_attention, as torch.onnx writes it: roots of the scale on q and on kᵀ,
    kᵀ through `[B·H,S,D]`, a mask made by arithmetic, a guard after the product."""
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    low = -3.4028235e38
    initializers = {
        "w": weights,
        "one": np.float32(1),
        "low": np.float32(low),
        "root": np.float32(4**-0.25),
        "split": np.array([0, -1, 2, 4]),
        "three": np.array([-1, 5, 4]),
        "four": np.array([-1, 2, 4, 5]),
        "flat": np.array([0, -1, 8]),
        "axes": np.array([1, 2]),
        "zero": np.float32(0),
        "limit": np.float32(low / 2),
        "last": np.array([-1]),
        "first": np.array([0]),
        "end": np.array([1]),
        "batch": np.array([0]),
    }
    rows = [
        ("MatMul", "x w", "q0"), ("Reshape", "q0 split", "q1"), ("Transpose", "q1", "q2", [0, 2, 1, 3]),
        ("Mul", "q2 root", "q"), ("Transpose", "q2", "k1", [0, 1, 2, 3]), ("Reshape", "k1 three3", "k2"),
        ("Transpose", "k2", "k3", [0, 2, 1]), ("Reshape", "k3 four", "k4"), ("Mul", "k4 root", "k"),
        ("Cast", "attention_mask", "m0"), ("Unsqueeze", "m0 axes", "m1"), ("Sub", "one m1", "m2"),
        ("Mul", "m2 low", "mask"), ("MatMul", "q k", "s0"), ("Add", "s0 mask", "s1"), ("Softmax", "s1", "p"),
        ("MatMul", "p q2", "c0"), ("ReduceMax", "mask last", "g0"), ("Less", "g0 limit", "g1"),
        ("Where", "g1 zero c0", "c1"), ("Transpose", "c1", "c2", [0, 2, 1, 3]), ("Reshape", "c2 flat", "y"),
    ]  # fmt: skip
    if inverted:
        rows[11] = ("Identity", "m1", "m2")
    initializers["three3"] = np.array([-1, 5, 4])
    nodes = []
    for op, inputs, output, *order in rows:
        attributes = {"perm": order[0]} if order else {"to": 1} if op == "Cast" else {}
        if op == "Softmax":
            attributes = {"axis": -1}
        nodes.append(helper.make_node(op, inputs.split(), [output], name=output, **attributes))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "sdpa",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 5, 8]),
         helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 5, 8])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in initializers.items() if k in used],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def sdpa_cases() -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    right = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    return [
        {"x": x, "attention_mask": right},
        {"x": x[:, ::-1].copy(), "attention_mask": right[:, ::-1].copy()},
    ]


def test_torchs_sdpa_is_recognized(tmp_path):
    sdpa(tmp_path / "in.onnx")
    model = load_model(tmp_path / "in.onnx")
    # The Transpose that does nothing stands for the one that the decomposition leaves out.
    next(n for n in model.graph if n.name == "k1").outputs[0].replace_all_uses_with(
        next(n for n in model.graph if n.name == "q2").outputs[0]
    )
    regions = recognize_attention(model, sdpa_cases(), tmp_path)
    assert ops(regions) == ["mask", "attention"]
    assert regions[1].attrs["scale"] == pytest.approx(0.5)
    assert lower(model, ort_cpu.LOWERINGS, regions=regions).lowered == {"attention": 1}
    save_model(model, tmp_path / "out.onnx")
    before, after = (open_session(tmp_path / file, ONE) for file in ("in.onnx", "out.onnx"))
    for case in sdpa_cases():
        valid = case["attention_mask"].astype(bool)
        np.testing.assert_allclose(after.run(case)["y"][valid], before.run(case)["y"][valid], atol=1e-5)


def test_a_mask_that_means_the_opposite_is_not_taken_for_padding(tmp_path):
    sdpa(tmp_path / "in.onnx", inverted=True)
    model = load_model(tmp_path / "in.onnx")
    next(n for n in model.graph if n.name == "k1").outputs[0].replace_all_uses_with(
        next(n for n in model.graph if n.name == "q2").outputs[0]
    )
    assert ops(recognize_attention(model, sdpa_cases(), tmp_path)) == ["attention"]


def test_the_model_is_left_as_it_was(tmp_path):
    model, _ = recognized(tmp_path, EncoderSpec())
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx"]
