from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety import read_model
from tests.patience import lines_run

Write = Callable[[onnx.ModelProto], Path]
_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]


def _model(nodes: Iterable[onnx.NodeProto], functions: Iterable[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes), "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=9, functions=list(functions))


def _function(name: str, calls: list[str]) -> onnx.FunctionProto:
    names = ["a", *(f"t{i}" for i in range(len(calls)))]
    pairs = itertools.pairwise(names)
    nodes = [
        helper.make_node(call, [one], [other], domain="f" if call.startswith("f") else "")
        for call, (one, other) in zip(calls, pairs, strict=True)
    ]
    return helper.make_function("f", name, ["a"], [names[-1]], nodes, _OPSETS)


def test_a_cycle_of_nodes_is_refused(write: Write) -> None:
    """92 bytes of this made the onnxscript optimizer eat all memory."""
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(InputError, match="cycle"):
        read_model(write(_model([*nodes, helper.make_node("Neg", ["b"], ["y"])])))


def test_a_cycle_through_a_subgraph_is_refused(write: Write) -> None:
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Neg", ["y"], ["o"])], "b", [], [value])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(InputError, match="cycle"):
        read_model(write(_model([node])))


def test_unsorted_nodes_are_no_cycle(write: Write) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    assert read_model(write(_model(nodes)))


@pytest.mark.parametrize("names", [("y", "y"), ("x", "y")])
def test_a_value_computed_twice_is_refused(write: Write, names: tuple[str, str]) -> None:
    nodes = [helper.make_node("Neg", ["x"], [name]) for name in names]
    with pytest.raises(InputError, match="computed twice"):
        read_model(write(_model(nodes)))


def test_functions_in_a_circle_are_refused(write: Write) -> None:
    functions = [_function("f0", ["f1"]), _function("f1", ["f0"])]
    model = _model([helper.make_node("f0", ["x"], ["y"], domain="f")], functions)
    with pytest.raises(UnsafeError, match="circle"):
        read_model(write(model))


def test_a_chain_of_functions_that_doubles_is_refused_without_expanding_it(write: Write) -> None:
    """A chain that expands 2^22 times hangs ONNX Runtime, the optimizer and the quantizer."""

    def lines(depth: int) -> int:
        functions = [_function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(depth)]
        functions.append(_function(f"f{depth}", ["Neg"]))
        path = write(_model([helper.make_node("f0", ["x"], ["y"], domain="f")], functions))

        def refused() -> None:
            with pytest.raises(UnsafeError, match="expand"):
                read_model(path)

        return lines_run(refused)

    assert lines(800) < 2.5 * lines(400)


def test_a_long_chain_that_does_not_grow_is_accepted(write: Write) -> None:
    functions = [_function(f"f{i}", [f"f{i + 1}"]) for i in range(2000)] + [_function("f2000", ["Neg"])]
    assert read_model(write(_model([helper.make_node("f0", ["x"], ["y"], domain="f")], functions)))


def test_a_function_defined_twice_is_refused(write: Write) -> None:
    functions = [_function("f0", ["Neg"]), _function("f0", ["Abs"])]
    model = _model([helper.make_node("f0", ["x"], ["y"], domain="f")], functions)
    with pytest.raises(InputError, match="defined twice"):
        read_model(write(model))


def _field(number: int, payload: bytes) -> bytes:
    """Encode one length-delimited protobuf field."""
    size, length = b"", len(payload)
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


@pytest.mark.parametrize(("depth", "accepted"), [(20, True), (100, False), (10_000, False)])
def test_deep_nesting_is_an_input_error(tmp_path: Path, depth: int, accepted: bool) -> None:
    """Encoded by hand: protobuf itself builds nothing deeper than it would read."""
    graph = _field(2, b"innermost")  # GraphProto.name
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + _field(6, graph)
        graph = _field(1, _field(4, b"If") + _field(5, attribute))  # GraphProto.node
    path = tmp_path / "deep.onnx"
    path.write_bytes(_field(7, graph))
    if accepted:
        assert read_model(path)
    else:
        with pytest.raises(InputError, match="protobuf"):
            read_model(path)
