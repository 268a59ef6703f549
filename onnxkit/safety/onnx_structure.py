"""Rules for the graph of an ONNX file: unique names, no cycles, functions that expand to a bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeVar

import onnx

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.onnx_walk import all_graphs, subgraphs, with_inner
from onnxkit.safety.text import printable

# A chain of 22 functions that call the next one twice hangs ONNX Runtime, the optimizer and the
# quantizer; the largest real graphs have some ten thousand nodes.
MAX_EXPANDED_NODES = 1_000_000

FunctionKey = tuple[str, str, str]
"""A function's domain, name and overload."""

Key = TypeVar("Key", bound=Hashable)


def check_structure(model: onnx.ModelProto, path: Path) -> None:
    """Check names and cycles of every graph and function, and how far the functions expand.

    Raises:
        InputError: a value is computed twice, nodes form a cycle, or a function is defined twice.
        UnsafeError: functions call each other in a circle, or expand to over a million nodes.
    """
    for graph in all_graphs(model):
        given = [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)]
        _check_nodes(graph.node, given, f"{path}: graph {printable(graph.name, limit=80)!r}")
    for function in model.functions:
        where = f"{path}: function {printable(function.name, limit=80)!r}"
        _check_nodes(function.node, function.input, where)
    _check_functions(model, path)


def _check_nodes(nodes: Sequence[onnx.NodeProto], given: Iterable[str], where: str) -> None:
    producer: dict[str, int] = {}
    taken = {name for name in given if name}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producer or name in taken:
                raise InputError(f"{where}: {printable(name, limit=120)!r} is computed twice")
            producer[name] = index
    needs = {
        index: {producer[name] for name in _used_names(node) if name in producer}
        for index, node in enumerate(nodes)
    }
    cycle = _cycle(needs)
    if cycle:
        names = " -> ".join(_title(nodes[index]) for index in cycle[:4])
        raise InputError(f"{where}: its nodes form a cycle ({names})")


def _used_names(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads: its inputs, and what its subgraphs take from outside."""
    used = {name for name in node.input if name}
    for graph in subgraphs(node):
        inner: set[str] = {value.name for value in graph.output}
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        for child in graph.node:
            inner |= _used_names(child)
            own.update(child.output)
        used |= inner - own
    return used


def _title(node: onnx.NodeProto) -> str:
    return printable(node.name or node.op_type, limit=60)


def _cycle(needs: Mapping[Key, Iterable[Key]]) -> list[Key]:
    """Return the keys of one cycle, or an empty list."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        found: list[Key] = error.args[1]
        return found
    return []


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if len(functions) != len(model.functions):
        raise InputError(f"{path}: a function is defined twice")
    calls = {key: _calls(function.node, functions) for key, function in functions.items()}
    cycle = _cycle({key: called.keys() for key, called in calls.items()})
    if cycle:
        names = " -> ".join(printable(key[1], limit=60) for key in cycle[:4])
        raise UnsafeError(f"{path}: its functions call each other in a circle ({names})")
    sizes: dict[FunctionKey, int] = {}
    for key in TopologicalSorter({key: called.keys() for key, called in calls.items()}).static_order():
        sizes[key] = sum(1 for _ in with_inner(functions[key].node)) + _expanded(calls[key], sizes)
    total = _expanded(_calls(model.graph.node, functions), sizes)
    if total > MAX_EXPANDED_NODES:
        raise UnsafeError(f"{path}: its functions expand to more than {MAX_EXPANDED_NODES} nodes")


def _expanded(calls: Mapping[FunctionKey, int], sizes: Mapping[FunctionKey, int]) -> int:
    # Cut off above the bound, so that 2^100000 is never computed.
    total = sum(times * sizes[key] for key, times in calls.items())
    return min(total, MAX_EXPANDED_NODES + 1)


def _calls(nodes: Iterable[onnx.NodeProto], known: Collection[FunctionKey]) -> Counter[FunctionKey]:
    """Count the calls of each known function in `nodes` and their subgraphs."""
    keys = ((node.domain, node.op_type, node.overload) for node in with_inner(nodes))
    return Counter(key for key in keys if key in known)
