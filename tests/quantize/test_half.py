"""Half precision: what stays float32 is found, named and reasoned; the rest computes what float32 does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from onnxkit.errors import InputError
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.half_precision import to_half
from onnxkit.graph.upcast import bf16_to_fp32, half_to_fp32
from onnxkit.measure.agreement import compare
from onnxkit.progress import Progress
from onnxkit.quantize.half import LIMIT, announce, convert
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain
from tests.heard import Heard
from tests.quantize.graphs import proto, random, session

ONE = RuntimeOptions(threads=1)
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def chain(count: int = 6, **weights: np.ndarray) -> onnx.ModelProto:
    """x [b, 16] through `layer.0.dense`, `layer.0.act`, `layer.1.dense`, ...; weights by layer number."""
    nodes, held, value = [], {}, "x"
    for number in range(count):
        held[f"w{number}"] = weights.get(f"w{number}", random(16, 16, seed=number, scale=0.25))
        nodes.append(
            helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"], name=f"layer.{number}.dense")
        )
        value = "y" if number == count - 1 else f"h{number}"
        nodes.append(helper.make_node("Relu", [f"m{number}"], [value], name=f"layer.{number}.act"))
    return proto(nodes, held, inputs={"x": ["b", 16]})


def converted(model: onnx.ModelProto, dtype: str, folder, *, keep=None, x=None, progress=None):
    x = random(8, 16, seed=9) if x is None else x
    return convert(
        lambda: ir.from_proto(model), session(model), dtype, [("one", {"x": x})], folder,
        keep=keep or {}, runtime=ONE, progress=progress or Progress(),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_an_encoder_is_converted_whole_and_stays_within_tolerance(tmp_path, dtype):
    save_plain(build_encoder(EncoderSpec()), tmp_path / "in.onnx")
    case = feeds(3, 9, padding="right")
    outcome = convert(
        lambda: load_model(tmp_path / "in.onnx"), open_session(tmp_path / "in.onnx", ONE), dtype,
        [("right", case)], tmp_path, keep={}, runtime=ONE, progress=Progress(),
    )  # fmt: skip
    assert outcome.converted > 40 and not outcome.kept
    assert 0 < outcome.lost < 1e-2
    save_model(outcome.model, tmp_path / "out.onnx")
    made = load_model(tmp_path / "out.onnx")
    weights = [v.const_value for v in made.graph.initializers.values()]
    assert {w.dtype for w in weights if len(w.shape) == 2} == {TYPES[dtype]}
    if dtype == "bf16":
        bf16_to_fp32(made)
        save_model(made, tmp_path / "out.onnx")
    before, after = (open_session(tmp_path / f"{name}.onnx", ONE) for name in ("in", "out"))
    assert before.inputs == after.inputs
    valid = case["attention_mask"].astype(bool)
    right, got = (each.run(case)["last_hidden_state"][valid] for each in (before, after))
    assert compare(right, got).relative < {"fp16": 1e-2, "bf16": LIMIT}[dtype]


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        (4, 16),
        elements=st.one_of(
            st.floats(-100, 100, width=32),
            st.sampled_from(
                (0.0, -0.0, 1e-7, 6e-8, 1.00048828125, 1.00146484375, 65504.0, 1.00390625, 1.01171875)
            ),
        ),
    ),
    st.sampled_from(("fp16", "bf16")),
)
def test_weights_are_rounded_to_nearest_even(weight, dtype):
    model = ir.from_proto(
        proto(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], {"w": weight}, inputs={"x": ["b", 4]}
        )
    )
    to_half(model, TYPES[dtype])
    half_to_fp32(model, TYPES[dtype])
    got = session(ir.to_proto(model)).run({"x": np.eye(4, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(got, weight.astype(NUMPY[dtype]).astype(np.float32))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_judged_graph_rounds_every_result(dtype):
    model = chain(2)
    graph = ir.from_proto(model)
    to_half(graph, TYPES[dtype])
    half_to_fp32(graph, TYPES[dtype], rounded=True)
    x = random(8, 16, seed=9)

    def rounded(array):
        return array.astype(NUMPY[dtype]).astype(np.float32)

    weights = [rounded(random(16, 16, seed=number, scale=0.25)) for number in range(2)]
    h = rounded(x)
    for weight in weights:
        h = np.maximum(rounded(h @ weight), 0)
    np.testing.assert_allclose(
        session(ir.to_proto(graph)).run({"x": x})["y"], h, atol={"fp16": 2e-3, "bf16": 2e-2}[dtype]
    )


def test_nodes_that_overflow_float16_stay_float32_and_bfloat16_takes_them(tmp_path):
    model = chain(w2=random(16, 16, seed=2) * 3e4, w3=random(16, 16, seed=3) * np.float32(1e-5))
    outcome = converted(model, "fp16", tmp_path)
    reasons = {layer.name: layer.reason for layer in outcome.kept}
    assert {"layer.2.dense", "layer.2.act", "layer.3.dense"} <= set(reasons)
    assert "65504" in reasons["layer.2.act"]
    assert outcome.lost < LIMIT
    assert not converted(model, "bf16", tmp_path).kept


def loses(number: int) -> dict[str, np.ndarray]:
    """Layer `number` subtracts what is nearly the same: half precision loses the difference."""
    twice, difference = random(16, 16, seed=50), np.zeros((16, 16), np.float32)
    twice[:, 8:] = twice[:, :8] * np.float32(1.0005)
    difference[:8, :8], difference[8:, :8] = np.eye(8) * -1000, np.eye(8) * 1000
    return {f"w{number}": np.abs(twice), f"w{number + 1}": difference}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_nodes_that_lose_too_much_are_found(tmp_path, dtype):
    outcome = converted(chain(6, **loses(2)), dtype, tmp_path)
    names = [layer.name for layer in outcome.kept]
    assert set(names) >= {"fp16": {"layer.2.dense", "layer.3.dense"}, "bf16": {"layer.2.dense"}}[dtype]
    assert len(names) <= 6 and "layer.5.dense" not in names
    assert "loses" in outcome.kept[0].reason and "y" in outcome.kept[0].reason
    assert outcome.lost <= LIMIT


def test_what_the_user_keeps_stays_float32_for_the_users_reason(tmp_path):
    outcome = converted(chain(), "fp16", tmp_path, keep={"layer.1.dense": "excluded by pattern"})
    assert [(layer.name, layer.op_type, layer.reason) for layer in outcome.kept] == [
        ("layer.1.dense", "MatMul", "excluded by pattern")
    ]
    node = next(node for node in outcome.model.graph if node.name == "layer.1.dense")
    assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, bad):
    weight = random(16, 16)
    weight[3, 4] = bad
    with pytest.raises(InputError, match=r"'layer.4.dense'.*NaN or infinite.*'w4'"):
        converted(chain(w4=weight), "bf16", tmp_path)


def test_a_stored_mask_is_no_bad_weight(tmp_path):
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), k=1)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["s"], name="add"),
        helper.make_node("Softmax", ["s"], ["y"], name="softmax"),
    ]
    model = proto(nodes, {"mask": mask}, inputs={"x": ["b", 16]})
    outcome = converted(model, "fp16", tmp_path, x=random(16, 16))
    assert outcome.converted == 2 and not outcome.kept


def test_a_table_may_hold_masks(tmp_path):
    """Graphormer's biases by distance: -inf where a pair is out of reach."""
    table = random(16, 16)
    table[3] = -np.inf
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], name="pick", axis=-1, keepdims=0),
        helper.make_node("Gather", ["t", "i"], ["g"], name="look-up"),
        helper.make_node("Max", ["g", "x"], ["y"], name="max"),
    ]
    model = proto(nodes, {"t": table}, inputs={"x": ["b", 16]})
    x = np.eye(16, dtype=np.float32)
    outcome = converted(model, "fp16", tmp_path, x=x)
    assert outcome.converted > 0


def test_a_stored_value_out_of_range_is_the_reason(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="dense"),
        helper.make_node("Min", ["m", "big"], ["y"], name="clip"),
    ]
    held = {"w": random(16, 16), "big": np.array(1e6, np.float32)}
    outcome = converted(proto(nodes, held, inputs={"x": ["b", 16]}), "fp16", tmp_path)
    assert [(layer.name, layer.reason) for layer in outcome.kept] == [
        ("clip", "float16 does not hold a value stored for it")
    ]


def test_the_cpu_warnings_say_what_to_expect():
    said = Heard()
    announce("fp16", None, said)
    announce("bf16", "avx2", said)
    assert "no faster" in said.warnings[0] and "GPU" in said.warnings[1]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_gpu_is_not_told_what_holds_for_a_cpu(dtype):
    said = Heard()
    announce(dtype, "cuda", said)
    assert not said.warnings and "--ep cuda" in said.notes[0]


def test_a_convolution_that_takes_no_bfloat16_is_named(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    model = proto(nodes, {"w": random(8, 3, 3, 3)}, inputs={"x": ["b", 3, 8, 8]})
    x = random(1, 3, 8, 8, seed=1)
    [kept] = converted(model, "bf16", tmp_path, x=x).kept
    assert (kept.name, kept.reason) == ("conv", "Conv takes no bfloat16 in opset 18")
    assert not converted(model, "fp16", tmp_path, x=x).kept
