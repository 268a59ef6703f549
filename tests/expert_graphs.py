"""Experts of a mixture as exports hold them: products in a loop over the experts that have rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxkit.graph import semantic
from tests.graph.semantic_graphs import lowered, value
from tests.quantize.graphs import random

Array = np.ndarray[Any, Any]

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


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The experts of a mixture with the weights of a router, as an export holds them.

    Attributes:
        interleaved: rows of gate and up take turns; otherwise gate comes first.
        alpha, beta, limit: of the gated unit (`graph.gated_units`).
        weighing: the operator that makes the weights of what is fed for them.
        activation: of the gate; "Sigmoid" makes SiLU.
    """

    tokens: int = 6
    hidden: int = 64
    inner: int = 32
    count: int = 2
    transposed: bool = False
    interleaved: bool = False
    biased: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None
    weighing: str = "Abs"
    activation: str = "Sigmoid"

    @property
    def up(self) -> Array:
        """Float32 `[E,2·I,H]`, gate and up as they are stored."""
        return random(EXPERTS, 2 * self.inner, self.hidden, seed=1, scale=0.3)

    @property
    def down(self) -> Array:
        """Float32 `[E,H,I]`."""
        return random(EXPERTS, self.hidden, self.inner, seed=2, scale=0.3)

    @property
    def biases(self) -> tuple[Array, Array]:
        """Float32 `[E,2·I]` and `[E,H]`; zeros where there are none."""
        scale = 0.5 * self.biased
        up = random(EXPERTS, 2 * self.inner, seed=3, scale=scale)
        return up, random(EXPERTS, self.hidden, seed=4, scale=scale)

    @property
    def feeds(self) -> dict[str, Array]:
        """A token has the same expert twice, another none of its weight, the third rows of equal weights."""
        chosen = np.random.default_rng(5).integers(0, EXPERTS, (self.tokens, self.count))
        weights = random(self.tokens, self.count, seed=6)
        chosen[0], weights[1:2], weights[2:3] = chosen[0, 0], 0.0, 0.5
        return {"x": random(self.tokens, self.hidden), "chosen": chosen, "weights": weights}

    def expected(self, up: Array | None = None, down: Array | None = None) -> Array:
        """The mixture, expert by expert, in float64; with other weights perhaps."""
        up, down = self.up if up is None else up, self.down if down is None else down
        feeds, (up_bias, down_bias) = self.feeds, self.biases
        made = np.zeros((self.tokens, self.hidden))
        for token, slot in np.ndindex(self.tokens, self.count):
            expert = feeds["chosen"][token, slot]
            both = up[expert].astype(np.float64) @ feeds["x"][token] + up_bias[expert]
            halves = (both[::2], both[1::2]) if self.interleaved else np.split(both, 2)
            limit = np.inf if self.limit is None else self.limit
            gate, linear = np.minimum(halves[0], limit), np.clip(halves[1], -limit, limit)
            unit = gate / (1 + np.exp(-self.alpha * gate)) * (linear + self.beta)
            made[token] += abs(feeds["weights"][token, slot]) * (down[expert] @ unit + down_bias[expert])
        return made

    def model(self) -> ir.Model:
        """x, chosen, weights → out; the Loops and what stands around them."""
        feeds = self.feeds
        inputs = [value(name, feeds[name], (0,)) for name in feeds]
        x, chosen, weights = inputs
        write = _Graph(self)
        flat = write("Reshape", chosen, write.ints(-1), dtype=ir.DataType.INT64)
        apart = write("Unsqueeze", x, write.ints(1))
        rows = write(
            "Reshape", write("Expand", apart, write.ints(1, self.count, 1)), write.ints(-1, self.hidden)
        )
        both = write.linear(rows, flat, "up", self.up, self.biases[0])
        made = write.linear(write.unit(both), flat, "down", self.down, self.biases[1])
        each = write("Reshape", made, write.ints(-1, self.count, self.hidden))
        spread = write("Unsqueeze", write(self.weighing, weights), write.ints(-1))
        out = write("ReduceSum", write("Mul", each, spread), write.ints(1), keepdims=0)
        model, _ = lowered(write.nodes, inputs, out)
        for each in write.stored:
            model.graph.register_initializer(each)
        for node in model.graph:
            node.name = f"layer.experts{node.name}"  # "/Loop_1", as there is no module
        return model


class _Graph:
    """Nodes and stored tensors of a mixture."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.nodes: list[ir.Node] = []
        self.stored: list[ir.Value] = []

    def __call__(
        self, op: str, *inputs: ir.Value | None, domain: str = "", dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: object,
    ) -> ir.Value:  # fmt: skip
        node = ir.node(op, inputs, attributes, domain=domain, name=f"layer.experts/{op}_{len(self.nodes)}")
        node.outputs[0].name, node.outputs[0].dtype = node.name, dtype
        self.nodes.append(node)
        return node.outputs[0]

    def store(self, array: Array) -> ir.Value:
        made = ir.Value(name=f"stored_{len(self.stored)}", shape=ir.Shape(array.shape))
        made.const_value = ir.tensor(np.ascontiguousarray(array), name=made.name)
        made.dtype = made.const_value.dtype
        self.stored.append(made)
        return made

    def ints(self, *content: int) -> ir.Value:
        return self.store(np.array(content, np.int64))

    def number(self, content: float) -> ir.Value:
        return self.store(np.array(content, np.float32))

    def linear(self, x: ir.Value, experts: ir.Value, name: str, weight: Array, bias: Array) -> ir.Value:
        transposed = self.mixture.transposed
        stored = self.store(weight.transpose(0, 2, 1) if transposed else weight)
        stored.name = name
        made = self(
            semantic.EXPERT_MATMUL, x, stored, experts, domain=semantic.DOMAIN, transposed=int(transposed)
        )
        if not self.mixture.biased:
            return made
        index = self("Unsqueeze", experts, self.ints(-1), dtype=ir.DataType.INT64)
        return self("Add", made, self("GatherND", self.store(bias), index))

    def unit(self, both: ir.Value) -> ir.Value:
        mixture, end = self.mixture, self.ints(2**63 - 1)
        if mixture.interleaved:
            axes, step = self.ints(1), self.ints(2)
            gate, up = (self("Slice", both, self.ints(start), end, axes, step) for start in (0, 1))
        else:
            split = ir.node(
                "Split", [both], {"axis": -1, "num_outputs": 2}, num_outputs=2, name="layer/Split"
            )
            for number, half in enumerate(split.outputs):
                half.name, half.dtype = f"half_{number}", ir.DataType.FLOAT
            self.nodes.append(split)
            gate, up = split.outputs
        if mixture.limit is not None:
            gate = self("Clip", gate, None, self.number(mixture.limit))
            up = self("Clip", up, self.number(-mixture.limit), self.number(mixture.limit))
        scaled = gate if mixture.alpha == 1.0 else self("Mul", gate, self.number(mixture.alpha))
        glu = self("Mul", gate, self(mixture.activation, scaled))
        return self("Mul", glu, self("Add", up, self.number(mixture.beta)) if mixture.beta else up)
