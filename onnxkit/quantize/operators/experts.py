"""Experts of a mixture: a Loop in which rows are multiplied with the matrix of the expert that they chose.

All experts' matrices are one tensor `[E, N, K]` or `[E, K, N]`, of which a step reads one. In blocks they are
the rows of one matrix `[E·N, K]`; a step cuts its expert's codes out, and `com.microsoft.MatMulNBits`
takes them. Codes that are no constant are decoded in the step: the accuracy level has no say, and
activations stay float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.graph.nbits import matmul_attributes
from onnxkit.graph.portable_experts import ExpertProduct, product_of
from onnxkit.quantize.codes.block_store import BlockedWeight
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Refusal,
    Rewriting,
    Target,
    blocked_tensor,
    node,
)


def _rows(product: ExpertProduct) -> ir.Value:
    """The weight as `[E·N, K]`, computed when it is read; a value that no graph holds."""
    stored, transposed = product.weight.const_value, product.transposed
    experts, channels, depth = product.sizes
    assert stored is not None

    def read() -> ir.TensorProtocol:
        array = stored.numpy().transpose(0, 2, 1) if transposed else stored.numpy()
        return ir.tensor(np.ascontiguousarray(array).reshape(experts * channels, depth))

    shape = ir.Shape((experts * channels, depth))
    lazy = ir.LazyTensor(read, dtype=stored.dtype, shape=shape, name=product.weight.name)
    return ir.Value(name=product.weight.name, shape=shape, const_value=lazy)


class Experts(Operator):
    """`Loop` with one product of rows by a matrix that is gathered from a float32 tensor in the file."""

    op_type = "Loop"
    default_for = frozenset({"blocks"})
    possible_for = frozenset({"blocks"})

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """None for loops about anything else."""
        product = product_of(node)
        if product is None:
            return None
        return Target(
            node=node, kind="experts", weight=_rows(product), channel_axis=0, activation=None, operator=self
        )  # fmt: skip

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Multiply with codes in the body; the Loop itself stays."""
        blocks, product = context.format_of(target), product_of(target.node)
        if not isinstance(blocks, BlockFormat) or product is None:
            raise ValueError(f"no experts in {context.format_of(target).describe()}")
        stored = context.blocks.matrix(blocked_tensor(target), blocks)
        _, channels, _ = product.sizes
        _multiply(target.name, product, stored, channels, blocks, context)


def _multiply(
    name: str, product: ExpertProduct, stored: BlockedWeight, channels: int, blocks: BlockFormat,
    context: Rewriting,
) -> None:  # fmt: skip
    """MatMulNBits in place of the MatMul, over the expert's rows of codes, scales and zero points."""
    constant = context.weights.constant
    width = constant(f"onnxkit.experts.{channels}", np.array([channels], np.int64))
    zero = constant("onnxkit.experts.axis", np.array([0], np.int64))
    first = node("Mul", [product.expert, width], f"{name}/first")
    last = node("Add", [first.outputs[0], width], f"{name}/last")
    made, parts = [first, last], {"codes": stored.codes, "scales": stored.scales, "zeros": stored.zero_points}
    inputs: list[ir.Value | None] = [product.matmul.inputs[0]]
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
    graph, old = product.matmul.graph, product.matmul.outputs[0]
    assert isinstance(graph, ir.Graph)
    graph.insert_before(product.matmul, made)
    old.replace_all_uses_with(made[-1].outputs[0])
    context.graph.opset_imports.setdefault(CONTRIB, 1)
    _drop(graph, product.matmul)


def _drop(graph: ir.Graph, unread: ir.Node) -> None:
    """Remove a node of a body that nothing reads, and what only it read."""
    before = [value.producer() for value in unread.inputs if value is not None]
    graph.remove(unread, safe=True)
    for each in before:
        if each is not None and each.graph is graph and not each.outputs[0].uses():
            _drop(graph, each)
