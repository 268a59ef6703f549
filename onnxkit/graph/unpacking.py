"""A product whose result is split becomes several: the way back from `packing`, part by part.

A mixed quantization gives the parts different formats (v in 8 bits, q and k in 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor, is_stored, small_array


def divide(model: ir.Model, together: Callable[[str, str], bool]) -> dict[str, str]:
    """Cut each MatMul(x, W), perhaps with a bias, that is read by one Split of constant sizes alone.

    Neighbouring parts stay one product where `together(one's name, the next one's)`; a product all of whose
    parts do stays as it is. Names of parts: those that `packing` joined with commas, else `<name>/<number>`.

    Returns:
        Name of each product that stands for more than one part -> the name of its first part.
    """
    joined: dict[str, str] = {}
    editor = Editor(model.graph)
    for product in list(model.graph):
        split = _split_of(product)
        if split is None:
            continue
        names = part_names(str(product.name), len(split.outputs))
        runs = _runs(names, together)
        if len(runs) == 1:
            joined[str(product.name)] = names[0]
        else:
            joined |= _cut(editor, product, split, names, runs)
    return joined


def part_names(name: str, count: int) -> list[str]:
    """Names of the parts of a packed product."""
    parent, dot, last = name.rpartition(".")
    leaves = last.split(",")
    return [f"{parent}{dot}{leaf}" for leaf in leaves] if len(leaves) == count else [
        f"{name}/{number}" for number in range(count)
    ]  # fmt: skip


def _runs(names: Sequence[str], together: Callable[[str, str], bool]) -> list[range]:
    starts = [0, *(i for i in range(1, len(names)) if not together(names[i - 1], names[i]))]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(names)], strict=True)]


def _split_of(product: ir.Node) -> ir.Node | None:
    """The Split that alone reads the product, or the product and its bias, along the last axis."""
    if product.op_type != "MatMul" or product.domain != "" or not is_stored(product.inputs[1], 2):
        return None
    reader = _only(product.outputs[0])
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        reader = _only(reader.outputs[0]) if _bias_of(reader, product) is not None else None
    if reader is None or reader.op_type != "Split" or reader.domain != "" or len(reader.inputs) < 2:
        return None
    axis = reader.attributes.get("axis")
    sizes = small_array(reader.inputs[1])
    return reader if axis is not None and axis.as_int() in (-1, 2) and sizes is not None else None


def _cut(
    editor: Editor, product: ir.Node, split: ir.Node, names: Sequence[str], runs: Sequence[range]
) -> dict[str, str]:
    """Write a product for each run, and a Split after those of several parts."""
    joined: dict[str, str] = {}
    sizes = [int(size) for size in small_array(split.inputs[1])]  # type: ignore[union-attr]
    add = _only(product.outputs[0])
    bias = None if add is split or add is None else _bias_of(add, product)
    for run in runs:
        name = names[run.start] if len(run) == 1 else _joined(names, run)
        columns = slice(sum(sizes[: run.start]), sum(sizes[: run.stop]))
        inputs = [product.inputs[0], _columns(editor.graph, product.inputs[1], f"{name}.weight", columns)]
        last = editor.add(product, "MatMul", inputs)
        last.name = name
        if bias is not None:
            vector = _columns(editor.graph, bias, f"{name}.bias", columns)
            last = editor.add(product, "Add", [last.outputs[0], vector])
            last.name = f"{name}/bias"
        parts: Sequence[ir.Value] = last.outputs
        if len(run) > 1:
            joined[name] = names[run.start]
            lengths = editor.constant(np.array([sizes[part] for part in run], np.int64))
            inner = editor.add(
                product, "Split", [last.outputs[0], lengths], attributes={"axis": -1}, outputs=len(run)
            )
            inner.name, parts = f"{name}/split", inner.outputs
        for part, value in zip(run, parts, strict=True):
            old, label = split.outputs[part], split.outputs[part].name
            editor.replace(old, value)
            old.name, value.name = f"{label}.packed", label
    editor.graph.remove([split, *([add] if bias is not None and add is not None else []), product], safe=True)
    return joined


def _joined(names: Sequence[str], run: range) -> str:
    parent, dot, _ = names[run.start].rpartition(".")
    return f"{parent}{dot}" + ",".join(names[part].rpartition(".")[2] for part in run)


def _columns(graph: ir.Graph, value: ir.Value | None, name: str, columns: slice) -> ir.Value:
    """The last axis' entries `columns` of a stored tensor, read when they are written out."""
    if value is None or value.const_value is None:
        raise ValueError(f"'{name}' is cut from no stored tensor")
    tensor = value.const_value
    shape = [*(int(size) for size in tensor.shape.numpy()[:-1]), columns.stop - columns.start]
    part = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy()[..., columns])),
        dtype=tensor.dtype, shape=ir.Shape(shape), name=name,
    )  # fmt: skip
    made = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=part)
    graph.register_initializer(made)
    return made


def _bias_of(add: ir.Node, product: ir.Node) -> ir.Value | None:
    other = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    return other if is_stored(other, 1) else None


def _only(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
