"""From the float graph to the integer graph."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxkit.errors import InputError
from onnxkit.quantize.activations import Activations
from onnxkit.quantize.operators import Rewriting, Target
from onnxkit.quantize.schemes import WeightGrids
from onnxkit.quantize.weights import WeightStore

OLDEST_OPSET = 13  # per-channel QuantizeLinear, Split and Squeeze as they are written here


def prepare(model: ir.Model, where: str) -> ir.Model:
    """Bring a foreign graph into the form that the operators read: no functions, weights as initializers.

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
    )
    for step in steps:
        model = step(model).model
    return model


def rewrite(
    model: ir.Model,
    targets: tuple[Target, ...],
    activations: Activations,
    *,
    grids: WeightGrids,
    per_channel: bool,
) -> None:
    """Replace every target by its integer form, in place, and drop what nothing reads any more."""
    weights = WeightStore(model.graph, per_channel=per_channel)
    context = Rewriting(graph=model.graph, weights=weights, activations=activations, grids=grids)
    for target in targets:
        target.operator.rewrite(target, context)
    passes.RemoveUnusedNodesPass()(model)
