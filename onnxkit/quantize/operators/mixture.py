"""The experts of a mixture in one operator, `com.microsoft.MoE`: in blocks, `com.microsoft.QMoE`.

Both products of an expert get one format, whose blocks fit into the rows of either. At accuracy level 4 the
activations are rounded to int8, block by block, as MatMulNBits does; codes of 8 bits are multiplied with such
activations at every level.

Source: onnxruntime, docs/ContribOperators.md and its kernels, which the tests run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.errors import UsageError
from onnxkit.graph.edit import node_input, stored_sizes
from onnxkit.graph.mixtures import routing_of
from onnxkit.quantize.codes.codebook import BlockedTensor
from onnxkit.quantize.formats import BLOCK_SIZES, BlockFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Refusal,
    Rewriting,
    Target,
    attribute,
    float_initializer,
    node,
)

_X, _ROUTER, _UP, _UP_BIAS, _DOWN, _DOWN_BIAS, _GATE = range(7)
_CARRIED = (
    "k", "activation_type", "activation_alpha", "activation_beta", "swiglu_fusion", "swiglu_limit",
    "normalize_routing_weights",
)  # fmt: skip
_IN_FLOAT = (1, 2, 3)
"""Accuracy levels that ask for activations in floating point."""


class Mixture(Operator):
    """`MoE(x, router, up [E,N,K], bias, down [E,K,I], bias)`."""

    op_type = "MoE"
    domain = CONTRIB
    default_for = frozenset({"blocks"})
    possible_for = frozenset({"blocks"})

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """A target when both stacks are float32 tensors in the file whose rows a block divides."""
        up, down = node_input(node, _UP), node_input(node, _DOWN)
        if not float_initializer(up, rank=3) or not float_initializer(down, rank=3):
            return Refusal(reason="its experts are no float32 tensors in the file")
        if node_input(node, _GATE) is not None or attribute(node, "use_sparse_mixer", 0):
            return Refusal(reason="a third product, or a sparse mixer, inside")
        depth = largest_block(stored_sizes(up)[2], stored_sizes(down)[2])
        if depth is None:
            return Refusal(reason="no block divides the rows of its experts")
        return Target(
            node=node, kind="experts", weight=_together(str(node.name), up, down, depth), channel_axis=0,
            activation=None, operator=self,
        )  # fmt: skip

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """QMoE in its place, which is given the router's weights as they are where the graph has them."""
        old, blocks = target.node, context.format_of(target)
        if not isinstance(blocks, BlockFormat):
            raise ValueError(f"no experts in {blocks.describe()}")
        if blocks.bits == 8 and blocks.accuracy_level in _IN_FLOAT:
            raise UsageError(
                f"--accuracy-level {blocks.accuracy_level}: the operator of layer '{target.name}' rounds the "
                "activations of 8-bit experts to int8; `optimize --disable-fusion experts` keeps the loops"
            )
        nodes, routing = [], routing_of(old)
        weights, result = routing or (None, old.outputs[0])
        router = weights or node_input(old, _ROUTER)
        if weights is None:
            nodes.append(node("Softmax", [router], f"{target.name}/weights", attributes={"axis": -1}))
            weights = nodes[-1].outputs[0]
        nodes.append(_blocked(target, blocks, context, router, weights))
        context.replace(old, result, nodes, nodes[-1].outputs[0])


def largest_block(*depths: int) -> int | None:
    """The largest size of a block that divides rows of these depths into two blocks or more.

    Zero points of a row of one block are stored in another way.
    """
    fitting = [size for size in BLOCK_SIZES if all(not depth % size and depth > size for depth in depths)]
    return max(fitting, default=None)


def _together(name: str, up: ir.Value, down: ir.Value, depth: int) -> ir.Value:
    """All weights as `[…, depth]`, computed when they are read; a value that no graph holds."""
    tensors = [value.const_value for value in (up, down) if value.const_value is not None]
    rows = sum(int(tensor.size) for tensor in tensors) // depth

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([tensor.numpy().reshape(-1, depth) for tensor in tensors]))

    shape = ir.Shape((rows, depth))
    lazy = ir.LazyTensor(read, dtype=tensors[0].dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=shape, const_value=lazy)


def _blocked(
    target: Target, blocks: BlockFormat, context: Rewriting, router: ir.Value | None, weights: ir.Value
) -> ir.Node:
    old = target.node
    up, down = (
        context.blocks.stack(_rows(stack, target.name), blocks, stored_sizes(stack)[0])
        for stack in (old.inputs[_UP], old.inputs[_DOWN])
        if stack is not None
    )
    attributes = {key: old.attributes[key].value for key in _CARRIED if key in old.attributes}
    attributes |= {
        "expert_weight_bits": blocks.bits, "block_size": blocks.size, "accuracy_level": blocks.accuracy_level
    }  # fmt: skip
    inputs = [
        node_input(old, _X), router, up.codes, up.scales, node_input(old, _UP_BIAS),
        down.codes, down.scales, node_input(old, _DOWN_BIAS), None, None, None,
        up.zero_points, down.zero_points, None, weights,
    ]  # fmt: skip
    return node("QMoE", inputs, target.name, domain=CONTRIB, attributes=attributes)


def _rows(stack: ir.Value, layer: str) -> BlockedTensor:
    """A stack `[E,N,K]` as `[E·N,K]`."""
    stored = stack.const_value
    assert stored is not None
    experts, channels, depth = stored_sizes(stack)
    shape = ir.Shape((experts * channels, depth))
    flat = ir.LazyTensor(
        lambda: ir.tensor(stored.numpy().reshape(experts * channels, depth)), dtype=stored.dtype, shape=shape
    )
    return BlockedTensor(tensor=flat, name=str(stack.name), turned=True, layer=layer, seen=False)
