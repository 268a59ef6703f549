"""From the float graph to the quantized graph: a format for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxkit.errors import InputError
from onnxkit.graph.kv_cache import is_optional
from onnxkit.graph.passes import FoldWeightArithmetic
from onnxkit.quantize.activations import DynamicActivations, Range, RowActivations, StaticActivations
from onnxkit.quantize.codes.block_store import BlockStore
from onnxkit.quantize.codes.codebook import CodeBook
from onnxkit.quantize.codes.weights import WeightStore
from onnxkit.quantize.formats import LogFormat, Plan
from onnxkit.quantize.operators import Rewriting, Target
from onnxkit.quantize.operators.logarithm import LogStore

OLDEST_OPSET = 13  # per-channel QuantizeLinear, Split and Squeeze as they are written here


def prepare(model: ir.Model, where: str) -> ir.Model:
    """Bring a foreign graph into the form that the operators read: no functions, weights as initializers.

    A weight that is computed of others (weight normalization) is one of them then.

    Raises:
        InputError: an opset that predates the integer operators' present forms.
    """
    version = model.graph.opset_imports.get("", 0)
    if version < OLDEST_OPSET:
        raise InputError(
            f"{where} has opset {version}: quantization needs {OLDEST_OPSET} or later; export it anew"
        )
    steps = (
        passes.InlinePass(),
        passes.LiftConstantsToInitializersPass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.NameFixPass(),
        FoldWeightArithmetic(),
        passes.RemoveUnusedNodesPass(),
    )
    optional = [value for value in model.graph.inputs if is_optional(value)]
    for step in steps:
        model = step(model).model
    # Weights that are inputs, too (IR 3), are constants; an input with a default is an input.
    model.graph.inputs.extend(value for value in optional if value not in model.graph.inputs)
    return model


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
