"""Clean-up passes, one a file, and the order in which an export runs them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxkit.graph.passes.fold_constants import FoldConstants
from onnxkit.graph.passes.no_ops import DropNoOps
from onnxkit.graph.passes.padded_pools import KeepPaddedPools
from onnxkit.graph.passes.reshape_targets import StaticReshapeTargets
from onnxkit.graph.passes.tied_projections import TiedProjections
from onnxkit.graph.passes.unsupported_bfloat16 import WidenUnsupportedBfloat16
from onnxkit.graph.passes.weight_arithmetic import FoldWeightArithmetic
from onnxkit.graph.passes.weight_transposes import FoldWeightTransposes

__all__ = [
    "DropNoOps",
    "FoldConstants",
    "FoldWeightArithmetic",
    "FoldWeightTransposes",
    "KeepPaddedPools",
    "StaticReshapeTargets",
    "TiedProjections",
    "WidenUnsupportedBfloat16",
    "clean_up",
]


def clean_up(model: ir.Model) -> None:
    """Simplify a freshly converted model in place; its weights must be attached."""
    passes = ir.passes.Sequential(
        FoldConstants(),
        DropNoOps(),
        StaticReshapeTargets(),
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        FoldWeightTransposes(),
        TiedProjections(),
        KeepPaddedPools(),
        common.RemoveUnusedNodesPass(),
    )
    passes(model)
