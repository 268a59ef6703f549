"""Float16 conversion: types at the boundary, what stays float32, and the search for it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.half_precision import overflowing, search_kept, stages, to_half
from onnxkit.graph.upcast import half_to_fp32
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain

ONE = RuntimeOptions(threads=1)


def loaded(tmp_path, spec=None):
    save_plain(build_encoder(spec), tmp_path / "in.onnx")
    return load_model(tmp_path / "in.onnx")


def graph_of(nodes, tensors, *, inputs=("x",), outputs=("y",)) -> ir.Model:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in names]
        for names in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in tensors.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *values, stored),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    "spec", [EncoderSpec(), EncoderSpec(rotary=True, window=2), EncoderSpec(position_bias=True)]
)
def test_result_is_near_and_its_interface_unchanged(tmp_path, spec):
    model = loaded(tmp_path, spec)
    result = to_half(model)
    assert result.converted > 40
    save_model(model, tmp_path / "out.onnx")
    before, after = (open_session(tmp_path / file, ONE) for file in ("in.onnx", "out.onnx"))
    assert before.inputs == after.inputs
    assert [(s.name, s.dtype) for s in before.outputs] == [(s.name, s.dtype) for s in after.outputs]
    case = feeds(3, 9, padding="left")
    valid = case["attention_mask"].astype(bool)
    expected, got = (session.run(case)["last_hidden_state"][valid] for session in (before, after))
    assert np.abs(got - expected).max() < 1e-2 * np.abs(expected).max()


def test_every_weight_is_halved_once(tmp_path):
    model = loaded(tmp_path)
    to_half(model)
    weights = [
        v
        for v in model.graph.initializers.values()
        if v.const_value.size > 1 and v.dtype != ir.DataType.INT64
    ]
    assert {value.dtype for value in weights} == {ir.DataType.FLOAT16}
    assert not [value.name for value in weights if value.name.endswith("/float16")]


def test_kept_nodes_read_and_make_float32(tmp_path):
    model = loaded(tmp_path)
    result = to_half(model, keep={"encoder.layer.0.up"})
    assert result.kept == ("encoder.layer.0.up",)
    node = next(node for node in model.graph if node.name == "encoder.layer.0.up")
    assert {value.dtype for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT}
    assert node.inputs[0].producer().op_type == "Cast"
    save_model(model, tmp_path / "out.onnx")
    open_session(tmp_path / "out.onnx", ONE).run(feeds(2, 5))


def test_masks_become_values_that_sums_do_not_overflow(tmp_path):
    model = loaded(tmp_path, EncoderSpec(window=2))
    to_half(model)
    lowest = min(
        float(value.const_value.numpy().min())
        for value in model.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT16
    )
    assert lowest == -32752.0


@pytest.mark.parametrize(
    ("perm", "shape", "turned"),
    [([1, 0, 2], [2, 5, 4], True), ([1, 2, 0], [4, 2, 5], True), ([0, 2, 1], [2, 4, 5], False)],
)
def test_products_of_turned_batches_stay_float32(tmp_path, perm, shape, turned):
    """ONNX Runtime's fusion of such a product in float16 ends the process."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=perm),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="product"),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    proto = helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip
    model = ir.from_proto(proto)
    assert to_half(model).converted == (0 if turned else 2)
    save_model(model, tmp_path / "half.onnx")
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    got = open_session(tmp_path / "half.onnx", ONE).run({"x": x})["y"]
    np.testing.assert_allclose(got, x.transpose(perm) @ weight, atol=0.01)


@pytest.mark.parametrize("stored", [1e6, 1e-12], ids=["too large", "an epsilon"])
def test_constants_that_float16_does_not_hold_keep_their_node_float32(stored):
    model = graph_of([helper.make_node("Add", ["x", "c"], ["y"], name="sum")], {"c": stored})
    result = to_half(model)
    assert result.kept == ("sum",)
    assert model.graph.initializers["c"].dtype == ir.DataType.FLOAT


def test_delicate_operators_stay_float32():
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("ReduceSum", ["square"], ["y"], name="sum", keepdims=1),
    ]
    model = graph_of(nodes, {})
    assert to_half(model).converted == 1
    kinds = {node.name: {value.dtype for value in node.outputs} for node in model.graph}
    assert kinds["square"] == {ir.DataType.FLOAT16}
    assert kinds["sum"] == {ir.DataType.FLOAT}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_what_counts_positions_is_exact(dtype):
    """T5's buckets of relative positions, and a rotation's angles; what they choose is computed in half."""
    nodes = [
        helper.make_node("Cast", ["positions"], ["distance"], name="distance", to=TensorProto.FLOAT),
        helper.make_node("Div", ["distance", "eight"], ["ratio"], name="ratio"),
        helper.make_node("Log", ["ratio"], ["log"], name="log"),
        helper.make_node("Mul", ["log", "step"], ["part"], name="part"),
        helper.make_node("Cast", ["part"], ["bucket"], name="bucket", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "bucket"], ["bias"], name="bias"),
        helper.make_node("Unsqueeze", ["distance", "last"], ["column"], name="column"),
        helper.make_node("MatMul", ["column", "frequencies"], ["angles"], name="angles"),
        helper.make_node("Sin", ["angles"], ["sine"], name="sine"),
        helper.make_node("Mul", ["bias", "sine"], ["y"], name="product"),
    ]
    generator = np.random.default_rng(0)
    tensors = {
        "eight": 8.0, "step": 8 / np.log(512), "table": generator.standard_normal((9, 4)),
        "frequencies": [[1.0, 0.1, 0.01, 0.001]],
    }  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in tensors.items()]
    stored.append(numpy_helper.from_array(np.array([1]), "last"))
    inputs = [helper.make_tensor_value_info("positions", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    fp32 = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, stored), opset_imports=[helper.make_opsetid("", 18)]
    )
    model = ir.from_proto(fp32)
    result = to_half(model, dtype)
    assert (result.converted, result.kept, result.unable) == (2, (), ())
    positions = np.arange(8, 4096)
    half_to_fp32(model, dtype, rounded=True)
    expected, got = (
        ReferenceEvaluator(p).run(None, {"positions": positions})[0] for p in (fp32, ir.to_proto(model))
    )
    assert np.abs(got - expected).max() < 1e-2 * np.abs(expected).max()


def test_values_that_leave_the_range_are_found_by_running(tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["large"], name="large"),
        helper.make_node("Mul", ["large", "small"], ["back"], name="back"),
        helper.make_node("Relu", ["back"], ["y"], name="end"),
    ]
    model = graph_of(nodes, {"big": 6e4, "small": 1e-4})
    case = {"x": np.full((2, 4), 3.0, np.float32)}
    assert overflowing(model, [case], tmp_path) == ("large", "back")
    assert [node.name for node in model.graph] == ["large", "back", "end"]


def test_subgraphs_keep_reading_float32():
    branch = helper.make_graph(
        [helper.make_node("Add", ["h", "h"], ["twice"])],
        "then",
        [],
        [helper.make_tensor_value_info("twice", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other),
    ]
    model = graph_of(nodes, {})
    flag = ir.Value(name="flag", const_value=ir.tensor(np.array(True), name="flag"))
    model.graph.register_initializer(flag)
    for node in model.graph:
        for position, value in enumerate(node.inputs):
            if value is not None and value.name == "flag":
                node.replace_input_with(position, flag)
    to_half(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    x = np.array([[-1, 2, 3, 4]], np.float32)
    y = open_session(proto.SerializeToString(), ONE).run({"x": x})["y"]
    np.testing.assert_array_equal(y, 2 * np.maximum(x, 0))


def test_stages_are_the_layers(tmp_path):
    parts = stages(loaded(tmp_path, EncoderSpec(layers=3)))
    assert sum(len(part) for part in parts) == len(list(loaded(tmp_path, EncoderSpec(layers=3)).graph))
    assert any("encoder.layer.1.up" in part and "encoder.layer.1.down" in part for part in parts)


@given(st.integers(1, 20), st.data())
def test_the_search_finds_the_smallest_window(count, data):
    needed = data.draw(st.sets(st.integers(0, count - 1)))
    parts = [[f"n{number}"] for number in range(count)]
    trials: list[int] = []

    def passes(keep) -> bool:
        trials.append(len(keep))
        return {f"n{number}" for number in needed} <= set(keep)

    found = search_kept(parts, passes)
    expected = range(min(needed), max(needed) + 1) if needed else range(0)
    assert found == tuple(f"n{number}" for number in expected)
    assert len(trials) <= 2 + 2 * 5


def test_the_search_gives_up_where_nothing_helps():
    assert search_kept([["a"], ["b"]], lambda keep: False) is None


def test_dtypes_are_told_for_every_value(tmp_path):
    for spec in (EncoderSpec(), EncoderSpec(causal=True, rotary=True)):
        model = loaded(tmp_path, spec)
        infer_dtypes(model)
        assert all(value.dtype is not None for node in model.graph for value in node.outputs)
        kinds = {node.op_type: node.outputs[0].dtype for node in model.graph}
        assert kinds.get("Shape", ir.DataType.INT64) == ir.DataType.INT64
        assert kinds["Where"] == ir.DataType.FLOAT
        assert kinds["Unsqueeze"] == ir.DataType.BOOL or spec.causal


def cached(*, also_read: bool) -> ir.Model:
    """A past of four numbers with one added; with `also_read`, an operator reads it that stays float32."""
    nodes = [
        helper.make_node("Concat", ["past_key_values.0.key", "x"], ["present.0.key"], name="join", axis=0)
    ]
    nodes.append(helper.make_node("Relu", ["present.0.key"], ["y"], name="relu"))
    if also_read:
        nodes.append(helper.make_node("Exp", ["past_key_values.0.key"], ["z"], name="exp"))
    outputs = ("y", "present.0.key", *(["z"] if also_read else []))
    return graph_of(nodes, {}, inputs=("x", "past_key_values.0.key"), outputs=outputs)


@pytest.mark.parametrize(
    ("also_read", "keep", "dtype"),
    [
        (False, (), ir.DataType.BFLOAT16),
        (False, ("join",), ir.DataType.FLOAT),
        (False, ("relu",), ir.DataType.BFLOAT16),
        (True, (), ir.DataType.FLOAT),
    ],
)
def test_a_past_and_what_it_becomes_have_one_type(also_read, keep, dtype):
    model = cached(also_read=also_read)
    to_half(model, ir.DataType.BFLOAT16, keep=keep)
    values = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert values["past_key_values.0.key"] == values["present.0.key"] == dtype
    assert {values[name] for name in ("x", "y")} == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_bfloat16_holds_is_no_reason_to_keep_a_node():
    model = graph_of([helper.make_node("Add", ["x", "c"], ["y"], name="sum")], {"c": 1e6})
    assert to_half(model, ir.DataType.BFLOAT16).converted == 1


def test_an_operator_that_takes_no_bfloat16_stays_float32():
    nodes = [helper.make_node("InstanceNormalization", ["x", "one", "zero"], ["y"], name="norm")]
    made = {}
    for dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        model = graph_of(nodes, {"one": np.ones(4), "zero": np.zeros(4)})
        made[dtype] = to_half(model, dtype).converted
    assert list(made.values()) == [1, 0]
