"""Iterators over everything that an ONNX protobuf can hide a tensor, a node or a type in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import onnx


def top_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and the training graphs; functions and subgraphs are not among them."""
    yield model.graph
    for training in model.training_info:
        yield training.initialization
        yield training.algorithm


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node's attributes (branches, loop bodies), not deeper ones."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield every graph of the model at any depth, those inside functions too."""
    waiting = [*top_graphs(model)]
    for function in model.functions:
        waiting.extend(graph for node in function.node for graph in subgraphs(node))
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(inner for node in graph.node for inner in subgraphs(node))


def with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield `nodes` and the nodes of their subgraphs at any depth."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for graph in subgraphs(node) for child in graph.node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the model: of graphs at any depth and of functions."""
    for graph in all_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor: initializers, sparse ones (values and indices), attributes, function defaults."""
    for graph in all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    attributes = chain.from_iterable(node.attribute for node in all_nodes(model))
    defaults = chain.from_iterable(function.attribute_proto for function in model.functions)
    for attribute in chain(attributes, defaults):
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for tensor in chain(sparse, attribute.sparse_tensors):
        yield from (tensor.values, tensor.indices)


def all_values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield every typed value: inputs, outputs and value_info of graphs and functions."""
    for graph in all_graphs(model):
        yield from chain(graph.input, graph.output, graph.value_info)
    for function in model.functions:
        yield from function.value_info


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """Return a tensor's external-data entries (`location`, `offset`, `length`, …)."""
    return {entry.key: entry.value for entry in tensor.external_data}
