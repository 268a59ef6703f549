"""Rows times the matrices of their experts, as a Loop over the experts that have rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Writer
from onnxkit.graph.portable_attention import known_sizes, required


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
