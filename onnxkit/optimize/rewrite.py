"""One pass over a graph: clean-up, lowerings and fusions in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.fusions import Fusion
from onnxkit.graph.kv_cache import share_buffers
from onnxkit.graph.lowering import lower
from onnxkit.graph.passes import DropNoOps, FoldConstants
from onnxkit.graph.recognize import recognize_attention
from onnxkit.graph.regions import Region, find_regions
from onnxkit.optimize.dialects import Dialect
from onnxkit.optimize.levels import Level
from onnxkit.optimize.report import KeptRegions

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(kw_only=True)
class Rewritten:
    """What was done to one graph.

    Attributes:
        lowered: regions and patterns, by the name of the fusion.
        kept: regions that stay primitive, and why.
        recognized: whether attention was recognized by structure instead of read from the metadata.
        shared_cache: whether the past's buffers may be longer than what they hold (`graph.kv_cache`).
    """

    lowered: Counter[str] = field(default_factory=Counter)
    kept: tuple[KeptRegions, ...] = ()
    recognized: bool = False
    shared_cache: bool = False


def rewrite(
    model: ir.Model,
    level: Level,
    dialect: Dialect,
    *,
    disabled: Collection[str],
    cases: Sequence[Feeds],
    scratch: Path,
) -> Rewritten:
    """Do what `level` says but float16, in place.

    Args:
        disabled: names of lowerings and fusions to leave out.
        cases: inputs that a foreign graph is run on, to learn what its masks mean.
        scratch: a directory for temporary files.
    """
    done = Rewritten()
    # Our exports are clean, and a pass that merged nodes across a region's bounds would undo the region:
    # they are lowered first.
    if level.clean and not (level.lower and find_regions(model)):
        clean_up(model)
    if level.lower:
        infer_dtypes(model)
        _lower(model, dialect, disabled, cases, scratch, done)
        done.shared_cache = share_buffers(model)
        _fuse(model, dialect.neighbours, disabled, done)
    if level.approximate:
        _fuse(model, dialect.approximations, disabled, done)
    if level.lower:
        clean_up(model)
    return done


def clean_up(model: ir.Model) -> None:
    """Fold constants, drop what does nothing or is not used, share common subexpressions.

    Common subexpressions stay where a graph has semantic regions: sharing a node between two would undo
    both, and `export` has shared what there is before it drew them.
    """
    infer_dtypes(model)
    passes: list[ir.passes.InPlacePass] = [FoldConstants(), DropNoOps(), common.RemoveUnusedNodesPass()]
    if not find_regions(model):
        passes += [common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()]
    passes.append(common.RemoveUnusedOpsetsPass())
    ir.passes.Sequential(*passes)(model)


def _lower(
    model: ir.Model,
    dialect: Dialect,
    disabled: Collection[str],
    cases: Sequence[Feeds],
    scratch: Path,
    done: Rewritten,
) -> None:
    regions = find_regions(model)
    if not any(region.op == "attention" for region in regions):
        found = recognize_attention(model, cases, scratch)
        done.recognized = bool(found)
        regions = _in_order(model, [*regions, *found])
    result = lower(model, dialect.lowerings, disabled=disabled, regions=regions)
    done.lowered += result.lowered
    done.kept = tuple(
        KeptRegions(op=op, reason=reason, count=count)
        for op, reasons in result.kept.items()
        for reason, count in reasons.most_common()
    )
    _fuse(model, dialect.foreign, disabled, done)


def _in_order(model: ir.Model, regions: list[Region]) -> list[Region]:
    """Lowerings share nodes that the first region places: regions come in the graph's order."""
    order = {node: position for position, node in enumerate(model.graph)}
    return sorted(regions, key=lambda region: order[region.nodes[0]] if region.nodes else -1)


def _fuse(model: ir.Model, rows: Iterable[Fusion], disabled: Collection[str], done: Rewritten) -> None:
    for row in rows:
        if row.name not in disabled:
            found = row.apply(model)
            done.lowered += Counter({row.name: found})
