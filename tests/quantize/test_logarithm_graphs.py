"""Logarithmic weights in graphs: decoded exactly as numpy decodes them, by every operator that reads one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxkit.errors import InputError
from onnxkit.quantize.codes.logarithm import quantize
from onnxkit.quantize.formats import LogFormat
from onnxkit.quantize.operators import OPERATORS, Target
from onnxkit.quantize.rewrite import prepare, rewrite
from tests.quantize.graphs import proto, random, session


def in_codes(model: onnx.ModelProto, fmt: LogFormat, *, only: str = "") -> onnx.ModelProto:
    """The graph with its weights in codes: all of them, or one layer's."""
    graph = prepare(ir.from_proto(model), "model.onnx")
    found = [
        OPERATORS[key].recognize(node)
        for node in graph.graph
        if (key := (node.domain, node.op_type)) in OPERATORS
    ]
    targets = [target for target in found if isinstance(target, Target) and only in target.name]
    rewrite(graph, targets, {target.name: fmt for target in targets})
    return ir.to_proto(graph)


def rounded(weight: np.ndarray, fmt: LogFormat, axis: int = 0) -> np.ndarray:
    """What numpy decodes: channels along `axis`."""
    rows = weight.T if axis == 1 else weight.reshape(len(weight), -1)
    made = quantize(rows, fmt.bits, fmt.size).dequantized()
    return made.T if axis == 1 else made.reshape(weight.shape)


def stored(model: onnx.ModelProto) -> dict[str, tuple[list[int], int]]:
    return {t.name: (list(t.dims), t.data_type) for t in model.graph.initializer}


FORMATS = st.builds(LogFormat, bits=st.sampled_from((4, 8)), size=st.sampled_from((16, 32, 64)))


@settings(max_examples=40, deadline=None)
@given(
    FORMATS,
    st.integers(1, 6),
    st.integers(1, 80),
    st.sampled_from(("plain", "outlier", "zeros", "ties", "tiny")),
    st.sampled_from(("MatMul", "Gemm", "Transpose")),
    st.integers(0, 99),
)
def test_the_graph_decodes_exactly_what_numpy_does(fmt, channels, depth, kind, form, seed):
    weight = random(channels, depth, seed=seed)
    match kind:
        case "outlier":
            weight[0, depth // 2] = -300.0
        case "zeros":
            weight[0] = 0.0
        case "ties":
            weight = np.rint(weight * 2) / np.float32(2)
        case "tiny":
            weight *= np.float32(1e-7)
    nodes, held = {
        "MatMul": ([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], weight.T),
        "Gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1)], weight),
        "Transpose": (
            [
                helper.make_node("Transpose", ["w"], ["t"], name="t", perm=[1, 0]),
                helper.make_node("MatMul", ["x", "t"], ["y"], name="n"),
            ],
            weight,
        ),
    }[form]
    model = proto(nodes, {"w": np.ascontiguousarray(held)}, inputs={"x": ["rows", depth]})
    made = in_codes(model, fmt)
    assert "w" not in stored(made)
    got = session(made).run({"x": np.eye(depth, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(got, rounded(weight, fmt).T)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("depth", [32, 41])
@pytest.mark.parametrize("shape", [(3,), (2, 4), ()])
def test_a_lookup_decodes_the_rows_that_it_reads(bits, depth, shape):
    table, fmt = random(50, depth), LogFormat(bits=bits, size=16)
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")
    model = proto([node], {"table": table}, inputs={"ids": [f"d{i}" for i in range(len(shape))]}, ids=True)
    made = in_codes(model, fmt)
    ids = np.random.default_rng(1).integers(0, 50, shape)
    got = session(made).run({"ids": ids})["y"]
    np.testing.assert_array_equal(got, rounded(table, fmt)[ids])
    assert made.graph.node[0].op_type == "Gather"  # codes first: the whole table is never decoded


def test_a_kernel_of_any_rank_is_decoded():
    kernel, fmt = random(6, 3, 3, 3), LogFormat(bits=4, size=16)
    node = helper.make_node("Conv", ["x", "k"], ["y"], name="conv", pads=[1, 1, 1, 1])
    shapes = {"x": ["b", 3, 8, 8]}
    made = session(in_codes(proto([node], {"k": kernel}, inputs=shapes), fmt))
    same = session(proto([node], {"k": rounded(kernel, fmt)}, inputs=shapes))
    x = random(2, 3, 8, 8, seed=3)
    np.testing.assert_array_equal(made.run({"x": x})["y"], same.run({"x": x})["y"])


def test_packed_attention_reads_its_projection_decoded():
    weight, fmt = random(32, 96, scale=0.2), LogFormat(bits=8, size=32)
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], name="attention", domain="com.microsoft", num_heads=4
    )
    held = {"w": weight, "b": random(96)}
    shapes = {"x": ["b", "s", 32]}
    made = session(in_codes(proto([node], held, inputs=shapes), fmt))
    same = session(proto([node], {**held, "w": rounded(weight, fmt, axis=1)}, inputs=shapes))
    x = random(2, 5, 32, seed=3)
    np.testing.assert_array_equal(made.run({"x": x})["y"], same.run({"x": x})["y"])


def tied() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
        helper.make_node("Transpose", ["table"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="head"),
        helper.make_node("MatMul", ["h", "t"], ["z"], name="other"),
    ]
    return proto(nodes, {"table": random(50, 32)}, inputs={"ids": ["b", "s"]}, outputs=("y", "z"), ids=True)


def test_a_tied_table_is_stored_once():
    fmt = LogFormat(bits=4, size=32)
    made = in_codes(tied(), fmt)
    assert stored(made)["table.log4"] == ([50, 1, 16], onnx.TensorProto.UINT8)
    assert stored(made)["table.log4.scale"] == ([50, 1, 1, 1], onnx.TensorProto.FLOAT16)
    assert len([name for name in stored(made) if name.startswith("table")]) == 2
    ids = np.array([[1, 7, 49]])
    table = rounded(random(50, 32), fmt)
    found = session(made).run({"ids": ids})
    np.testing.assert_allclose(found["y"], table[ids] @ table.T, atol=1e-4)
    np.testing.assert_array_equal(found["y"], found["z"])


def test_layers_that_stay_float_read_the_weight_as_it_was():
    table, fmt = random(50, 32), LogFormat(bits=4, size=32)
    found = session(in_codes(tied(), fmt, only="head")).run({"ids": np.array([[1, 7, 49]])})
    h = table[[[1, 7, 49]]]
    np.testing.assert_allclose(found["z"], h @ table.T, atol=1e-4)
    np.testing.assert_allclose(found["y"], h @ rounded(table, fmt).T, atol=1e-4)


def test_a_weight_that_is_nan_is_named():
    weight = random(32, 8)
    weight[3, 3] = np.nan
    model = proto(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer.up")],
        {"w": weight},
        inputs={"x": ["b", 32]},
    )
    with pytest.raises(InputError, match=r"'layer.up': a weight is NaN or infinite \(tensor 'w'\)"):
        in_codes(model, LogFormat(bits=8, size=32))
