"""From the float graph to the quantized graph: a format for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxkit.graph.kv_cache import is_optional
from onnxkit.graph.opsets import raise_opset
from onnxkit.graph.passes import FoldWeightArithmetic
from onnxkit.quantize.activations import DynamicActivations, Range, RowActivations, StaticActivations
from onnxkit.quantize.codes.block_store import BlockStore
from onnxkit.quantize.codes.codebook import CodeBook
from onnxkit.quantize.codes.weights import WeightStore
from onnxkit.quantize.formats import LogFormat, Plan
from onnxkit.quantize.operators import Rewriting, Target
from onnxkit.quantize.operators.base import OLDEST_OPSET
from onnxkit.quantize.operators.logarithm import LogStore


def prepare(model: ir.Model, where: str) -> ir.Model:
    """Bring a foreign graph into the form that the operators read: no functions, weights as initializers,
    an opset that has the integer operators' present forms.

    A weight that is computed of others (weight normalization) is one of them then.

    Raises:
        InputError: an older opset, and an operator that onnx's converter does not know.
    """
    raise_opset(model, OLDEST_OPSET, where)
    steps = (
        passes.InlinePass(),
        passes.LiftConstantsToInitializersPass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.NameFixPass(),
        _ReadWeightsThemselves(),
        FoldWeightArithmetic(),
        passes.RemoveUnusedNodesPass(),
    )
    optional = [value for value in model.graph.inputs if is_optional(value)]
    for step in steps:
        model = step(model).model
    # Weights that are inputs, too (IR 3), are constants; an input with a default is an input.
    model.graph.inputs.extend(value for value in optional if value not in model.graph.inputs)
    return model


class _ReadWeightsThemselves(ir.passes.InPlacePass):
    """Layers that share a weight read it where PyTorch's exporter hands it on, an Identity for each."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leave the Identity nodes behind, unused."""
        done = 0
        for node in model.graph:
            source = node.inputs[0] if node.op_type == "Identity" and node.domain == "" else None
            if source is None or not source.is_initializer() or source.is_graph_input():
                continue
            if not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                done += 1
        return ir.passes.PassResult(model, modified=done > 0)


def rewrite(
    model: ir.Model,
    targets: Sequence[Target],
    plan: Plan,
    *,
    ranges: Mapping[str, Range] | None = None,
    book: CodeBook | None = None,
) -> None:
    """Write every target of the plan in its format, in place, and drop what nothing reads any more.

    Args:
        targets: of this model, in graph order; those that the plan does not name stay float.
        ranges: value name -> its range, for static formats.
        book: finds the codes of blocks; one that remembers them from variant to variant.
    """
    opsets = [each.operator.opset(each, plan[each.name]) for each in targets if each.name in plan]
    raise_opset(model, max(opsets, default=OLDEST_OPSET), "the model")
    dynamic, book = DynamicActivations(), book or CodeBook()
    context = Rewriting(
        graph=model.graph,
        formats=plan,
        activations={
            "dynamic": dynamic, "rows": RowActivations(dynamic), "static": StaticActivations(ranges or {}),
        },
        weights=WeightStore(model.graph),
        blocks=BlockStore(model.graph, book),
        book=book,
    )  # fmt: skip
    logs = LogStore(model.graph)
    for target in targets:
        found = plan.get(target.name)
        if isinstance(found, LogFormat):
            logs.write(target, found, context)
        elif found is not None:
            target.operator.rewrite(target, context)
    passes.RemoveUnusedNodesPass()(model)
