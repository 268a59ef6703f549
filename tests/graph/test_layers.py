"""Layers cloned in a graph: which are traced, what a clone reads and hands on, when it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxkit.graph.files import save_model, set_opset
from onnxkit.graph.layers import LayerPlan, NotRepeating, clone_layers, plan_layers
from onnxkit.graph.names import SCOPES
from onnxkit.runtime import RuntimeOptions, open_session


@pytest.mark.parametrize(
    ("kinds", "traced", "templates"),
    [
        ("AAAAAAAA", 3, [1] * 5),
        ("ABABABAB", 3, [1, 2, 1, 2, 1]),
        ("AAABAAAB", 5, [1, 1, 3]),
        ("AAABAAABAAAB", 5, [1, 1, 3, 4, 1, 1, 3]),
        ("BAAAAAAA", 3, [2] * 5),
        ("AAAA", None, None),
        ("ABCDEFGH", None, None),
        ("AAAAAAAB", None, None),
    ],
)
def test_what_is_traced(kinds: str, traced: int | None, templates: list[int] | None) -> None:
    plan = plan_layers("model.layers", list(kinds))
    if traced is None:
        assert plan is None
        return
    assert plan is not None
    assert plan.traced == traced
    assert list(plan.templates) == templates


def test_a_copy_stands_where_its_template_could_have_stood() -> None:
    """The layer before it is of the same kind, too."""
    kinds = list("AABABBAABABB" * 3)
    plan = plan_layers("model.layers", kinds)
    assert plan is not None
    for layer, template in enumerate(plan.templates, start=plan.traced):
        assert kinds[layer - 1 : layer + 1] == kinds[template - 1 : template + 1]


def layered(count: int, *, scales: list[float] | None = None) -> ir.Model:
    """y = x·w₀·w₁…: layer i adds its weight to a past and multiplies; shapes `[2]`."""
    floats = ir.TensorType(ir.DataType.FLOAT)

    def named(name: str, content: float | None = None) -> ir.Value:
        tensor = ir.tensor(np.full(2, content, dtype=np.float32), name=name) if content is not None else None
        return ir.Value(name=name, shape=ir.Shape([2]), type=floats, const_value=tensor)

    x, shared = named("x"), named("shared", 0.5)
    pasts = [named(f"past_key_values.{i}.key") for i in range(count)]
    weights = [named(f"model.layers.{i}.weight", float(i + 1)) for i in range(count)]
    state, presents, nodes = x, [], []
    for i in range(count):
        scope = {SCOPES: repr(["", "model", f"model.layers.{i}", f"model.layers.{i}.mul"])}
        alpha = scales[i] if scales else 0.1
        present = ir.node("Elu", [pasts[i]], {"alpha": alpha})
        summed = ir.node("Add", [present.outputs[0], weights[i]])
        scaled = ir.node("Mul", [summed.outputs[0], shared])
        product = ir.node("Mul", [state, scaled.outputs[0]])
        for node in (present, summed, scaled, product):
            node.metadata_props.update(scope)
            node.outputs[0].type, node.outputs[0].shape = floats, ir.Shape([2])
            node.outputs[0].name = f"value_{len(nodes)}"
            nodes.append(node)
        present.outputs[0].name = f"present.{i}.key"
        presents.append(present.outputs[0])
        state = product.outputs[0]
    last = ir.node("Neg", [state])
    last.outputs[0].name, last.outputs[0].type, last.outputs[0].shape = "y", floats, ir.Shape([2])
    graph = ir.Graph(
        [x, *pasts], [last.outputs[0], *presents], nodes=[*nodes, last],
        initializers=[shared, *weights], opset_imports={"": 18}, name="main",
    )  # fmt: skip
    return ir.Model(graph, ir_version=8)


def run(model: ir.Model, directory: Path, count: int) -> dict[str, np.ndarray]:
    directory.mkdir()
    set_opset(model, 18)
    save_model(model, directory / "model.onnx")
    feeds = {f"past_key_values.{i}.key": np.full(2, 0.1 * i, dtype=np.float32) for i in range(count)}
    feeds["x"] = np.array([1.0, 2.0], dtype=np.float32)
    return open_session(directory / "model.onnx", RuntimeOptions(threads=1)).run(feeds)


def test_clones_compute_what_traced_layers_would(tmp_path: Path) -> None:
    plan = LayerPlan(path="model.layers", kinds="A" * 6, traced=3, templates=[1, 1, 1])
    cloned = layered(3)
    clone_layers(cloned, plan)
    for i in range(3, 6):  # as a stage that attaches weights would
        value = cloned.graph.initializers[f"model.layers.{i}.weight"]
        value.const_value = ir.tensor(np.full(2, i + 1.0, dtype=np.float32), name=value.name)
    whole = layered(6)
    assert [v.name for v in cloned.graph.inputs] == [v.name for v in whole.graph.inputs]
    assert [v.name for v in cloned.graph.outputs] == [v.name for v in whole.graph.outputs]
    assert {n.metadata_props[SCOPES] for n in cloned.graph if SCOPES in n.metadata_props} == {
        n.metadata_props[SCOPES] for n in whole.graph if SCOPES in n.metadata_props
    }
    got, expected = run(cloned, tmp_path / "cloned", 6), run(whole, tmp_path / "whole", 6)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_layers_that_differ_are_no_pattern() -> None:
    plan = LayerPlan(path="model.layers", kinds="A" * 6, traced=3, templates=[1, 1, 1])
    with pytest.raises(NotRepeating, match="layer 2 differs"):
        clone_layers(layered(3, scales=[0.1, 0.1, 0.2]), plan)
    plan = LayerPlan(path="model.blocks", kinds="A" * 6, traced=3, templates=[1, 1, 1])
    with pytest.raises(NotRepeating, match="hands 0 values on"):
        clone_layers(layered(3), plan)
