"""Small edits that every pass and lowering needs: shared constants, nodes before a node, replaced values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

SMALL = 4096
"""Elements up to which a constant is looked into; weights are never materialized for a look."""


def small_array(value: ir.Value | None) -> np.ndarray | None:
    """The contents of a small constant (an initializer, or the output of a Constant node), else None."""
    if value is None:
        return None
    tensor: Any = value.const_value
    if tensor is None:
        producer = value.producer()
        if producer is None or producer.op_type != "Constant" or producer.domain != "":
            return None
        tensor = ir.convenience.get_const_tensor(value)
    elif value.is_graph_input() or not (value.is_initializer() or value.producer() is not None):
        return None
    if tensor is None or tensor.size > SMALL or isinstance(tensor, ir.LazyTensor):
        return None
    array: np.ndarray = tensor.numpy()
    return array


def is_stored(
    value: ir.Value | None, rank: int | None = None, dtype: ir.DataType | None = None
) -> TypeGuard[ir.Value]:
    """Whether a value is a tensor (of that rank and type) in the file, which nobody can feed in its place."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return False
    tensor = value.const_value
    return rank in (None, len(tensor.shape)) and dtype in (None, tensor.dtype)


def stored_sizes(value: ir.Value | None) -> tuple[int, ...]:
    """The sizes of a tensor in the file; none for anything else."""
    tensor = None if value is None else value.const_value
    return () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def node_input(node: ir.Node | None, index: int = 0) -> ir.Value | None:
    """An input of a node, None where it is left out, or the node is."""
    return node.inputs[index] if node is not None and len(node.inputs) > index else None


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The branches of an If, the body of a Loop or a Scan; none of other nodes."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


class Editor:
    """Edits one graph in place. Constants become initializers, one for each distinct content."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._replaced: dict[ir.Value, ir.Value] = {}

    def constant(self, content: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer with this content; Python integers become int64."""
        array = np.asarray(content)
        array = array.astype(dtype.numpy()) if dtype is not None else array
        key = (str(array.dtype), array.shape, array.tobytes())
        value = self._constants.get(key)
        if value is None or value.name not in self.graph.initializers:
            value = self._new_constant(array)
            self._constants[key] = value
        return value

    def _new_constant(self, array: np.ndarray) -> ir.Value:
        number = len(self._constants)
        while f"constant_{number}" in self.graph.initializers:
            number += 1
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=f"constant_{number}")
        value = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), const_value=tensor)
        value.dtype = tensor.dtype
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        shape: Iterable[Any] | None = None,
        dtype: ir.DataType | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """Insert a node before another one, whose place in the module tree it inherits."""
        node = ir.node(op, inputs, attributes=dict(attributes or {}), domain=domain, num_outputs=outputs)
        node.metadata_props.update(
            {key: text for key, text in before.metadata_props.items() if not key.startswith("onnxkit.")}
        )
        first = node.outputs[0]
        first.shape = ir.Shape(list(shape)) if shape is not None else None
        if dtype is not None:
            first.dtype = dtype
        self.graph.insert_before(before, node)
        return node

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every user of `old` read `new`; a graph output keeps its name."""
        if new.shape is None:
            new.shape = old.shape
        if new.dtype is None and old.dtype is not None:
            new.dtype = old.dtype
        is_output, name = old.is_graph_output(), old.name
        if is_output and (new.is_graph_output() or new.is_graph_input() or new.is_initializer()):
            return
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._replaced[old] = new
        if is_output:
            old.name, new.name = f"{name}/replaced", name

    def current(self, value: ir.Value) -> ir.Value:
        """What stands now where `value` stood."""
        while value in self._replaced:
            value = self._replaced[value]
        return value


def dimensions(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """A value's shape with symbols as strings (None: unknown size), or None where no shape is known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes `value`, if it is an `op` of the standard domain."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def permutation(node: ir.Node) -> list[int] | None:
    """A Transpose's permutation, if it is written down."""
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else None


class Writer:
    """Writes nodes before a node, and remembers them."""

    def __init__(self, editor: Editor, at: ir.Node) -> None:
        self.editor, self.at = editor, at
        self.nodes: list[ir.Node] = []

    def __call__(
        self,
        op: str,
        *inputs: ir.Value | None,
        shape: Iterable[Any] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Write one node of the standard domain and return its output."""
        return self.several(op, inputs, 1, shape=shape, dtype=dtype, **attributes)[0]

    def several(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        shape: Iterable[Any] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Write one node with this many outputs and return them; `shape` and `dtype` are the first's."""
        node = self.editor.add(
            self.at, op, inputs, attributes=attributes, shape=shape, dtype=dtype, outputs=outputs
        )
        self.nodes.append(node)
        return node.outputs

    def ints(self, *content: int) -> ir.Value:
        """A vector of int64."""
        return self.editor.constant(np.array(content, dtype=np.int64))

    def scalar(self, content: float, dtype: ir.DataType) -> ir.Value:
        """A scalar of this type."""
        return self.editor.constant(content, dtype)
