"""What every quantizable operator answers: is this node one, and how is it written in a format."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NotRequired, TypedDict, TypeGuard

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.graph.edit import is_stored, stored_sizes
from onnxkit.quantize.activations import Activations, QuantizedActivation
from onnxkit.quantize.codes.block_store import BlockStore
from onnxkit.quantize.codes.codebook import BlockedTensor, CodeBook
from onnxkit.quantize.codes.weights import Rounder, WeightStore
from onnxkit.quantize.formats import Format, IntegerFormat, Plan, Way

CONTRIB = "com.microsoft"
OLDEST_OPSET = 13  # per-channel QuantizeLinear, Split and Squeeze as they are written here


class Placement(TypedDict):
    """How a weight is quantized: the arguments of `WeightStore`."""

    axis: int
    format: IntegerFormat
    layer: str
    part: NotRequired[slice | None]


class Rounded(TypedDict):
    """How its codes are found: a further argument of `WeightStore.codes`."""

    rounder: Rounder | None


Kind = Literal["linear", "embedding", "conv", "experts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """A node of a quantizable operator that must stay float, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A node that can be quantized.

    Attributes:
        node: of the float graph.
        kind: policies are about kinds, not operators.
        weight: the float initializer that is quantized.
        channel_axis: the axis of `weight` that has one scale an entry.
        activation: the value whose range is needed (None: the operator only looks values up).
        result: a further value whose range a static scheme needs (None: its output stays float).
        operator: the row of the table that rewrites it.
        tied: a lookup and a product share the weight: one copy of its codes serves both.
    """

    node: ir.Node
    kind: Kind
    weight: ir.Value
    channel_axis: int
    activation: ir.Value | None
    result: ir.Value | None = None
    operator: Operator
    tied: bool = False

    @property
    def name(self) -> str:
        """The node's name: a module path in our own exports."""
        return str(self.node.name)

    @property
    def channels(self) -> int:
        """Number of scales of the weight."""
        return stored_sizes(self.weight)[self.channel_axis]

    @property
    def depth(self) -> int:
        """Number of weights that share a channel."""
        return self.parameters // max(1, self.channels)

    @property
    def parameters(self) -> int:
        """Number of elements of the weight."""
        return math.prod(stored_sizes(self.weight))


@dataclasses.dataclass(kw_only=True)
class Rewriting:
    """What an operator needs to write a target in its format into a graph.

    Attributes:
        formats: what each target becomes.
        activations: how the inputs of integer products become codes, by `IntegerFormat.activations`.
        weights: makes the initializers of integer formats.
        blocks: makes those of blocks.
        book: finds the codes of both by what layers saw.
        masks: what attentions share of a mask of integers, by it and what it adds: whether it hides anything,
            and itself in float.
    """

    graph: ir.Graph
    formats: Plan
    activations: Mapping[str, Activations]
    weights: WeightStore
    blocks: BlockStore
    book: CodeBook
    masks: dict[tuple[ir.Value, float], tuple[ir.Value, ir.Value]] = dataclasses.field(default_factory=dict)

    def format_of(self, target: Target) -> Format:
        """What the target becomes."""
        return self.formats[target.name]

    def integer(self, target: Target) -> IntegerFormat:
        """The format of a target that computes with integers."""
        found = self.formats[target.name]
        if not isinstance(found, IntegerFormat):
            raise ValueError(f"layer '{target.name}' is planned as {found.describe()}")
        return found

    def rounded(self, target: Target) -> Rounded:
        """How the codes of an integer weight are found."""
        return {"rounder": self.book.rounder(target.name, self.integer(target))}

    def activations_of(self, target: Target) -> Activations:
        """How the target's input becomes codes."""
        return self.activations[self.integer(target).activations]

    def input_of(self, target: Target) -> QuantizedActivation:
        """The target's input as u8 codes, made before its node or by an earlier reader."""
        return self.activations_of(target).quantized(
            input_of(target), before=target.node, layer=target.name, graph=self.graph
        )

    def rows_of(self, target: Target) -> QuantizedActivation:
        """As `input_of`, with a factor for each row where the activations have one."""
        return self.activations_of(target).by_row(
            input_of(target), before=target.node, layer=target.name, graph=self.graph
        )

    def dequantized_input_of(self, target: Target) -> ir.Value:
        """The target's input, gone through its codes: float, for the float operator of a qdq pair."""
        return self.activations_of(target).dequantized(
            input_of(target), before=target.node, layer=target.name, graph=self.graph
        )

    def insert(self, before: ir.Node, nodes: Iterable[ir.Node]) -> None:
        """Put nodes in front of `before`, with the file's opset imports kept complete."""
        made = list(nodes)
        self.graph.insert_before(before, made)
        for node in made:
            if node.domain == CONTRIB:
                self.graph.opset_imports.setdefault(CONTRIB, 1)

    def replace(self, old: ir.Node, result: ir.Value, nodes: list[ir.Node], new: ir.Value) -> None:
        """Insert `nodes` before `old`, let everyone who read `result` read `new` under `result`'s name.

        `old` and the nodes between it and `result` lose their use and are removed.
        """
        self.insert(old, nodes)
        name, kind, shape = result.name, result.type, result.shape
        producer = result.producer()
        result.replace_all_uses_with(new, replace_graph_outputs=True)
        result.name = f"{name}.float"
        for value in (value for made in nodes for value in made.outputs if value.name == name):
            value.name = f"{name}.inner"  # a corrected product's: its Add bears the name that a product gets
        new.name, new.type, new.shape = name, kind, shape
        if producer is not None and producer is not old:
            self.graph.remove(producer, safe=True)
        self.graph.remove(old, safe=True)


def blocked_tensor(target: Target) -> BlockedTensor:
    """The target's weight, to be put in blocks. A tied head takes the table's codes, of no input's making."""
    if target.weight.const_value is None:
        raise InputError(f"the weight '{target.weight.name}' has no value in the file")
    return BlockedTensor(
        tensor=target.weight.const_value, name=str(target.weight.name),
        turned=target.channel_axis == 0, layer=target.name,
        seen=target.activation is not None and not target.tied,
    )  # fmt: skip


def input_of(target: Target) -> ir.Value:
    """The activation that the target's node reads now."""
    value = target.node.inputs[0]  # not `target.activation`: an earlier rewriting may have replaced it
    if value is None:
        raise InputError(f"layer '{target.name}' reads no activation")
    return value


class Operator(ABC):
    """One quantizable operator. Stateless.

    Attributes:
        default_for: the ways of a scheme in which it is quantized unasked.
        possible_for: those in which `--op-types` may ask for it.
    """

    op_type: ClassVar[str]
    domain: ClassVar[str] = ""
    default_for: ClassVar[frozenset[Way]] = frozenset({"dynamic", "static", "blocks", "log"})
    possible_for: ClassVar[frozenset[Way]] = frozenset({"dynamic", "static", "blocks", "log"})

    @abstractmethod
    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """Say what the node is; None when it has no weight in the sense of this operator at all."""

    def opset(self, target: Target, format: Format) -> int:
        """The oldest opset of the standard operators that its form in the format has."""
        return OLDEST_OPSET

    @abstractmethod
    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Replace the target's node by its form in `context.formats`. Weight errors are InputError."""


def node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    *,
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
    outputs: int = 1,
) -> ir.Node:
    """Make a node whose outputs are named after it."""
    made = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs, name=name)
    for index, value in enumerate(made.outputs):
        value.name = f"{name}:{index}" if outputs > 1 else f"{name}:out"
    return made


def array(value: ir.Value) -> np.ndarray[Any, Any]:
    """The contents of an initializer."""
    if value.const_value is None:
        raise InputError(f"'{value.name}' has no value in the file")
    return value.const_value.numpy()


def float_initializer(value: ir.Value | None, rank: int | None = None) -> TypeGuard[ir.Value]:
    """Whether the value is a float32 tensor (of that rank) in the file, as `is_stored`."""
    return is_stored(value, rank, ir.DataType.FLOAT)


def attribute(item: ir.Node, name: str, default: Any) -> Any:
    """Value of an attribute, or its default."""
    found = item.attributes.get(name)
    return default if found is None else found.value


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, when there is one and the value is no graph output."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def int8_zero(context: Rewriting, channels: int) -> ir.Value:
    """An int8 vector of zeros: the zero points of symmetric weights."""
    return context.weights.constant(f"onnxkit.zero_point.{channels}", np.zeros(channels, dtype=np.int8))


def int32_bias(
    target: Target, context: Rewriting, bias: ir.Value, scales: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Codes (int32) and scales (float32) of a bias, `[N]` each: scale = activation's scale * weight's scale.

    Source: ONNX QLinearConv. Calibrated activations only: `input_of` their range is a constant.
    """
    product = array(context.input_of(target).scale).astype(np.float64) * array(scales)
    codes = np.clip(np.rint(array(bias) / product), -(2**30), 2**30).astype(np.int32)
    constant = context.weights.constant
    return (
        constant(f"{target.name}.bias.int32", codes),
        constant(f"{target.name}.bias.scale", product.astype(np.float32)),
    )


def is_tied(weight: ir.Value) -> bool:
    """Whether both a lookup and a matrix product read the weight (a tied output head)."""
    readers = {use.node.op_type for use in weight.uses()}
    return "Gather" in readers and bool(readers & {"Gemm", "FusedMatMul", "Transpose"})
