"""Experts of a mixture: a Loop in which rows are multiplied with the matrix of the expert that they chose.

All experts' matrices are one tensor `[E, N, K]` or `[E, K, N]`, of which a step reads one. In blocks they are
the rows of one matrix `[E·N, K]`; a step cuts its expert's codes out, and `com.microsoft.MatMulNBits`
takes them. Codes that are no constant are decoded in the step: the accuracy level has no say, and
activations stay float.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import permutation, producer
from onnxkit.graph.nbits import matmul_attributes
from onnxkit.quantize.codes.block_store import BlockedWeight
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Refusal,
    Rewriting,
    Target,
    attribute,
    blocked_tensor,
    dims,
    float_initializer,
    node,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Body:
    """The product in a Loop's body.

    Attributes:
        matmul: rows times a matrix.
        expert: int64 scalar, the number of the matrix.
        weight: of all experts.
        turned: it is `[E, N, K]`, transposed in every step.
    """

    matmul: ir.Node
    expert: ir.Value
    weight: ir.Value
    turned: bool

    def rows(self) -> ir.Value:
        """The weight as `[E·N, K]`, computed when it is read; a value that no graph holds."""
        stored, turned = self.weight.const_value, self.turned
        experts, first, second = dims(self.weight)
        channels, depth = (first, second) if turned else (second, first)
        assert stored is not None

        def read() -> ir.TensorProtocol:
            array = stored.numpy() if turned else stored.numpy().transpose(0, 2, 1)
            return ir.tensor(np.ascontiguousarray(array).reshape(experts * channels, depth))

        shape = ir.Shape((experts * channels, depth))
        lazy = ir.LazyTensor(read, dtype=stored.dtype, shape=shape, name=self.weight.name)
        return ir.Value(name=self.weight.name, shape=shape, const_value=lazy)


class Experts(Operator):
    """`Loop` with one product of rows by a matrix that is gathered from a float32 tensor in the file."""

    op_type = "Loop"
    default_for = frozenset({"blocks"})
    possible_for = frozenset({"blocks"})

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """None for loops about anything else."""
        body = _body_of(node)
        if body is None:
            return None
        return Target(
            node=node, kind="experts", weight=body.rows(), channel_axis=0, activation=None, operator=self
        )  # fmt: skip

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Multiply with codes in the body; the Loop itself stays."""
        blocks, body = context.format_of(target), _body_of(target.node)
        if not isinstance(blocks, BlockFormat) or body is None:
            raise ValueError(f"no experts in {context.format_of(target).describe()}")
        stored = context.blocks.matrix(blocked_tensor(target), blocks)
        experts = dims(body.weight)[0]
        _multiply(target.name, body, stored, stored.channels // experts, blocks, context)


def _body_of(loop: ir.Node) -> _Body | None:
    """The one product in the body whose right side is a matrix of many."""
    graph = attribute(loop, "body", None)
    products = [each for each in graph or () if each.op_type == "MatMul" and each.domain == ""]
    if len(products) != 1:
        return None
    matrix = products[0].inputs[1]
    swap = producer(matrix, "Transpose")
    turned = swap is not None and permutation(swap) == [1, 0]
    gather = producer(swap.inputs[0] if swap is not None and turned else matrix, "Gather")
    if gather is None or attribute(gather, "axis", 0) != 0:
        return None
    weight, expert = gather.inputs
    if expert is None or not float_initializer(weight, rank=3):
        return None
    return _Body(matmul=products[0], expert=expert, weight=weight, turned=turned)


def _multiply(
    name: str, body: _Body, stored: BlockedWeight, channels: int, blocks: BlockFormat, context: Rewriting
) -> None:
    """MatMulNBits in place of the MatMul, over the expert's rows of codes, scales and zero points."""
    constant = context.weights.constant
    width = constant(f"onnxkit.experts.{channels}", np.array([channels], np.int64))
    zero = constant("onnxkit.experts.axis", np.array([0], np.int64))
    first = node("Mul", [body.expert, width], f"{name}/first")
    last = node("Add", [first.outputs[0], width], f"{name}/last")
    made, parts = [first, last], {"codes": stored.codes, "scales": stored.scales, "zeros": stored.zero_points}
    inputs: list[ir.Value | None] = [body.matmul.inputs[0]]
    for part, value in parts.items():
        if value is not None:
            cut = node("Slice", [value, first.outputs[0], last.outputs[0], zero], f"{name}/{part}")
            made.append(cut)
            inputs.append(cut.outputs[0])
    attributes = matmul_attributes(
        depth=stored.depth, channels=channels, bits=blocks.bits, size=blocks.size,
        accuracy_level=blocks.accuracy_level,
    )  # fmt: skip
    made.append(node("MatMulNBits", inputs, f"{name}/product", domain=CONTRIB, attributes=attributes))
    graph, old = body.matmul.graph, body.matmul.outputs[0]
    assert isinstance(graph, ir.Graph)
    graph.insert_before(body.matmul, made)
    old.replace_all_uses_with(made[-1].outputs[0])
    context.graph.opset_imports.setdefault(CONTRIB, 1)
    _drop(graph, body.matmul)


def _drop(graph: ir.Graph, unread: ir.Node) -> None:
    """Remove a node of a body that nothing reads, and what only it read."""
    before = [value.producer() for value in unread.inputs if value is not None]
    graph.remove(unread, safe=True)
    for each in before:
        if each is not None and each.graph is graph and not each.outputs[0].uses():
            _drop(graph, each)
