"""`SharedData`: equal tensors of several graphs in one file, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.shared_data import SharedData
from onnxkit.runtime import RuntimeOptions, open_session

W = np.arange(600, dtype=np.float32).reshape(20, 30)


def graph(name: str, weight: np.ndarray) -> ir.Model:
    x = onnx.helper.make_tensor_value_info("x", 1, ["n", weight.shape[0]])
    y = onnx.helper.make_tensor_value_info("y", 1, ["n", weight.shape[1]])
    node = onnx.helper.make_node("MatMul", ["x", name], ["y"])
    made = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, name)])
    return ir.from_proto(
        onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    )


def test_two_graphs_refer_to_one_copy(tmp_path: Path) -> None:
    shared = SharedData(tmp_path / "weights.data")
    save_model(graph("a", W), tmp_path / "a.onnx", shared=shared)
    save_model(graph("b", W), tmp_path / "b.onnx", shared=shared)
    save_model(graph("c", W + 1), tmp_path / "c.onnx", shared=shared)
    assert (tmp_path / "weights.data").stat().st_size < 2 * W.nbytes + 64
    x = np.ones((1, 20), np.float32)
    for name, weight in (("a", W), ("b", W), ("c", W + 1)):
        session = open_session(tmp_path / f"{name}.onnx", RuntimeOptions(threads=1))
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-6)
        initializers = load_model(tmp_path / f"{name}.onnx").graph.initializers
        np.testing.assert_array_equal(initializers[name].const_value.numpy(), weight)


@given(st.lists(st.sampled_from(["f2", "f4", "i8"]), min_size=1, max_size=6), st.integers(0, 3))
def test_type_and_shape_tell_equal_bytes_apart(tmp_path_factory, dtypes, seed) -> None:  # type: ignore[no-untyped-def]
    shared = SharedData(tmp_path_factory.mktemp("shared") / "w.data")
    arrays = [np.full((4, seed + 1), index % 2, dtype) for index, dtype in enumerate(dtypes)]
    arrays += [array.reshape(-1) for array in arrays]
    for array in arrays:
        placed = shared.place(ir.tensor(array))
        assert placed.numpy().dtype == array.dtype
        np.testing.assert_array_equal(placed.numpy(), array)
    assert shared.mark() == shared.path.stat().st_size


def test_what_a_failed_attempt_wrote_is_cut_off(tmp_path: Path) -> None:
    shared = SharedData(tmp_path / "w.data")
    kept = shared.place(ir.tensor(W))
    mark = shared.mark()
    shared.place(ir.tensor(W + 1))
    shared.rewind(mark)
    assert shared.path.stat().st_size == mark == W.nbytes
    again = shared.place(ir.tensor(W + 1))
    assert (kept.offset, again.offset) == (0, -(-mark // 64) * 64)
    np.testing.assert_array_equal(again.numpy(), W + 1)
