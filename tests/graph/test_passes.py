"""Clean-up passes: same numbers, fewer nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxkit.graph.edit import Editor, small_array
from onnxkit.graph.passes import (
    DropNoOps,
    FoldConstants,
    FoldWeightArithmetic,
    FoldWeightTransposes,
    KeepPaddedPools,
    StaticReshapeTargets,
    TiedProjections,
    WidenUnsupportedBfloat16,
    clean_up,
)
from onnxkit.graph.passes.reshape_targets import static_target
from tests.graph.semantic_graphs import Array, run

RNG = np.random.default_rng(0)


def parsed(text: str, **weights: Array) -> ir.Model:
    """A model from onnx's text form, with these initializers added."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def unused_removed(model: ir.Model) -> ir.Model:
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return model


def test_constants_fold_through_chains(tmp_path: Path) -> None:
    model = parsed("""g (float[N, 6] x) => (float[N, 6] y) {
        two = Constant <value = int64 {2}> ()
        minus = Constant <value = int64[1] {-1}> ()
        one = Reshape (two, minus)
        three = Constant <value = int64[1] {3}> ()
        target = Concat <axis = 0> (minus, one, three)
        z = Reshape (x, target)
        six = Mul (one, three)
        back = Concat <axis = 0> (minus, six)
        y = Reshape (z, back)
    }""")
    FoldConstants()(model)
    assert operators(unused_removed(model)) == {"Reshape": 2}
    assert small_array(next(iter(model.graph)).inputs[1]).tolist() == [-1, 2, 3]
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}, tmp_path), x)


def test_equal_constants_are_one_initializer() -> None:
    model = parsed("""g (float[N] x) => (float[N] y) {
        a = Constant <value_float = 2.0> ()
        b = Constant <value_float = 2.0> ()
        z = Mul (x, a)
        y = Add (z, b)
    }""")
    FoldConstants()(model)
    assert len(unused_removed(model).graph.initializers) == 1


def test_a_shape_of_known_sizes_folds_and_one_of_symbols_does_not() -> None:
    model = parsed("""g (float[N, 6] x) => (int64[1] y, int64[2] z) {
        y_ = Shape <start = 1> (x)
        y = Identity (y_)
        z = Shape (x)
    }""")
    FoldConstants()(model)
    assert operators(unused_removed(model)) == {"Identity": 1, "Shape": 1}


def test_random_and_large_results_are_left() -> None:
    model = parsed("""g () => (float[3] y, float[100, 100] z) {
        y_ = RandomNormal <shape = [3]> ()
        y = Identity (y_)
        size = Constant <value = int64[2] {100, 100}> ()
        z_ = ConstantOfShape (size)
        z = Identity (z_)
    }""")
    FoldConstants()(model)
    assert operators(model)["RandomNormal"] == 1
    assert operators(model)["ConstantOfShape"] == 1


def test_no_ops_go(tmp_path: Path) -> None:
    model = parsed("""g (float[N, 3, 4] x) => (float[N, 3, 4] y) {
        a = Identity (x)
        ratio = Constant <value_float = 0.5> ()
        b = Dropout (a, ratio)
        c = Cast <to = 1> (b)
        d = Transpose <perm = [0, 1, 2]> (c)
        y = Neg (d)
    }""")
    FoldConstants()(model)
    DropNoOps()(model)
    assert operators(unused_removed(model)) == {"Neg": 1}
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}, tmp_path), -x)


def test_what_does_something_stays() -> None:
    model = parsed("""g (float[N, 3, 3] x) => (int32[N, 3, 3] y) {
        a = Transpose <perm = [0, 2, 1]> (x)
        y = Cast <to = 6> (a)
    }""")
    DropNoOps()(model)
    assert operators(model) == {"Transpose": 1, "Cast": 1}


sizes = st.lists(st.sampled_from([2, 3, 4, "b", "s"]), min_size=1, max_size=4)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 3))
def test_static_targets_agree_with_the_traced_shape(
    before: list[Any], after: list[Any], b: int, s: int
) -> None:
    known = {"b": b, "s": s}
    source, target = ([known.get(size, size) for size in shape] for shape in (before, after))
    constant = static_target(tuple(before), tuple(after))
    if constant is None or np.prod(source) != np.prod(target):
        return
    filled = [source[axis] if size == 0 else size for axis, size in enumerate(constant)]
    assert np.zeros(source).reshape(filled).shape == tuple(target)


def test_a_target_with_two_unknown_axes_is_left() -> None:
    assert static_target(("a", "b"), ("c", "d")) is None
    assert static_target(("b", "s", 12), ("b", "s", 3, 4)) == [0, 0, 3, 4]
    assert static_target(("b", 0), (0, "b")) is None


def test_shape_arithmetic_dies_with_its_reshape(tmp_path: Path) -> None:
    model = parsed("""g (float[B, S, 12] x) => (float[B, S, 3, 4] y) {
        lead = Shape <start = 0, end = 2> (x)
        tail = Constant <value = int64[2] {3, 4}> ()
        target = Concat <axis = 0> (lead, tail)
        y = Reshape <allowzero = 1> (x, target)
    }""")
    FoldConstants()(model)
    StaticReshapeTargets()(model)
    assert operators(unused_removed(model)) == {"Reshape": 1}
    x = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}, tmp_path), x.reshape(2, 5, 3, 4))


def test_a_weight_is_transposed_once_though_layers_share_it(tmp_path: Path) -> None:
    weight = RNG.standard_normal((4, 4)).astype(np.float32)
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) {
        a = Transpose <perm = [1, 0]> (w)
        b = Transpose <perm = [1, 0]> (w)
        z = MatMul (x, a)
        y = MatMul (z, b)
    }""",
        w=weight,
    )
    FoldWeightTransposes()(model)
    assert operators(unused_removed(model)) == {"MatMul": 2}
    assert list(model.graph.initializers) == ["w"]
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path), x @ weight.T @ weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_tied_projection_reads_the_embedding(shape: tuple[int, ...], biased: bool, tmp_path: Path) -> None:
    weight, bias = (RNG.standard_normal(s).astype(np.float32) for s in ((9, 4), (9,)))
    dims = ", ".join("NM"[: len(shape) - 1])
    last = "y = Add (bias, z)" if biased else "y = Identity (z)"
    model = parsed(
        f"""g (float[{dims}, 4] x, int64[K] ids) => (float[{dims}, 9] y, float[K, 4] e) {{
        e = Gather <axis = 0> (w, ids)
        t = Transpose <perm = [1, 0]> (w)
        z = MatMul (x, t)
        {last}
    }}""",
        w=weight,
        bias=bias,
    )
    FoldWeightTransposes()(model)
    TiedProjections()(model)
    found = operators(unused_removed(model))
    assert found["Gemm"] == 1
    assert not found["Transpose"]
    assert not found["Add"]
    x = RNG.standard_normal(shape).astype(np.float32)
    expected = x @ weight.T + (bias if biased else 0)
    got = run(model, {"x": x, "ids": np.array([1])}, tmp_path)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_cleaning_twice_changes_nothing_more() -> None:
    model = parsed("""g (float[B, S, 12] x) => (float[B, S, 12] y) {
        lead = Shape <start = 0, end = 2> (x)
        tail = Constant <value = int64[1] {12}> ()
        target = Concat <axis = 0> (lead, tail)
        z = Reshape (x, target)
        y = Neg (z)
    }""")
    clean_up(model)
    once = operators(model)
    clean_up(model)
    assert operators(model) == once


def test_replacing_a_graph_output_keeps_its_name() -> None:
    model = parsed("""g (float[N] x) => (float[N] y) {
        a = Neg (x)
        y = Identity (a)
    }""")
    DropNoOps()(model)
    assert [v.name for v in unused_removed(model).graph.outputs] == ["y"]


def test_editor_looks_into_small_constants_only() -> None:
    model = parsed("g (float[N] x) => (float[N] y) { y = Neg (x) }", big=np.zeros(5000, np.float32))
    editor = Editor(model.graph)
    assert small_array(editor.constant([1, 2])).tolist() == [1, 2]
    assert small_array(model.graph.initializers["big"]) is None
    assert small_array(model.graph.inputs[0]) is None
    assert helper.np_dtype_to_tensor_dtype(small_array(editor.constant(1.5, ir.DataType.FLOAT)).dtype) == 1


def test_an_identity_in_front_of_packed_codes_stays() -> None:
    """Without it ONNX Runtime packs codes without their scales where it folds nothing."""
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=32, N=2, bits=8, block_size=32
    )
    nodes = [
        helper.make_node("Identity", ["codes"], ["q"]),
        helper.make_node("Cast", ["scales"], ["s"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Identity", ["input"], ["x"]),
        node,
    ]
    weights = {"codes": np.zeros((2, 1, 32), np.uint8), "scales": np.ones((2, 1), np.float16)}
    sides = (("input", 32), ("y", 2))
    taken, given_ = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size]) for name, size in sides
    )
    graph = helper.make_graph(
        nodes, "g", [taken], [given_], [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()]
    )
    model = ir.from_proto(helper.make_model(graph))
    DropNoOps()(model)
    assert operators(unused_removed(model)) == {"Identity": 1, "Cast": 1, "MatMulNBits": 1}


def test_a_normalized_weight_is_computed_once(tmp_path: Path) -> None:
    text = """g (float[N, 4, 9] x, float[N] z) => (float[N, 6, 7] y, float[6, 4, 3] w) {
        axes = Constant <value = int64[2] {1, 2}> ()
        norm = ReduceL2 <keepdims = 1> (v, axes)
        scale = Div (g, norm)
        weight = Mul (v, scale)
        doubled = Add (v, v)
        h = Conv (x, weight)
        depends = Mul (doubled, z)
        w = Add (doubled, v)
        i = Conv (x, w)
        j = Conv (x, depends)
        k = Add (h, i)
        y = Add (k, j)
    }"""
    weights = {"v": RNG.standard_normal((6, 4, 3)), "g": RNG.standard_normal((6, 1, 1))}
    given = {name: array.astype(np.float32) for name, array in weights.items()}
    model = parsed(text, **given)
    before = ir.to_proto(model)
    x = {"x": RNG.standard_normal((1, 4, 9)).astype(np.float32), "z": np.ones(1, np.float32)}
    FoldWeightArithmetic()(model)
    unused_removed(model)
    # Neither a graph output is folded nor what depends on an input.
    assert operators(model) == {"Conv": 3, "Add": 4, "Mul": 1}
    assert "weight" in model.graph.initializers
    expected = run(ir.from_proto(before), x, tmp_path)
    np.testing.assert_allclose(run(model, x, tmp_path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("opset", "casts"), [(18, 3), (22, 0)])
def test_a_convolution_that_takes_no_bfloat16_computes_in_float32(opset: int, casts: int) -> None:
    half = onnx.TensorProto.BFLOAT16
    weight = helper.make_tensor("w", half, [2, 3, 2], [0.5] * 12)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    sides = [helper.make_tensor_value_info(n, half, ["b", c, None]) for n, c in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    WidenUnsupportedBfloat16()(model)
    made = ir.to_proto(model)
    assert operators(model)["Cast"] == casts
    onnx.checker.check_model(made, full_check=True)
    assert made.graph.initializer[0].data_type == half


@pytest.mark.parametrize("pads", ["", "pads = [0, 0, 0, 0],"])
def test_zeros_around_a_maximum_pool_stay_zeros(pads: str, tmp_path: Path) -> None:
    """ONNX Runtime would make minus infinity of them."""
    model = parsed(f"""g (float[N, 1, 4, 4] x) => (float[N, 1, 2, 2] y) {{
        around = Constant <value = int64[8] {{0, 0, 1, 1, 0, 0, 0, 0}}> ()
        zero = Constant <value = float {{0}}> ()
        padded = Pad (x, around, zero)
        y = MaxPool <kernel_shape = [3, 3], {pads} strides = [2, 2]> (padded)
    }}""")
    KeepPaddedPools()(model)
    x = -1 - RNG.random((2, 1, 4, 4), dtype=np.float32)
    got = run(model, {"x": x}, tmp_path)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(got, windows.max(axis=(-2, -1)))


def test_pools_that_pad_themselves_keep_to_that() -> None:
    model = parsed("""g (float[N, 1, 4, 4] x) => (float[N, 1, 3, 3] y) {
        around = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 0, 0}> ()
        padded = Pad (x, around)
        y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (padded)
    }""")
    assert not KeepPaddedPools()(model).modified
