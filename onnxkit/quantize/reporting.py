"""The report of a call, from what was written and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxkit.quantize.codes.blocks import ALGORITHMS
from onnxkit.quantize.codes.codebook import CodeBook
from onnxkit.quantize.formats import BlockFormat, Format, Plan
from onnxkit.quantize.job import Job
from onnxkit.quantize.outcome import Outcome
from onnxkit.quantize.report import KeptLayer, Measurement, QuantizedLayer, QuantizeReport
from onnxkit.quantize.search.searching import layers_of
from onnxkit.quantize.search.units import units_of
from onnxkit.quantize.workshop import SHARED, Workshop


def make_report(
    job: Job, out: Path, staging: Path, outcome: Outcome, measurement: Measurement | None, seconds: float
) -> QuantizeReport:
    """Sizes are of the files in `staging`."""
    workshop = job.workshop
    written = {path for file in workshop.files.values() for path in staging.glob(f"{file}*")}
    written |= {path for path in (staging / SHARED,) if path.exists()}
    after = sum(path.stat().st_size for path in written)
    plans = outcome.decision.plans
    layers = quantized_layers(workshop, plans)
    return QuantizeReport(
        out=str(out),
        scheme=job.scheme.name,
        weight_bits=job.scheme.bits,
        bits_per_weight=_bits(layers) if layers else float(job.scheme.bits),
        hardware=workshop.hardware.name,
        hardware_reason=workshop.hardware.reason,
        calibration=outcome.calibration,
        quantized=layers,
        kept=(*outcome.kept, *_kept(workshop, plans)),
        converted=outcome.converted,
        attempts=outcome.decision.attempts,
        size_before_bytes=job.model.size_bytes,
        size_after_bytes=after,
        size_ratio=after / job.model.size_bytes,
        measurement=measurement,
        seconds=seconds,
    )


def quantized_layers(workshop: Workshop, plans: Mapping[str, Plan]) -> tuple[QuantizedLayer, ...]:
    """What a plan makes of the layers, in graph order."""
    owners = {
        (part, name): unit.layers[0].name
        for unit in units_of(layers_of(workshop, plans))
        for part, name in unit.keys[1:]
    }
    return tuple(
        QuantizedLayer(
            name=target.name,
            op_type=target.node.op_type,
            parameters=target.parameters,
            format=_described(workshop.books[component], plan[target.name], target.name),
            bits_per_weight=plan[target.name].bits_per_weight(target.depth),
            component=component,
            shares=owners.get((component, target.name)),
        )
        for component, plan in plans.items()
        for target in workshop.targets(component)
        if target.name in plan
    )


def _described(book: CodeBook, format: Format, name: str) -> str:
    """A format in plain words, and whether its codes were weighted by the graph for want of data."""
    seen = book.statistics.get(name)
    assumed = isinstance(format, BlockFormat) and seen is not None and not seen.count
    weighted = assumed and ALGORITHMS[format.algorithm].needs == "importance"  # type: ignore[union-attr]
    return f"{format.describe()}, weighted by the graph" if weighted else format.describe()


def _bits(layers: Sequence[QuantizedLayer]) -> float:
    """Mean over weights; what a table and the head tied to it share counts once."""
    stored = [layer for layer in layers if layer.shares is None]
    weights = sum(layer.parameters for layer in stored)
    return sum(layer.bits_per_weight * layer.parameters for layer in stored) / max(1, weights)


def _kept(workshop: Workshop, plans: Mapping[str, Plan]) -> Iterator[KeptLayer]:
    """What selection kept, and what a search released."""
    for component, selection in workshop.selections.items():
        yield from selection.kept
        for target in selection.targets:
            if target.name not in plans.get(component, {}):
                yield KeptLayer(
                    name=target.name, op_type=target.node.op_type, component=component,
                    reason="released: with it quantized, the limits would not hold",
                )  # fmt: skip


def history(report: QuantizeReport) -> Mapping[str, Any]:
    """What the history keeps: the whole report but the lists of layers and the place."""
    plain = report.to_dict()
    layers = {"quantized_layers": len(plain.pop("quantized")), "kept_layers": len(plain.pop("kept"))}
    plain.pop("out")
    return {**plain, **layers}
