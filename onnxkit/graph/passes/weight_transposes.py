"""A transposed weight is stored transposed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor, permutation


class FoldWeightTransposes(ir.passes.InPlacePass):
    """Permute a weight once, when it is written; only where every user wants the same permutation."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Weights are wrapped lazily: nothing is read here."""
        editor = Editor(model.graph)
        by_weight: dict[str, list[ir.Node]] = defaultdict(list)
        for node in model.graph:
            source = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
            if source is not None and source.is_initializer() and source.name is not None:
                by_weight[source.name].append(node)
        changed = 0
        for name, nodes in by_weight.items():
            weight = model.graph.initializers[name]
            order = permutation(nodes[0])
            same = all(permutation(node) == order for node in nodes)
            if order is None or not same or len(weight.uses()) != len(nodes):
                continue
            permute_weight(weight, order)
            for node in nodes:
                editor.replace(node.outputs[0], weight)
            changed += 1
        return ir.passes.PassResult(model, modified=changed > 0)


def permute_weight(weight: ir.Value, order: list[int]) -> None:
    """Give an initializer the permuted content, computed each time that it is read."""
    tensor = weight.const_value
    if tensor is None:
        raise ValueError(f"{weight.name} has no content")
    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in order])
    weight.const_value = ir.LazyTensor(
        _permuted(tensor, order, weight.name), dtype=tensor.dtype, shape=shape, name=weight.name
    )
    weight.shape = shape


def _permuted(
    tensor: ir.TensorProtocol, order: list[int], name: str | None
) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().transpose(order))
        return ir.tensor(array, dtype=tensor.dtype, name=name)

    return read
