"""From the float graph to the integer graph."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxkit.errors import InputError
from onnxkit.graph.kv_cache import is_optional
from onnxkit.quantize.activations import Activations
from onnxkit.quantize.blockwise import Blocks, BlockStore
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
    optional = [value for value in model.graph.inputs if is_optional(value)]
    for step in steps:
        model = step(model).model
    # Weights that are inputs, too (IR 3), are constants; an input with a default is an input.
    model.graph.inputs.extend(value for value in optional if value not in model.graph.inputs)
    return model


def rewrite(
    model: ir.Model,
    targets: tuple[Target, ...],
    activations: Activations,
    *,
    grids: WeightGrids,
    per_channel: bool,
    blocks: Blocks | None = None,
) -> None:
    """Replace every target by its integer form, in place, and drop what nothing reads any more.

    Args:
        blocks: how a weight-only scheme stores weights; `activations`, `grids` and `per_channel` are the
            others'.
    """
    context = Rewriting(
        graph=model.graph,
        weights=WeightStore(model.graph, per_channel=per_channel),
        activations=activations,
        grids=grids,
        blocks=BlockStore(model.graph, blocks) if blocks is not None else None,
    )
    for target in targets:
        target.operator.rewrite(target, context)
    passes.RemoveUnusedNodesPass()(model)
