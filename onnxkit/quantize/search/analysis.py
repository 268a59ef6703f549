"""What `--analyze` leaves behind: a table, a plot and an exclusion file instead of a model."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnxkit.errors import ResourceError
from onnxkit.quantize.formats import Format
from onnxkit.quantize.search.plot import Bar, bar_chart
from onnxkit.quantize.search.quality import Plans, Quality
from onnxkit.quantize.search.sensitivity import Sensitivity, UnitNoise
from onnxkit.report import SCHEMA, Report

ANALYSIS = "analysis.json"
PLOT = "sensitivity.svg"
EXCLUDE = "exclude.txt"

HALF = 0.5  # of the noise: what is proposed for exclusion makes so much of it,
FEW = 0.2  # and is no more than this share of the layers and of the weights (or one of average size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What one layer costs when it alone is quantized.

    Attributes:
        name, component, op_type, parameters: the layer; those that share a weight are one.
        format: what it was quantized to.
        measured: alone; False: estimated from its block and its kind, `noise` only.
        noise: KL divergence in nats where there is one, else noise over signal of the worst output.
        share: of the noise of all layers together.
        sqnr_db, cosine: of the model's worst output.
        kl: nats; None where there is no text.
        metric, drop: the task's metric, and the points it lost; None without labels.
        proposed: among those that the exclusion file leaves float.
    """

    name: str
    component: str
    op_type: str
    parameters: int
    format: str
    measured: bool
    noise: float
    share: float
    sqnr_db: float | None
    cosine: float | None
    kl: float | None
    metric: float | None
    drop: float | None
    proposed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis(Report):
    """Result of `quantize --analyze`.

    Attributes:
        out: where the files are.
        scheme: whose formats were tried.
        measured_on, samples: the evaluation data.
        noise: what `LayerSensitivity.noise` is: "KL divergence, nats" or "noise / signal".
        whole: everything quantized together.
        layers: the costliest first.
        groups: what was measured of whole blocks and kinds of layers, where there are many layers.
        seconds: of the run.
    """

    out: str
    scheme: str
    measured_on: str
    samples: int
    noise: str
    whole: Quality
    layers: tuple[LayerSensitivity, ...]
    groups: Mapping[str, Quality]
    seconds: float


def layer_rows(found: Sensitivity, plans: Plans) -> tuple[LayerSensitivity, ...]:
    """One row a unit, the costliest first."""
    proposed = set(_proposed(found.units))
    total = found.total
    return tuple(_row(each, plans, total, proposed=each in proposed) for each in found.units)


def _row(each: UnitNoise, plans: Plans, total: float, *, proposed: bool) -> LayerSensitivity:
    unit, quality = each.unit, each.quality
    formats: Iterable[Format] = (plans[component][name] for component, name in unit.keys)
    share = each.noise / total if 0.0 < total < math.inf else float(each.noise == math.inf)
    return LayerSensitivity(
        name=unit.name,
        component=unit.layers[0].component,
        op_type=unit.layers[0].op_type,
        parameters=unit.parameters,
        format=", ".join(dict.fromkeys(each.describe() for each in formats)),
        measured=quality is not None,
        noise=each.noise,
        share=share,
        sqnr_db=None if quality is None else quality.sqnr_db,
        cosine=None if quality is None else quality.cosine,
        kl=None if quality is None else quality.kl,
        metric=None if quality is None else quality.metric,
        drop=None if quality is None else quality.drop,
        proposed=proposed,
    )


def _proposed(units: Sequence[UnitNoise]) -> list[UnitNoise]:
    """The costliest, until they make half of the noise, but few."""
    total = sum(each.noise for each in units)
    weights = sum(each.unit.parameters for each in units)
    most = max(FEW * weights, weights / max(1, len(units)))
    chosen: list[UnitNoise] = []
    noise, parameters = 0.0, 0
    for each in units:
        parameters += each.unit.parameters
        if len(chosen) + 1 > max(1, FEW * len(units)) or not noise < HALF * total:
            break
        if parameters > most and each.noise < math.inf:
            parameters -= each.unit.parameters
            continue
        chosen.append(each)
        noise += each.noise
    return chosen if len(units) > 1 else []


def write_analysis(analysis: Analysis, order: Sequence[str], folder: Path) -> None:
    """Write the three files.

    Args:
        analysis: the result.
        order: names of the layers in graph order, for the plot.
        folder: exists.

    Raises:
        ResourceError: they cannot be written.
    """
    plain = {"schema": SCHEMA, "result": analysis.to_dict()}
    try:
        text = json.dumps(plain, indent=2, ensure_ascii=False)
        (folder / ANALYSIS).write_text(text + "\n", encoding="utf-8")
        (folder / PLOT).write_text(plot_of(analysis, order), encoding="utf-8")
        (folder / EXCLUDE).write_text(exclusions(analysis), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{folder}: the analysis cannot be written: {error.strerror or error}") from error


def plot_of(analysis: Analysis, order: Sequence[str]) -> str:
    """The plot: layers in graph order, those proposed for exclusion marked."""
    place = {name: number for number, name in enumerate(order)}
    layers = sorted(analysis.layers, key=lambda each: place.get(each.name.split(" + ")[0], len(place)))
    bars = [
        Bar(
            name=each.name, value=each.noise, marked=each.proposed, faint=not each.measured,
            note=f"{_figure(analysis, each)}, {each.format}",
        )
        for each in layers
    ]  # fmt: skip
    legend = [("b", "a layer quantized alone")]
    legend += [("w", "proposed for exclusion")] if any(bar.marked for bar in bars) else []
    legend += [("b e", "estimated")] if any(bar.faint for bar in bars) else []
    axis = f"{analysis.noise} (further right is worse)"
    return bar_chart(bars, title=f"{analysis.scheme}: what each layer costs", axis=axis, legend=legend)


def exclusions(analysis: Analysis) -> str:
    """The exclusion file: an anchored pattern a line, its figure in a comment above.

    The proposed layers are active; the others stand as comments, to be activated by hand.
    """
    lines = [
        f"# Layers by what each costs when it alone is quantized ({analysis.scheme}; {analysis.noise}).",
        f"# Measured on {' '.join(analysis.measured_on.split())}.",
        "# Patterns without a # in front stay float with --exclude-from.",
    ]
    for each in analysis.layers:
        lines.append(f"# {_figure(analysis, each)}")
        active = "" if each.proposed else "#"
        lines += [f"{active}^{re.escape(name)}$" for name in each.name.split(" + ")]
    return "\n".join(lines) + "\n"


def _figure(analysis: Analysis, each: LayerSensitivity) -> str:
    """A layer's figures in plain words."""
    if each.kl is None and each.sqnr_db is not None:
        text = f"SQNR {each.sqnr_db:.1f} dB, cosine {each.cosine:.5f}"
    else:
        text = f"{'KL' if analysis.noise.startswith('KL') else 'noise'} {each.noise:.3g}"
        text += "" if each.measured else " (estimated)"
    if each.drop is not None:
        text += f", {each.drop:+.2f} points lost"
    return f"{text}, {each.share:.1%} of all"


__all__ = [
    "ANALYSIS", "EXCLUDE", "PLOT", "Analysis", "LayerSensitivity", "exclusions", "layer_rows", "plot_of",
    "write_analysis",
]  # fmt: skip
