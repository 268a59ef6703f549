"""Further layers of a graph, cloned from those that were traced.

The layers of a transformer differ in their weights only, or do so again after a period. Tracing costs a
hundred times what copying nodes costs, so a trace holds the first few layers, and the others are copies
with the names of their own weights and of their own part of the cache.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxkit.graph.names import SCOPES

_BOUNDARY = re.compile(r"^(past_key_values|present)\.(\d+)\.")


class NotRepeating(Exception):
    """The traced layers are no pattern for the others; the text says why."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """Which layers a graph holds and which are to be cloned.

    Attributes:
        path: module path of the list of layers, as the nodes' metadata has it.
        kinds: of all layers; layers of one kind compute the same.
        traced: number of layers in the graph.
        templates: for every layer from `traced` on, the traced layer that it is a copy of.
    """

    path: str
    kinds: Sequence[object]
    traced: int
    templates: Sequence[int]


def plan_layers(path: str, kinds: Sequence[object]) -> LayerPlan | None:
    """The shortest beginning that all later layers repeat, or None if it is nearly all of them.

    A template stands at the second place at least (what the layers share may be made in the first), and
    the layer before it is of the kind that the copy will have before it.
    """
    pairs = list(zip([None, *kinds], kinds, strict=False))
    first: dict[object, int] = {}
    for layer, pair in enumerate(pairs):
        if layer > 0:
            first.setdefault(pair, layer)
    traced = max((first[pair] for pair in pairs[1:]), default=0) + 1
    traced = max(traced, 3)  # two that can be compared, apart from the first
    if len(kinds) - traced < 2:
        return None
    templates = [first[pair] for pair in pairs[traced:]]
    return LayerPlan(path=path, kinds=kinds, traced=traced, templates=templates)


def clone_layers(model: ir.Model, plan: LayerPlan) -> None:
    """Add the layers that the graph lacks, with the inputs and outputs of their cache, in place.

    Raises:
        NotRepeating: the graph's layers are not what the plan says.
    """
    layers = _Layers(model.graph, plan)
    layers.check()
    after, state = layers.tail(), layers.last
    readers = [use for use in state.uses() if layers.layer_of(use.node) is None]
    for number, template in enumerate(plan.templates, start=plan.traced):
        state = layers.clone(template, number, state, after)
    for use in readers:
        use.node.replace_input_with(use.idx, state)


class _Layers:
    """The traced layers of one graph: nodes, and the one value that each hands to the next."""

    def __init__(self, graph: ir.Graph, plan: LayerPlan) -> None:
        self.graph, self.plan = graph, plan
        self._numbers: dict[ir.Node, int] = {}
        self.nodes: list[list[ir.Node]] = [[] for _ in range(plan.traced)]
        pattern = re.compile(rf"{re.escape(plan.path)}\.(\d+)(\.|$)")
        for node in graph:
            number = _layer_number(node, pattern)
            if number is not None and number < plan.traced:
                self._numbers[node] = number
                self.nodes[number].append(node)
        self.incoming = [self._state(number - 1, number) for number in range(1, plan.traced)]
        self.last = self._state(plan.traced - 1, None)

    def layer_of(self, node: ir.Node) -> int | None:
        """The traced layer that a node belongs to."""
        return self._numbers.get(node)

    def _state(self, layer: int, reader: int | None) -> ir.Value:
        """What `layer` makes and `reader` (None: what comes after the layers) reads, and no other layer.

        What all layers share (sizes, for one) is made in the first of them.
        """
        read = []
        for output in (output for node in self.nodes[layer] for output in node.outputs):
            readers = {self.layer_of(use.node) for use in output.uses()} - {layer}
            if readers == {reader}:
                read.append(output)
        if len(read) != 1:
            raise NotRepeating(f"layer {layer} hands {len(read)} values on")
        return read[0]

    def tail(self) -> ir.Node:
        """The first node after the layers."""
        order = list(self.graph)
        position = order.index(self.nodes[-1][-1]) + 1
        if position == len(order):
            raise NotRepeating("nothing comes after the layers")
        return order[position]

    def check(self) -> None:
        """Layers of one kind are the same, node by node."""
        by_kind: dict[object, list[tuple[object, ...]]] = {}
        for number in range(1, self.plan.traced):
            previous = by_kind.setdefault(self.plan.kinds[number], self._signature(number))
            if previous != self._signature(number):
                raise NotRepeating(f"layer {number} differs from another of its kind")

    def _signature(self, number: int) -> list[tuple[object, ...]]:
        """Nodes with what they read: by place inside the layer, by role at its boundary, by name outside."""
        places = {out: (p, i) for p, n in enumerate(self.nodes[number]) for i, out in enumerate(n.outputs)}
        state = self.incoming[number - 1]

        def said(value: ir.Value | None) -> object:
            if value is None or value in places:
                return places.get(value) if value is not None else None
            return "state" if value is state else self._renamed(value.name or "", number, "N")

        return [
            (node.domain, node.op_type, len(node.outputs), tuple(map(said, node.inputs)), _attributes(node))
            for node in self.nodes[number]
        ]

    def _renamed(self, name: str, old: int, new: int | str) -> str:
        """A weight's, an input's or an output's name, for another layer."""
        path = re.escape(self.plan.path)
        name = re.sub(rf"^{path}\.{old}\.", f"{self.plan.path}.{new}.", name)
        return re.sub(rf"^(past_key_values|present)\.{old}\.", rf"\g<1>.{new}.", name)

    def clone(self, template: int, number: int, state: ir.Value, before: ir.Node) -> ir.Value:
        """Write layer `number` before a node, and return what it hands on."""
        values: dict[ir.Value, ir.Value] = {self.incoming[template - 1]: state}
        handed_on = self.incoming[template] if template < len(self.incoming) else self.last
        for node in self.nodes[template]:
            copy = ir.node(
                node.op_type,
                [self._counterpart(value, template, number, values) for value in node.inputs],
                attributes=dict(node.attributes),
                domain=node.domain,
                num_outputs=len(node.outputs),
            )
            copy.metadata_props.update(self._metadata(node.metadata_props, template, number))
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.shape, new.type = old.shape, old.type
                new.name = self._renamed(old.name or "", template, number)
                values[old] = new
                if old.is_graph_output():
                    self.graph.outputs.append(new)
                else:
                    new.name = f"{old.name}/{number}"
            self.graph.insert_before(before, copy)
        return values[handed_on]

    def _counterpart(
        self, value: ir.Value | None, template: int, number: int, values: Mapping[ir.Value, ir.Value]
    ) -> ir.Value | None:
        if value is None or value in values:
            return values[value] if value is not None else None
        name = self._renamed(value.name or "", template, number)
        if name == value.name:
            return value
        if value.is_initializer():
            return self._weight(value, name)
        return self._input(value, name)

    def _weight(self, value: ir.Value, name: str) -> ir.Value:
        if name not in self.graph.initializers:
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            self.graph.register_initializer(copy)
        return self.graph.initializers[name]

    def _input(self, value: ir.Value, name: str) -> ir.Value:
        known = {given.name: given for given in self.graph.inputs}
        if name not in known:
            copy = ir.Value(name=name, shape=value.shape, type=value.type)
            past = [i for i, v in enumerate(self.graph.inputs) if _BOUNDARY.match(v.name or "")]
            self.graph.inputs.insert(past[-1] + 1, copy)
            return copy
        return known[name]

    def _metadata(self, props: Mapping[str, str], template: int, number: int) -> dict[str, str]:
        old, new = f"{self.plan.path}.{template}", f"{self.plan.path}.{number}"
        pattern = re.compile(rf"{re.escape(old)}(?=\W)")
        return {key: pattern.sub(new, text) for key, text in props.items()}


def _layer_number(node: ir.Node, pattern: re.Pattern[str]) -> int | None:
    text = node.metadata_props.get(SCOPES)
    scopes = [str(scope) for scope in ast.literal_eval(text)] if text else []
    found = next((match for scope in scopes if (match := pattern.match(scope))), None)
    return int(found.group(1)) if found else None


def _attributes(node: ir.Node) -> tuple[tuple[str, str], ...]:
    graphs = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    if any(attribute.type in graphs for attribute in node.attributes.values()):
        raise NotRepeating(f"a layer holds {node.op_type}, which has a graph of its own")
    return tuple(sorted((name, _text(attribute)) for name, attribute in node.attributes.items()))


def _text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape} {tensor.tobytes()!r}"
    return str(attribute.value)
