"""Semantic regions: which primitives together are one attention, mask, rotation or GELU.

Every node of a region carries three `metadata_props`, which any client may ignore: the region's id
(`onnxkit.region`: "<module path>#<op>"), its operator (`onnxkit.op`) and, as JSON, its attributes and
the names of its boundary values (`onnxkit.attrs`). A lowering finds the region again without
pattern search and replaces it whole.

| op | inputs | outputs | attributes |
|---|---|---|---|
| attention | q, k, v [, past_key, past_value] [, mask] [, bias] (float, additive) [, sinks] | out [, present_key, present_value] | num_heads, kv_num_heads, head_dim, v_head_dim, scale, softcap (0.0: none), causal, layout |
| mask | padding (bool `[B,T]`); causal or window: queries, keys (their numbers) | out (additive) | causal, window (0: none) |
| rotary | x, cos, sin `[B or 1,S,R]` | out | interleaved, layout, num_heads, head_dim, rotary_dim (R; absent: head_dim) |
| rms_norm | x, weight (what multiplies) | out | epsilon |
| gelu | x | out | approximate |

Layout "bsh": q, k, v, out and x are `[B,S,H·D]`; "bhsd": `[B,H,S,D]`; "cross": q and out `[B,S,H·D]`, k and v
`[B,KVH,T,D]`, the cached keys of an encoder. Past and present are `[B,KVH,T,D]` always.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

REGION, OP, ATTRS = "onnxkit.region", "onnxkit.op", "onnxkit.attrs"
_BOUNDARY = ("inputs", "outputs", "nodes")


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A set of nodes that computes one semantic operator.

    Attributes:
        inputs: boundary values by role; None where the operator has no such input here.
        outputs: values by role; nothing else that the nodes make is used outside.
        nodes: in the graph's order.
    """

    id: str
    op: str
    attrs: Mapping[str, Any]
    inputs: Mapping[str, ir.Value | None]
    outputs: Mapping[str, ir.Value]
    nodes: tuple[ir.Node, ...]


def annotate(region: Region) -> None:
    """Write a region into the metadata of its nodes. The boundary values must bear their final names."""
    content = {
        **region.attrs,
        "inputs": {role: value.name if value is not None else None for role, value in region.inputs.items()},
        "outputs": {role: value.name for role, value in region.outputs.items()},
        "nodes": [node.op_type for node in region.nodes],
    }
    text = json.dumps(content, separators=(",", ":"))
    for node in region.nodes:
        node.metadata_props.update({REGION: region.id, OP: region.op, ATTRS: text})


def find_regions(model: ir.Model) -> list[Region]:
    """The regions of the main graph, in the graph's order; those that no longer hold are left out.

    A region holds when its nodes are all there and unchanged in kind, its boundary values exist, every
    input is read inside, nothing else from outside but constants is, and no inner value leaves it.
    """
    values = _values_by_name(model.graph)
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if REGION in node.metadata_props:
            groups.setdefault(node.metadata_props[REGION], []).append(node)
    found = (_read(name, nodes, values) for name, nodes in groups.items())
    return [region for region in found if region is not None and _holds(region)]


def replace(
    model: ir.Model, region: Region, nodes: Sequence[ir.Node], outputs: Mapping[str, ir.Value]
) -> None:
    """Put `nodes` in the place of a region; `outputs` names, by role, the values that stand for its own.

    New nodes may read the region's inputs and any constant. Values keep the names of those they replace.
    """
    last = region.nodes[-1]
    model.graph.insert_before(last, list(nodes))
    for role, old in region.outputs.items():
        new, name = outputs[role], old.name
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{name}/replaced", name
    model.graph.remove(list(region.nodes), safe=True)


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    made = [output for node in graph for output in node.outputs]
    everything = [*graph.inputs, *graph.initializers.values(), *made]
    return {value.name: value for value in everything if value.name}


def _read(name: str, nodes: list[ir.Node], values: Mapping[str, ir.Value]) -> Region | None:
    texts = {(node.metadata_props.get(OP), node.metadata_props.get(ATTRS)) for node in nodes}
    op, text = next(iter(texts))
    if len(texts) != 1 or op is None or text is None:
        return None
    try:
        content = json.loads(text)
        named_inputs, named_outputs = dict(content["inputs"]), dict(content["outputs"])
        kinds = list(content["nodes"])
    except (ValueError, KeyError, TypeError):
        return None
    names = [n for n in [*named_inputs.values(), *named_outputs.values()] if n is not None]
    if any(n not in values for n in names) or sorted(kinds) != sorted(node.op_type for node in nodes):
        return None
    return Region(
        id=name,
        op=op,
        attrs={key: value for key, value in content.items() if key not in _BOUNDARY},
        inputs={role: values[n] if n is not None else None for role, n in named_inputs.items()},
        outputs={role: values[n] for role, n in named_outputs.items()},
        nodes=tuple(nodes),
    )


def _holds(region: Region) -> bool:
    inside = set(region.nodes)
    outputs = set(region.outputs.values())
    inputs = {value for value in region.inputs.values() if value is not None}
    read = {value for node in region.nodes for value in node.inputs if value is not None}
    foreign = {v for v in read if v.producer() not in inside and not v.is_initializer()}
    if not inputs <= read or not foreign <= inputs:
        return False
    if any(value.producer() not in inside for value in outputs):
        return False
    return all(
        _stays_inside(value, inside) for n in region.nodes for value in n.outputs if value not in outputs
    )


def _stays_inside(value: ir.Value, inside: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in inside for use in value.uses())
