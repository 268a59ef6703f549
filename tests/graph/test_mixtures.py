"""Mixtures of experts as one operator: against naive numpy, and against the loops that it stands for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxkit.graph.files import save_model
from onnxkit.graph.mixtures import fuse_experts
from tests.expert_graphs import Array, Mixture
from tests.graph.semantic_graphs import run

GPT_OSS = Mixture(transposed=True, interleaved=True, biased=True, alpha=1.702, beta=1.0, limit=0.7)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def both(mixture: Mixture, folder: Path, expected: int = 1) -> tuple[ir.Model, Array, Array]:
    """The fused graph, its result and that of the loops."""
    loops = run(mixture.model(), mixture.feeds, folder)
    model = mixture.model()
    assert fuse_experts(model) == expected
    return model, run(model, mixture.feeds, folder), loops


@pytest.mark.parametrize(
    "mixture",
    [
        Mixture(),
        Mixture(transposed=True),
        Mixture(biased=True),
        Mixture(interleaved=True),
        Mixture(count=1),
        Mixture(count=4, tokens=1),
        Mixture(hidden=32, inner=96),
        Mixture(limit=0.4),
        GPT_OSS,
        dataclasses.replace(GPT_OSS, interleaved=False, transposed=False),
    ],
    ids=[
        "plain", "transposed", "biased", "interleaved", "top-1", "one token", "wide", "limit", "gpt-oss",
        "apart",
    ],
)  # fmt: skip
def test_the_operator_computes_what_the_loops_do(mixture: Mixture, tmp_path: Path) -> None:
    """Equal weights, a weight of zero and an expert that a token has twice are among the rows."""
    model, got, loops = both(mixture, tmp_path)
    assert operators(model).count("MoE") == 1
    assert not {"Loop", "Unique", "ConstantOfShape"} & {*operators(model)}
    np.testing.assert_allclose(got, mixture.expected(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, loops, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mixture",
    [
        Mixture(weighing="Tanh"),  # negative weights: the operator leaves their experts out
        Mixture(inner=48),  # no block of 32 divides its rows
        Mixture(hidden=80),
        Mixture(activation="Erf"),
    ],
    ids=["negative weights", "inner width", "hidden width", "activation"],
)
def test_what_the_operator_would_not_compute_stays_loops(mixture: Mixture, tmp_path: Path) -> None:
    model, got, loops = both(mixture, tmp_path, expected=0)
    assert operators(model).count("Loop") == 2
    np.testing.assert_array_equal(got, loops)


def _clips(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Clip"]


@pytest.mark.parametrize("part", [0, 1], ids=["gate", "up"])
def test_other_limits_stay_loops(part: int, tmp_path: Path) -> None:
    model = GPT_OSS.model()
    limit = _clips(model)[part].inputs[2]
    assert limit is not None
    limit.const_value = ir.tensor(np.array(0.6, np.float32), name=limit.name)
    before = run(model, GPT_OSS.feeds, tmp_path)
    assert fuse_experts(model) == 0
    np.testing.assert_array_equal(run(model, GPT_OSS.feeds, tmp_path), before)


def test_gate_and_up_that_changed_places_stay_loops() -> None:
    """up · sigmoid(up) · gate is another unit."""
    model = Mixture().model()
    [split] = [node for node in model.graph if node.op_type == "Split"]
    gate, up = split.outputs
    readers = [(use.node, use.idx) for use in gate.uses()], [(use.node, use.idx) for use in up.uses()]
    for uses, other in zip(readers, (up, gate), strict=True):
        for node, index in uses:
            node.replace_input_with(index, other)
    assert fuse_experts(model) == 0


def test_weights_are_stored_once(tmp_path: Path) -> None:
    mixture = Mixture(hidden=256, inner=128, interleaved=True)
    sizes = []
    for fuse in (False, True):
        model = mixture.model()
        assert not fuse or fuse_experts(model) == 1
        save_model(model, tmp_path / "model.onnx")
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    assert sizes[1] < sizes[0]
    assert {"up", "down"} <= {*model.graph.initializers}  # laid out as wanted: no copy in other order


def test_a_result_that_is_read_elsewhere_stays(tmp_path: Path) -> None:
    """The gated unit is an output as well: one loop must stay, and the operator is made all the same."""
    model = Mixture().model()
    inner = next(node for node in model.graph if node.op_type == "Split").inputs[0]
    assert inner is not None
    model.graph.outputs.append(inner)
    assert fuse_experts(model) == 1
    assert sorted({"Loop", "MoE"} & {*operators(model)}) == ["Loop", "MoE"]
    np.testing.assert_allclose(
        run(model, Mixture().feeds, tmp_path), Mixture().expected(), rtol=1e-4, atol=1e-5
    )


def test_an_older_opset_is_left_alone() -> None:
    model = Mixture().model()
    model.graph.opset_imports[""] = 17
    assert fuse_experts(model) == 0
