"""Rotations in every form, written out and as ONNX Runtime's operators, against complex products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxkit.graph import ort_cpu, semantic
from onnxkit.graph.edit import Editor, Writer
from onnxkit.graph.files import set_opset
from onnxkit.graph.lowering import lower
from onnxkit.graph.portable_rotary import write
from tests.graph.semantic_graphs import Array, lowered, run, value

BATCH, ROWS, HEADS, SIZE = 3, 5, 2, 8
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """`heads_axis` 1: `[B,H,S,D]`; `turned`: elements of a head that are."""

    interleaved: bool = False
    turned: int = SIZE
    heads_axis: int = 1
    rows: int = ROWS

    def feeds(self) -> dict[str, Array]:
        """The angles of each row are its own, as those of left-padded texts are."""
        shape = (self.rows, HEADS) if self.heads_axis == 2 else (HEADS, self.rows)
        x = RNG.standard_normal((BATCH, *shape, SIZE)).astype(np.float32)
        angle = RNG.standard_normal((BATCH, self.rows, self.turned // 2)).astype(np.float32)
        wide = np.repeat(angle, 2, axis=-1) if self.interleaved else np.concatenate([angle, angle], axis=-1)
        return {"x": x, "cos": np.cos(wide), "sin": np.sin(wide)}

    def expected(self, feeds: dict[str, Array]) -> Array:
        x, half = feeds["x"], self.turned // 2
        first, second = (
            (slice(0, self.turned, 2), slice(1, self.turned, 2))
            if self.interleaved
            else (slice(0, half), slice(half, self.turned))
        )
        step = 2 if self.interleaved else 1
        cos, sin = (feeds[name][..., : half * step : step] for name in ("cos", "sin"))
        turn = np.expand_dims(cos + 1j * sin, self.heads_axis)
        pairs = (x[..., first] + 1j * x[..., second]) * turn
        out = x.copy()
        out[..., first], out[..., second] = pairs.real, pairs.imag
        return out

    def node(self, inputs: list[ir.Value]) -> ir.Node:
        attributes = {"interleaved": int(self.interleaved), "heads_axis": self.heads_axis}
        node = ir.node(semantic.ROTARY, inputs, attributes, domain=semantic.DOMAIN)
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, inputs[0].shape
        return node


CASES = [
    Case(interleaved=interleaved, turned=turned, heads_axis=axis, rows=rows)
    for interleaved in (False, True)
    for turned in (SIZE, 4, 2)
    for axis in (1, 2)
    for rows in (ROWS, 1)
]


def inputs_of(feeds: dict[str, Array], case: Case) -> list[ir.Value]:
    axis = 3 - case.heads_axis
    return [value("x", feeds["x"], (0, axis)), *(value(name, feeds[name], (0, 1)) for name in ("cos", "sin"))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_written_out_and_lowered(case: Case, tmp_path: Path) -> None:
    feeds = case.feeds()
    inputs = inputs_of(feeds, case)
    node = case.node(inputs)
    model, (region,) = lowered([node], inputs, node.outputs[0])
    assert region.attrs["layout"] == ("bsh" if case.heads_axis == 2 else "bhsd")
    expected = case.expected(feeds)
    np.testing.assert_allclose(run(model, feeds, tmp_path), expected, atol=1e-5)
    assert lower(model, ort_cpu.LOWERINGS).lowered == {"rotary": 1}
    np.testing.assert_allclose(run(model, feeds, tmp_path), expected, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.heads_axis == 2], ids=str)
def test_the_standard_operator(case: Case, tmp_path: Path) -> None:
    feeds = case.feeds()
    inputs = inputs_of(feeds, case)
    node = case.node(inputs)
    graph = ir.Graph(inputs, [], nodes=[node], opset_imports={"": 23}, name="main")
    part = Writer(Editor(graph), node)
    made = write(part, node, standard=True)
    assert part.nodes[-1].op_type == "RotaryEmbedding"
    graph.remove(node)
    made.out.name = "out"
    graph.outputs.append(made.out)
    model = ir.Model(graph, ir_version=10)
    set_opset(model, 23)
    got = run(model, feeds, tmp_path).reshape(feeds["x"].shape)
    np.testing.assert_allclose(got, case.expected(feeds), atol=1e-5)


def sliced(x: ir.Value, start: int, end: int, nodes: list[ir.Node]) -> ir.Value:
    bounds = []
    for number in (start, end, -1):
        tensor = ir.tensor(np.array([number], np.int64))
        nodes.append(ir.node("Constant", [], attributes={"value": tensor}))
        bounds.append(nodes[-1].outputs[0])
    nodes.append(ir.node("Slice", [x, *bounds]))
    out = nodes[-1].outputs[0]
    size = min(end, SIZE) - start
    out.dtype, out.shape = ir.DataType.FLOAT, ir.Shape([*[*(x.shape or ())][:3], size])
    return out


@pytest.mark.parametrize("gap", [0, 2], ids=["the rest", "less than the rest"])
def test_a_beginning_that_is_cut_off_turned_and_put_back(gap: int, tmp_path: Path) -> None:
    """Phi, StableLM and GPT-J slice; the rotation then takes whole heads, unless something is left out."""
    case = Case(turned=4, heads_axis=2, interleaved=True)
    feeds = case.feeds()
    inputs = inputs_of(feeds, case)
    nodes: list[ir.Node] = []
    beginning = sliced(inputs[0], 0, 4, nodes)
    turn = case.node([beginning, *inputs[1:]])
    turn.outputs[0].shape = beginning.shape
    rest = sliced(inputs[0], 4 + gap, 2**31, nodes)
    whole = ir.node("Concat", [turn.outputs[0], rest], attributes={"axis": -1})
    whole.outputs[0].dtype, whole.outputs[0].shape = ir.DataType.FLOAT, inputs[0].shape
    model, (region,) = lowered([*nodes, turn, whole], inputs, whole.outputs[0])
    assert region.attrs["head_dim"] == (4 if gap else SIZE)
    assert region.attrs.get("rotary_dim") == (None if gap else 4)
    expected = np.delete(case.expected(feeds), range(4, 4 + gap), axis=-1)
    np.testing.assert_allclose(run(model, feeds, tmp_path), expected, atol=1e-5)
