"""Scaling the inputs of products without changing what the graph computes.

x·W = (x / s)·(s·W) for a positive factor s an input channel. The division costs nothing where what makes x
can take it: a normalization's weight, a multiplication by constants, the output channels of a linear layer
(through an attention, or a gate). Only the graph decides; where it offers nothing, one Mul is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.graph.edit import stored_sizes
from onnxkit.quantize.codes.weights import register
from onnxkit.quantize.operators import OPERATORS, Target
from onnxkit.quantize.smoothing.channels import Absorption, absorption, last_dimension, only_shape
from onnxkit.quantize.smoothing.layouts import target_shape

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Products that read one value, whose inputs are scaled together.

    Attributes:
        value: what they read, possibly through Reshape nodes.
        targets: the products.
        entries: (node, input index) of the uses of `value` that lead to the targets and to nothing else.
        absorption: how what makes `value` takes the division; None: a Mul is needed.
    """

    value: ir.Value
    targets: tuple[Target, ...]
    entries: tuple[tuple[ir.Node, int], ...]
    absorption: Absorption | None

    @property
    def depth(self) -> int:
        """Number of input channels."""
        return depth_of(self.targets[0])

    @property
    def ties(self) -> npt.NDArray[np.int64]:
        """Int64 `[K]`: channels with the same number must have the same factor."""
        return np.arange(self.depth) if self.absorption is None else self.absorption.channels


def groups_of(targets: Iterable[Target]) -> list[Group]:
    """Group the linear targets by the value that they read; in graph order.

    Left out are products whose weight something else reads (a tied table, a layer of another group), and
    those whose input reaches other nodes by the same Reshape.
    """
    by_value: dict[ir.Value, list[Target]] = {}
    for target in targets:
        if target.kind == "linear" and target.node.inputs[0] is not None:
            by_value.setdefault(_root(target.node.inputs[0], depth_of(target)), []).append(target)
    groups = (_group(value, members) for value, members in by_value.items())
    return [group for group in groups if group is not None]


def scale_inputs(model: ir.Model, group: Group, factors: Floats) -> None:
    """Divide the group's value by `factors` and multiply the rows of its weights by them, in place.

    Args:
        model: the float graph that holds the group, as it was when the group was found.
        group: of `groups_of`; use it once, and go through the groups in reverse graph order: the weights of
            earlier ones take the division of later ones.
        factors: float32 `[K]`, positive; equal where `group.ties` are equal.

    Raises:
        ValueError: a factor is not finite and positive, or tied channels differ.
    """
    if factors.shape != (group.depth,) or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ValueError(f"factors must be {group.depth} finite positive numbers")
    if group.absorption is not None:
        group.absorption.divide(model.graph, factors)
    else:
        _write_mul(model.graph, group, factors)
    for weight, axis in {target.weight: 1 - target.channel_axis for target in group.targets}.items():
        rescale(weight, factors if axis == 1 else factors[:, None])


def rescale(value: ir.Value, factors: npt.NDArray[np.float32]) -> None:
    """Multiply an initializer by what broadcasts to its shape, when it is read."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"'{value.name}' has no value")
    scaled = ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy() * factors),
        dtype=tensor.dtype,
        shape=ir.Shape(stored_sizes(value)),
        name=value.name,
    )
    value.const_value = scaled


def depth_of(target: Target) -> int:
    """K: the number of a linear target's input channels."""
    return stored_sizes(target.weight)[1 - target.channel_axis]


def _root(value: ir.Value, depth: int) -> ir.Value:
    """Look through Reshape and Identity nodes that keep the last axis."""
    while (producer := value.producer()) is not None and producer.domain == "":
        source = producer.inputs[0] if producer.inputs else None
        if source is None or producer.op_type not in ("Reshape", "Identity"):
            break
        if producer.op_type == "Reshape" and not _keeps_last(producer, depth):
            break
        value = source
    return value


def _keeps_last(reshape: ir.Node, depth: int) -> bool:
    """Whether a Reshape's input and output both end in an axis of `depth`."""
    shape, source = target_shape(reshape), reshape.inputs[0]
    return bool(shape) and shape[-1] == depth and last_dimension(source) == depth  # type: ignore[index]


def _group(value: ir.Value, members: Sequence[Target]) -> Group | None:
    nodes = {target.node for target in members}
    uses = [(use.node, use.idx) for use in value.uses() if not only_shape(use.node)]
    entries = [use for use in uses if all(end in nodes for end in _ends(*use))]
    reached = {node for use in entries for node in _ends(*use)}
    ours = [target for target in members if target.node in reached and _private(target, nodes)]
    if len(ours) < len(members):  # the others go on reading the value as it is
        return _group(value, ours) if ours else None
    free = len(entries) == len(uses) and not value.is_graph_output()
    how = absorption(value, depth_of(ours[0])) if free else None
    return Group(value=value, targets=tuple(ours), entries=tuple(entries), absorption=how)


def _ends(node: ir.Node, index: int) -> list[ir.Node | None]:
    """The nodes that a use reaches through Reshape and Identity; None stands for anything else."""
    if index == 0 and node.op_type in ("Reshape", "Identity") and node.domain == "":
        result = node.outputs[0]
        ends = [end for use in result.uses() for end in _ends(use.node, use.idx)]
        return [*ends, None] if result.is_graph_output() else ends
    return [node if index == 0 else None]


def _private(target: Target, nodes: set[ir.Node]) -> bool:
    """Whether nothing but products of the group reads the weight."""
    if target.weight.is_graph_output():
        return False
    for use in target.weight.uses():
        readers = [use.node]
        if use.node.op_type == "Transpose":
            readers = [further.node for further in use.node.outputs[0].uses()]
        if not all(reader in nodes for reader in readers):
            return False
    return True


def _write_mul(graph: ir.Graph, group: Group, factors: Floats) -> None:
    """One Mul by the reciprocals in front of all readers."""
    name = f"{group.targets[0].name}/smoothing"
    inverse = register(graph, f"{name}.factors", ir.Tensor((1.0 / factors).astype(np.float32)))
    mul = ir.node("Mul", [group.value, inverse], name=name)
    result = mul.outputs[0]
    result.name, result.type, result.shape = f"{name}:out", group.value.type, group.value.shape
    order = {node: number for number, node in enumerate(graph)}
    graph.insert_before(min((node for node, _ in group.entries), key=order.__getitem__), mul)
    for node, index in group.entries:
        node.replace_input_with(index, result)


def linear_targets(model: ir.Model) -> tuple[Target, ...]:
    """Every linear layer of a graph that the table of operators knows, in graph order."""
    found: list[Any] = []
    for node in model.graph:
        operator = OPERATORS.get((node.domain, node.op_type))
        found.append(operator.recognize(node) if operator is not None else None)
    return tuple(item for item in found if isinstance(item, Target) and item.kind == "linear")


__all__ = ["Group", "depth_of", "groups_of", "linear_targets", "rescale", "scale_inputs"]
