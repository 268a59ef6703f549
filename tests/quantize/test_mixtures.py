"""A mixture's experts in one operator, in blocks: against what the codes stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxkit.errors import InputError, UsageError
from onnxkit.graph.mixtures import fuse_experts
from onnxkit.measure.weight_census import take_census
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.hardware import hardware_for
from onnxkit.quantize.operators.mixture import largest_block
from onnxkit.quantize.planning import Planner
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.select import refuse_unsuitable
from onnxkit.runtime import RuntimeOptions, open_session
from tests.expert_graphs import EXPERTS, Array, Mixture
from tests.heard import Heard
from tests.quantize.graphs import operators, proto, quantized, random, session

MIXTURE = Mixture(hidden=128, inner=64)
GPT_OSS = Mixture(
    hidden=64, inner=96, transposed=True, interleaved=True, biased=True, alpha=1.702, beta=1.0, limit=0.7
)
ALL = QuantizeOptions(scheme="int4-weight", include=(".",))


def fused(mixture: Mixture) -> onnx.ModelProto:
    model = mixture.model()
    assert fuse_experts(model) == 1
    return ir.to_proto(model)


def blocked(
    mixture: Mixture, *, bits: Any = 4, size: int = 32, symmetric: bool = False, level: int = 0
) -> onnx.ModelProto:
    """Every mixture in this format."""
    model = fused(mixture)
    [name] = [node.name for node in model.graph.node if node.op_type == "MoE"]
    blocks = BlockFormat(bits=bits, size=size, symmetric=symmetric, accuracy_level=level)
    done, selection = quantized(model, options=ALL, formats={name: blocks})
    [target] = selection.targets
    stored = EXPERTS * 3 * mixture.inner * mixture.hidden
    assert (target.kind, target.name, target.parameters) == ("experts", "layer.experts", stored)
    return done


def stack(model: onnx.ModelProto, slot: int, *, bits: int) -> Array:
    """What the codes at an input of QMoE stand for, float32 `[E,N,K]`: each block's, one by one."""
    [node] = [node for node in model.graph.node if node.op_type == "QMoE"]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    packed = tensors[node.input[slot]]
    scales = tensors[casts[node.input[slot + 1]]].astype(np.float32)
    assert scales.ndim == packed.ndim == 3
    zeros = np.full(scales.shape, 1 << (bits - 1))
    points = {2: 11, 5: 12}[slot]
    if node.input[points]:
        zeros = _unpacked(tensors[node.input[points]], bits)[..., : scales.shape[-1]]
    codes = _unpacked(packed, bits).reshape(*scales.shape, -1).astype(np.float32)
    return ((codes - zeros[..., None]) * scales[..., None]).reshape(*scales.shape[:2], -1)


def _unpacked(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def decoded(model: onnx.ModelProto, mixture: Mixture, bits: int) -> Array:
    """The mixture with the weights that are stored, which lie interleaved."""
    up, down = stack(model, 2, bits=bits), stack(model, 5, bits=bits)
    if not mixture.interleaved:
        up = np.concatenate([up[:, ::2], up[:, 1::2]], axis=1)
    for got, wanted in ((up, mixture.up), (down, mixture.down)):
        assert np.abs(got - wanted).max() < np.abs(wanted).max() * (0.15 if bits == 4 else 0.01)
    return mixture.expected(up, down)


def error(got: Array, wanted: Array) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("mixture", [MIXTURE, GPT_OSS], ids=["plain", "gpt-oss"])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_tokens_go_through_their_experts_codes(
    mixture: Mixture, bits: int, size: int, symmetric: bool
) -> None:
    """Codes of 8 bits are multiplied with int8 activations at level 0, too."""
    model = blocked(mixture, bits=bits, size=size, symmetric=symmetric)
    expected = decoded(model, mixture, bits)
    got = session(model).run(mixture.feeds)["out"]
    assert error(got, expected) < (1e-5 if bits == 4 else 0.02)
    assert not {"MoE", "Log", "Max", "Loop"} & {*operators(model)}
    names = {tensor.name for tensor in model.graph.initializer}
    assert not names & {"up", "up.rows", "down", "down.rows"}
    with pytest.raises(InputError, match="already quantized"):
        refuse_unsuitable(ir.from_proto(model), "model.onnx")


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_size_of_blocks(size: int, symmetric: bool) -> None:
    mixture = Mixture(hidden=512, inner=512, tokens=3)
    model = blocked(mixture, size=size, symmetric=symmetric)
    assert error(session(model).run(mixture.feeds)["out"], decoded(model, mixture, 4)) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_level_4_rounds_activations(bits: int) -> None:
    model = blocked(MIXTURE, bits=bits, level=4)
    assert 1e-5 < error(session(model).run(MIXTURE.feeds)["out"], decoded(model, MIXTURE, bits)) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_unfolded_scales(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """With `--graph-optimization none` the scales are no constants when the operator packs its codes."""
    model = blocked(MIXTURE, bits=bits, symmetric=symmetric)
    onnx.save(model, tmp_path / "model.onnx")
    plain = open_session(tmp_path / "model.onnx", RuntimeOptions(threads=1, graph_optimization="none"))
    assert error(plain.run(MIXTURE.feeds)["out"], decoded(model, MIXTURE, bits)) < 1e-5


@pytest.mark.parametrize("level", [1, 2, 3])
def test_float_activations_beside_8_bits_are_refused(level: int) -> None:
    with pytest.raises(
        UsageError, match=f"--accuracy-level {level}.*layer.experts.*--disable-fusion experts"
    ):
        blocked(MIXTURE, bits=8, level=level)
    blocked(MIXTURE, bits=4, level=level)


@pytest.mark.parametrize(
    ("hidden", "inner", "asked", "size"),
    [
        (64, 32, None, 16),
        (128, 64, None, 32),
        (128, 64, 256, 32),
        (1024, 768, 256, 256),
        (2880, 2880, 128, 64),
    ],
)
def test_blocks_fit_into_the_rows_of_both_products(
    hidden: int, inner: int, asked: int | None, size: int
) -> None:
    options = dataclasses.replace(ALL, block_size=asked)
    _, selection = quantized(fused(Mixture(hidden=64, inner=32)), options=ALL)
    planner = Planner(scheme=SCHEMES["int4-weight"], options=options, hardware=hardware_for("avx2"))
    depth = largest_block(hidden, inner)
    assert depth is not None
    weight = ir.Value(name="w", const_value=ir.tensor(np.zeros((4, depth), np.float32)))
    found = planner.block_format(dataclasses.replace(selection.targets[0], weight=weight), 4)
    assert isinstance(found, BlockFormat)
    assert found.size == size


def test_rows_that_no_block_divides() -> None:
    assert largest_block(1024, 24) is None
    assert largest_block(16, 1024) is None  # one block: its zero points are stored in another way
    assert largest_block(64, 32) == 16


def foreign(hidden: int = 64, inner: int = 32, **attributes: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A MoE that routes by itself, and its weights."""
    gated = attributes.get("activation_type") == "swiglu"
    weights = {
        "up": random(EXPERTS, inner * (1 + gated), hidden, seed=1, scale=0.3),
        "down": random(EXPERTS, hidden, inner, seed=2, scale=0.3),
    }
    node = helper.make_node(
        "MoE", ["x", "router", "up", "", "down"], ["y"], name="moe", domain="com.microsoft", **attributes
    )
    return proto([node], weights, inputs={"x": ["n", hidden], "router": ["n", EXPERTS]}), weights


@pytest.mark.parametrize(
    "attributes",
    [
        {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1},
        {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1},
        {"k": 1, "activation_type": "silu"},
        {"k": 3, "activation_type": "relu", "normalize_routing_weights": 1},
        {"k": 2, "activation_type": "gelu"},
    ],
    ids=lambda each: "-".join(str(value) for value in each.values()),
)
def test_a_router_of_the_operators_own(attributes: dict[str, Any]) -> None:
    """MoE weighs by the softmax over all experts; QMoE, left to itself, by that over the chosen ones."""
    model, weights = foreign(**attributes)
    feeds = {"x": random(7, 64), "router": random(7, EXPERTS, seed=3)}
    blocks = BlockFormat(bits=4, size=16, accuracy_level=0)
    done, _ = quantized(model, options=ALL, formats={"moe": blocks})
    for tensor in model.graph.initializer:
        slot = {"up": 2, "down": 5}[tensor.name]
        tensor.CopyFrom(numpy_helper.from_array(stack(done, slot, bits=4), tensor.name))
    assert error(session(done).run(feeds)["y"], session(model).run(feeds)["y"]) < 1e-5
    assert {*weights} == {"up", "down"}


@pytest.mark.parametrize(
    ("slots", "attributes", "reason"),
    [
        (["x", "router", "up", "", "down", "", "up"], {}, "a third product"),
        (["x", "router", "up", "", "down"], {"use_sparse_mixer": 1}, "a sparse mixer"),
        (["x", "router", "x", "", "down"], {}, "no float32 tensors"),
    ],
)
def test_what_cannot_be_put_in_blocks_says_why(
    slots: list[str], attributes: dict[str, Any], reason: str
) -> None:
    model, _ = foreign(k=1, activation_type="silu", **attributes)
    del model.graph.node[0].input[:]
    model.graph.node[0].input.extend(slots)
    with pytest.raises(InputError, match=reason):
        quantized(model, options=ALL)


def test_widths_that_no_block_divides_say_so() -> None:
    model, _ = foreign(inner=24, k=1, activation_type="silu")
    with pytest.raises(InputError, match="no block divides the rows"):
        quantized(model, options=ALL)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_census_counts_both_products(symmetric: bool) -> None:
    before, after = (take_census(each) for each in (fused(MIXTURE), blocked(MIXTURE, symmetric=symmetric)))
    assert before.linear_parameters == after.linear_parameters == EXPERTS * 3 * 64 * 128
    assert (before.linear_nodes, before.quantized_nodes) == (2, 0)
    assert (after.linear_nodes, after.quantized_nodes) == (2, 2)
    assert after.quantized_layers == {"layer.experts": 4}
    bits = 4.5 if symmetric else 4.625
    assert after.quantized_bytes == EXPERTS * 3 * 64 * 128 * bits / 8
    assert after.parameters == before.parameters


def test_two_layers_of_one_module_share_codes() -> None:
    model, _ = foreign(k=1, activation_type="silu")
    again = helper.make_node(
        "MoE", ["y", "router", "up", "", "down"], ["z"], name="again", domain="com.microsoft", k=1,
        activation_type="silu",
    )  # fmt: skip
    model.graph.node.append(again)
    model.graph.output[0].name = "z"
    done, selection = quantized(model, options=ALL)
    assert len(selection.targets) == 2
    assert sum(tensor.name.endswith(".int4") for tensor in done.graph.initializer) == 2


def test_a_scheme_without_experts_says_how_much_stays_float(tmp_path: Path) -> None:
    model = fused(MIXTURE)
    model.graph.node.append(helper.make_node("MatMul", ["out", "head"], ["y"], name="head"))
    model.graph.initializer.append(numpy_helper.from_array(random(128, 100, seed=2), "head"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["n", 100]))
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "model.onnx")
    heard = Heard()
    report = quantize_model(
        tmp_path / "in",
        tmp_path / "out",
        QuantizeOptions(scheme="int8-dynamic", measure=False),
        progress=heard,
    )
    share = round(100 * 122880 / (122880 + 12800))
    expected = f"{share} % of the weights are in experts, which stay float; int8-weight, int4-weight, mixed"
    assert [text for text in heard.warnings if text.startswith(expected)]
    assert [layer.reason.startswith(expected) for layer in report.kept if layer.op_type == "MoE"] == [True]
