"""Rows times the matrices of their experts, as a Loop over the experts that have rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Writer, is_stored, node_input, permutation, producer, stored_sizes
from onnxkit.graph.portable_attention import known_sizes, required


@dataclass(frozen=True, kw_only=True)
class ExpertProduct:
    """The product in a Loop's body, of rows by a matrix that a step takes out of a stack.

    Attributes:
        matmul: the node.
        expert: int64 scalar, the number of the matrix.
        weight: float32, of all experts.
        transposed: it is `[E,K,N]`; otherwise `[E,N,K]`, transposed in every step.
    """

    matmul: ir.Node
    expert: ir.Value
    weight: ir.Value
    transposed: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, N and K."""
        experts, first, second = stored_sizes(self.weight)
        return (experts, second, first) if self.transposed else (experts, first, second)


def product_of(loop: ir.Node) -> ExpertProduct | None:
    """The one product in a Loop's body whose right side is a matrix of many; None for loops about else."""
    body = loop.attributes.get("body")
    products = [] if body is None else [each for each in body.as_graph() if each.op_type == "MatMul"]
    if len(products) != 1 or products[0].domain != "":
        return None
    matrix = products[0].inputs[1]
    swap = producer(matrix, "Transpose")
    turned = swap is not None and permutation(swap) == [1, 0]
    gather = producer(swap.inputs[0] if swap is not None and turned else matrix, "Gather")
    axis = gather.attributes.get("axis") if gather is not None else None
    if gather is None or (axis is not None and axis.as_int() != 0):
        return None
    weight, expert = gather.inputs
    if expert is None or not is_stored(weight, 3, ir.DataType.FLOAT):
        return None
    return ExpertProduct(matmul=products[0], expert=expert, weight=weight, transposed=not turned)


def rows_of(loop: ir.Node, product: ExpertProduct) -> tuple[ir.Value, ir.Value] | None:
    """What `write` was given, x `[M,K]` and experts `[M]`, where the Loop is all that it wrote."""
    body = loop.attributes["body"].as_graph()
    gather, scatter = producer(product.matmul.inputs[0], "GatherND"), producer(body.outputs[-1], "ScatterND")
    hit = producer(product.expert, "Gather")
    if gather is None or scatter is None or hit is None or len(loop.inputs) != len(body.inputs):
        return None
    x, rows = gather.inputs
    swap = producer(rows, "Transpose")
    equal = producer(node_input(producer(node_input(swap), "NonZero")), "Equal")
    experts = node_input(equal)
    unique = producer(hit.inputs[0], "Unique")
    wired = (
        list(scatter.inputs) == [body.inputs[2], rows, product.matmul.outputs[0]]
        and equal is not None
        and equal.inputs[1] is product.expert
        and hit.inputs[1] is body.inputs[0]
        and node_input(unique) is experts
        and node_input(producer(node_input(producer(loop.inputs[0], "Squeeze")), "Shape")) is hit.inputs[0]
        and producer(loop.inputs[2], "ConstantOfShape") is not None
    )
    return (x, experts) if wired and x is not None and experts is not None else None


def write(part: Writer, node: ir.Node) -> ir.Value:
    """x `[M,K]`, weight `[E,N,K]` (transposed: `[E,K,N]`), experts `[M]` → `[M,N]`.

    A step of the loop reads one expert's matrix and the rows that go through it; an expert without rows
    costs nothing.
    """
    x, weight, experts = (required(node, i) for i in range(3))
    transposed = bool(node.attributes["transposed"].as_int())
    sizes = known_sizes(weight, 1, 2)
    width = sizes[1] if transposed else sizes[0]
    dtype = x.dtype or ir.DataType.FLOAT
    hit = part.several("Unique", [experts], 1, sorted=1, dtype=ir.DataType.INT64)[0]
    steps = part("Squeeze", part("Shape", hit), dtype=ir.DataType.INT64)
    shape = part("Concat", part("Shape", x, start=0, end=1), part.ints(width), axis=0)
    zero = ir.tensor(np.zeros(1, dtype=dtype.numpy()), dtype=dtype)
    empty = part("ConstantOfShape", shape, value=zero, dtype=dtype)
    body = _body(x, weight, experts, hit, transposed=transposed, dtype=dtype, title=_title(node))
    going = part.editor.constant(np.array(True))
    return part("Loop", steps, going, empty, body=body, shape=node.outputs[0].shape, dtype=dtype)


def _title(node: ir.Node) -> str:
    return f"experts/{node.outputs[0].name}"


def _body(
    x: ir.Value, weight: ir.Value, experts: ir.Value, hit: ir.Value, *, transposed: bool, dtype: ir.DataType,
    title: str,
) -> ir.Graph:  # fmt: skip
    """(step, going, sum) → (going, sum with one expert's rows written in)."""
    step = _value(f"{title}/step", ir.DataType.INT64, [])
    going = _value(f"{title}/going", ir.DataType.BOOL, [])
    done = _value(f"{title}/done", dtype, [None, None])
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, kind: ir.DataType = dtype, **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{title}/{op}_{len(nodes)}")  # type: ignore[arg-type]
        node.outputs[0].name = node.name
        node.outputs[0].dtype = kind
        nodes.append(node)
        return node.outputs[0]

    one = add("Gather", hit, step, kind=ir.DataType.INT64)
    rows = add("Transpose", add("NonZero", add("Equal", experts, one, kind=ir.DataType.BOOL),
                                kind=ir.DataType.INT64), kind=ir.DataType.INT64)  # fmt: skip
    matrix = add("Gather", weight, one)
    if not transposed:
        matrix = add("Transpose", matrix, perm=[1, 0])
    product = add("MatMul", add("GatherND", x, rows), matrix)
    still = add("Identity", going, kind=ir.DataType.BOOL)
    written = add("ScatterND", done, rows, product)
    for output, shape in ((still, []), (written, [None, None])):
        output.shape = ir.Shape(shape)
    return ir.Graph([step, going, done], [still, written], nodes=nodes, name=title)


def _value(name: str, dtype: ir.DataType, shape: list[int | None]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape))
    value.dtype = dtype
    return value
