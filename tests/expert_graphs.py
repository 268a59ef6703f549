"""One product with the experts of a mixture, as exports hold it: a loop over the experts that have rows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxkit.graph import semantic
from tests.graph.semantic_graphs import lowered, value
from tests.quantize.graphs import random

EXPERTS, DEPTH, WIDTH = 5, 40, 24
CHOSEN = np.array([4, 0, 0, 2, 4, 4, 0])  # experts 1 and 3 have no rows
X = random(len(CHOSEN), DEPTH)
WEIGHT = random(EXPERTS, WIDTH, DEPTH, seed=1, scale=0.2)


def experts(*, transposed: bool) -> onnx.ModelProto:
    """x `[M,K]`, experts `[M]` → out `[M,N]`; "w" is stored `[E,N,K]` or (`transposed`) `[E,K,N]`."""
    x, chosen = value("x", X, (0,)), value("experts", CHOSEN, (0,))
    stored = np.ascontiguousarray(WEIGHT.transpose(0, 2, 1)) if transposed else WEIGHT
    weight = ir.Value(name="w", shape=ir.Shape(stored.shape), const_value=ir.tensor(stored, name="w"))
    weight.dtype = ir.DataType.FLOAT
    attributes = {"transposed": int(transposed)}
    node = ir.node(semantic.EXPERT_MATMUL, [x, weight, chosen], attributes, domain=semantic.DOMAIN)
    node.outputs[0].dtype = ir.DataType.FLOAT
    model, _ = lowered([node], [x, chosen], node.outputs[0])
    model.graph.register_initializer(weight)
    return ir.to_proto(model)
