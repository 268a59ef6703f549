"""Clean-up of a traced FX graph; it stands in for torch's decompositions, which cost seconds.

Needs only the fake tensors that the trace left on the nodes (`meta["val"]`): what does nothing is
dropped, in-place operators become functional ones, and type promotion is written out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes

_aten = torch.ops.aten

_CASTS = {
    _aten.to.dtype,
    _aten.to.device,
    _aten.to.dtype_layout,
    _aten.to.other,
    _aten._to_copy.default,
    _aten.type_as.default,
}
_IDENTITIES = {
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.detach_.default,
    _aten.alias.default,
    _aten.lift_fresh_copy.default,
    _aten.clone.default,
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.feature_dropout.default,
}
_RENAMED = {
    _aten.min.other: _aten.minimum.default,
    _aten.max.other: _aten.maximum.default,
    _aten.__and__.Tensor: _aten.bitwise_and.Tensor,
    _aten.__or__.Tensor: _aten.bitwise_or.Tensor,
    _aten.__xor__.Tensor: _aten.bitwise_xor.Tensor,
    _aten.view.default: _aten.reshape.default,
    _aten.clip.default: _aten.clamp.default,
    _aten.swapaxes.default: _aten.transpose.int,
}
_WHOLE_POOLS = {_aten.adaptive_avg_pool1d.default: [-1], _aten.adaptive_avg_pool2d.default: [-2, -1]}
"""Operator → the axes that it pools."""
_ARITHMETIC = {_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor}
_SUMS = {_aten.cumsum.default, _aten.sum.default, _aten.sum.dim_IntList, _aten.prod.default}
_SAME_SHAPE = {_aten.expand.default, _aten.slice.Tensor, _aten.view.default, _aten.reshape.default}
_VIEWS = {
    _aten.view.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.expand.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.t.default,
    _aten.unbind.int,
    _aten.split.Tensor,
    _aten.chunk.default,
}

_TYPED = {
    _aten.embedding.default,
    _aten.index_select.default,
    _aten.index.Tensor,
    _aten.gather.default,
    _aten.argmax.default,
    _aten.where.self,
    _aten.masked_fill.Scalar,
    torch.ops.prims.convert_element_type.default,
}
"""Operators whose inputs and outputs differ in type by their meaning, not by promotion."""

_COMPARISONS = {
    overload
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for overload in (getattr(_aten, name).Scalar, getattr(_aten, name).Tensor)
}


class NeedsDecomposition(Exception):
    """The graph holds what only torch's own decompositions can take apart."""


def clean(program: ExportedProgram) -> None:
    """Clean `program`'s graph in place.

    Raises:
        NeedsDecomposition: for an in-place operator on a view or on an input.
    """
    graph = program.graph
    drop_assertions(program)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        node.target = _RENAMED.get(node.target, node.target)
        if is_in_place(node):
            _make_functional(node)
        _type_sizes(node)
        _simplify(node)
    _rename_outputs(program)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    if any(_mixes_types(node) for node in graph.nodes):
        _fx_passes.insert_type_promotion_nodes(program.graph_module)


def _mixes_types(node: torch.fx.Node) -> bool:
    """Whether torch promotes types here. Where no node does, the pass need not run the whole graph again."""
    value = node.meta.get("val")
    if node.op != "call_function" or node.target in _TYPED or not isinstance(value, torch.Tensor):
        return False
    read = {
        arg.meta["val"].dtype for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)
    }
    if node.target in _COMPARISONS:
        return len(read) > 1 or isinstance(node.args[1], float)
    return len(read | {value.dtype}) > 1 and not str(node.target).startswith("onnxkit.")


def _rename_outputs(program: ExportedProgram) -> None:
    """The signature names the output nodes, some of which were replaced."""
    outputs: Any = program.graph.output_node().args[0]
    for spec, node in zip(program.graph_signature.output_specs, outputs, strict=True):
        if isinstance(node, torch.fx.Node):
            spec.arg.name = node.name


def _is_assertion(node: torch.fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and not node.users and ("assert" in name or "sym_constrain" in name)


def is_in_place(node: torch.fx.Node) -> bool:
    """Whether the node changes a tensor that it is given."""
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None
        and schema.is_mutable
        and schema.name.startswith("aten::")
        and node.target not in _IDENTITIES
    )


def make_functional(program: ExportedProgram) -> None:
    """What changes a tensor in place returns a new one instead, where that is plain to see."""
    for node in list(program.graph.nodes):
        if is_in_place(node):
            with contextlib.suppress(NeedsDecomposition):
                _make_functional(node)
    _rename_outputs(program)


def _make_functional(node: torch.fx.Node) -> None:
    """`x.add_(y)` becomes `x.add(y)`, and what reads x later reads the sum."""
    target: Any = node.target
    changed = node.args[0]
    if not isinstance(changed, torch.fx.Node) or changed.op != "call_function" or changed.target in _VIEWS:
        raise NeedsDecomposition(f"{target} on a view or an input")
    if any(user.target in _VIEWS for user in changed.users if user is not node):
        raise NeedsDecomposition(f"{target} on a tensor that has views")
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(_aten, name, None)
    if packet is None or target._overloadname not in packet.overloads():
        raise NeedsDecomposition(f"{target} has no functional twin")
    later = _nodes_after(node)
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
    node.target = getattr(packet, target._overloadname)


def _nodes_after(node: torch.fx.Node) -> set[torch.fx.Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _type_sizes(node: torch.fx.Node) -> None:
    """A size, int64 in ONNX, takes the type of the narrower integers that it meets, as in torch."""
    value = node.meta.get("val")
    if node.target not in _ARITHMETIC or not isinstance(value, torch.Tensor) or value.dtype != torch.int32:
        return
    for size in node.all_input_nodes:
        if isinstance(size.meta.get("val"), torch.SymInt):
            with node.graph.inserting_before(node):
                typed = node.graph.call_function(_aten.scalar_tensor.default, (size,), {"dtype": value.dtype})
            typed.meta = {**node.meta, "val": value.new_empty(())}
            node.replace_input_with(size, typed)


def _simplify(node: torch.fx.Node) -> None:
    source = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
    if source is None:
        return
    value, before = node.meta.get("val"), source.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(before, torch.Tensor):
        return
    if node.target in _SUMS and not before.dtype.is_floating_point and before.dtype != value.dtype:
        node.replace_input_with(source, _cast_before(node, source, value.dtype))
    elif node.target in _IDENTITIES or (node.target in _CASTS and value.dtype == before.dtype):
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)  # torch holds some of them to have effects, and would keep them
    elif node.target in _CASTS:
        node.replace_all_uses_with(_cast_before(node, source, value.dtype))
    elif node.target in _SAME_SHAPE and _same_shape(value.shape, before.shape) and not _skips(node):
        node.replace_all_uses_with(source)


def _cast_before(node: torch.fx.Node, source: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
    with node.graph.inserting_before(node):
        cast = node.graph.call_function(torch.ops.prims.convert_element_type.default, (source, dtype))
    cast.meta = {**node.meta, "val": source.meta["val"].to(dtype)}
    return cast


def _same_shape(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return [str(size) for size in left] == [str(size) for size in right]


def _skips(node: torch.fx.Node) -> bool:
    """A slice with a step keeps its shape only where the axis has one element or none."""
    return bool(node.target is _aten.slice.Tensor and len(node.args) > 4 and node.args[4] != 1)


def write_plainly(program: ExportedProgram) -> None:
    """Drop assertions, and say with a common operator what a rare one says here: a pool of everything is a
    mean. Torch's decompositions would trace the whole program again."""
    drop_assertions(program)
    for node in program.graph.nodes:
        node.target = _RENAMED.get(node.target, node.target)
        axes, sizes = _WHOLE_POOLS.get(node.target), node.args[1:2]
        if axes is not None and {*sizes[0]} == {1}:
            node.target, node.args = _aten.mean.dim, (node.args[0], axes, True)


def drop_assertions(program: ExportedProgram) -> None:
    """Remove the assertions of a trace, and what was computed for them alone."""
    for node in [node for node in program.graph.nodes if _is_assertion(node)]:
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()


def foreign_operators(program: ExportedProgram) -> set[Any]:
    """The operators that `clean` leaves in the graph, as far as their names tell."""
    dropped = _CASTS | _IDENTITIES
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    left = {node.target for node in nodes if node.target not in dropped and not is_in_place(node)}
    return {_RENAMED.get(target, target) for target in left}


def operator_counts(program: ExportedProgram) -> Mapping[str, int]:
    """How many nodes of each semantic operator (`attention`, `mask`, `rotary`) the graph holds."""
    counts: dict[str, int] = {}
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith("onnxkit."):
            key = name.split(".")[1]
            counts[key] = counts.get(key, 0) + 1
    return counts
