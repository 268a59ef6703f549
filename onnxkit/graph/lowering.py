"""Replaces semantic regions by a provider's own operators, as one table of lowerings says."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.edit import Editor
from onnxkit.graph.regions import Region, find_regions, replace

MICROSOFT = "com.microsoft"


class NotApplicable(Exception):
    """A lowering does not fit this region; the text says why."""


class Shared:
    """What the lowerings of one graph share: constants, and nodes by a key."""

    def __init__(self, graph: ir.Graph) -> None:
        self.editor = Editor(graph)
        self.values: dict[tuple[Any, ...], ir.Value] = {}
        self._names = {node.name for node in graph}
        self.replaced: dict[ir.Value, ir.Value] = {}

    def name(self, op: str) -> str:
        """Return an unused name for a node that regions share."""
        number = 0
        while f"shared/{op}_{number}" in self._names:
            number += 1
        self._names.add(f"shared/{op}_{number}")
        return f"shared/{op}_{number}"

    def current(self, region: Region) -> Region:
        """Return the region with inputs that earlier lowerings have replaced brought up to date."""
        inputs = {r: self.replaced.get(v, v) if v is not None else None for r, v in region.inputs.items()}
        return dataclasses.replace(region, inputs=inputs)


class Draft:
    """New nodes for one region, not yet in the graph, and the constants that they need.

    Attributes:
        graph: the graph that the region is in.
        masks: the mask regions of the graph, by the additive value that they make.
        nodes: what was drafted so far, in order.
    """

    def __init__(
        self, graph: ir.Graph, region: Region, masks: Mapping[ir.Value, Region], shared: Shared
    ) -> None:
        self.graph, self.region, self.masks, self._shared = graph, region, masks, shared
        self.nodes: list[ir.Node] = []

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Draft a node with one output; its name is the region's id, with `name` behind it if given."""
        return self._node(op, inputs, domain, name, 1, attributes).outputs[0]

    def microsoft(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Draft the region's main node, an operator of ONNX Runtime's own."""
        return self.add(op, inputs, domain=MICROSOFT, **attributes)

    def microsoft_cached(
        self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> dict[str, ir.Value]:
        """Draft a main node that also makes the keys and values to keep; outputs by the region's roles."""
        node = self._node(op, inputs, MICROSOFT, "", 3, attributes)
        return dict(zip(("out", "present_key", "present_value"), node.outputs, strict=True))

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        domain: str,
        name: str,
        outputs: int,
        attributes: Mapping[str, Any],
    ) -> ir.Node:
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        title = self.region.id.replace("#", "/") + (f"/{name}" if name else "")
        node = ir.node(op, trimmed, attributes, domain=domain, num_outputs=outputs, name=title)
        for number, value in enumerate(node.outputs):
            value.name = f"{title}:{number}" if number else f"{title}:out"
        self.nodes.append(node)
        return node

    def shared(
        self, key: tuple[Any, ...], op: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> ir.Value:
        """Return the output of a standard node that all regions share; the first one puts it before itself.

        `key` tells it from other nodes; regions are lowered in the graph's order, so it is made in time.
        """
        key = (op, *key)
        if key not in self._shared.values:
            node = ir.node(op, inputs, attributes, name=self._shared.name(op))
            node.outputs[0].name = f"{node.name}:out"
            self.graph.insert_before(self.region.nodes[0], node)
            self._shared.values[key] = node.outputs[0]
        return self._shared.values[key]

    def settle(self, outputs: Mapping[str, ir.Value]) -> None:
        """Note that `outputs`, by role, now stand where the region's outputs stood."""
        self._shared.replaced.update({self.region.outputs[role]: new for role, new in outputs.items()})

    def weight(self, name: str, sources: Sequence[ir.Value], tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer made from other weights; regions that share those share it, too (ALBERT)."""
        key = ("weight", *sources)
        if key not in self._shared.values:
            while name in self.graph.initializers:
                name += "_"
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
            self._shared.values[key] = value
        return self._shared.values[key]

    def constant(self, content: Any) -> ir.Value:
        """Return a small constant, shared with whoever needs the same."""
        return self._shared.editor.constant(content)


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One row: how a kind of region is written in a provider's dialect.

    Attributes:
        name: what `--disable-fusion` calls it.
        op: the region's operator.
        apply: drafts the replacement of a region, returns the value that stands for its output; where the
            region has several, the values by role.
        summary: one line for the documentation.
        cached: for regions over keys and values of a cache, and only for those.
    """

    name: str
    op: str
    apply: Callable[[Draft], ir.Value | Mapping[str, ir.Value]]
    summary: str
    cached: bool = False

    def concerns(self, region: Region) -> bool:
        """Whether it is about such a region; what it is not about is no reason to keep one primitive."""
        return self.op == region.op and self.cached == (region.inputs.get("past_key") is not None)


@dataclass(kw_only=True)
class LoweringResult:
    """What `lower` did.

    Attributes:
        lowered: number of regions by the name of the lowering.
        kept: reasons why regions stay primitive, by the region's operator, with their number.
    """

    lowered: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def lower(
    model: ir.Model,
    rows: Sequence[Lowering],
    *,
    disabled: Collection[str] = (),
    regions: Iterable[Region] | None = None,
) -> LoweringResult:
    """Replace every region that one of `rows` fits, the first that fits, in place.

    Args:
        model: the graph; dtypes of its values are derived.
        rows: the lowerings of a provider, preferred ones first.
        disabled: names of rows to leave out.
        regions: recognized in a foreign graph; None takes those that are written in the metadata.
    """
    infer_dtypes(model)
    found = list(find_regions(model) if regions is None else regions)
    masks = {region.outputs["out"]: region for region in found if region.op == "mask"}
    shared = Shared(model.graph)
    result = LoweringResult()
    for region in found:
        candidates = [row for row in rows if row.concerns(region) and row.name not in disabled]
        if candidates:
            _lower_one(model, Draft(model.graph, shared.current(region), masks, shared), candidates, result)
    if result.lowered:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return result


def _lower_one(model: ir.Model, draft: Draft, candidates: Sequence[Lowering], result: LoweringResult) -> None:
    reasons = []
    for row in candidates:
        try:
            made = row.apply(draft)
        except NotApplicable as reason:
            reasons.append(f"{row.name}: {reason}")
            draft.nodes.clear()
            continue
        outputs = {"out": made} if isinstance(made, ir.Value) else made
        replace(model, draft.region, draft.nodes, outputs)
        draft.settle(outputs)
        result.lowered[row.name] += 1
        return
    result.kept[draft.region.op]["; ".join(reasons)] += 1
