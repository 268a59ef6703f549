"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): part of the activations' range moves into the weights.

One scale for a tensor (or a row of it) must cover its largest channel, and the others lose their bits.
Dividing the input channels by s = max|x|^alpha / max|w|^(1-alpha) and multiplying the weights' rows by it
changes nothing in float arithmetic, and evens the channels out.

The exponent is searched for each group of products that read one value, by the error of their outputs
under the plan's grids, on tokens that the factors were not made from. Both halves of that matter: on a
MiniLM the exponents that fit the calibration set best took the cosine from 0.990 to 0.982, as channels that
were quiet there (behind a GELU, say) got factors so small that other text blew the range up. For the same
reason a channel's magnitude is taken to be no less than some part of the geometric mean of all (`FLOORS`):
0.9938 at alpha 0.7 without it, 0.9961 with it, 0.9965 searched. Static ranges: 0.9971 at 0.7, 0.9979 searched
(no padding and no lone token widens them). A scale a row: 0.9983.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.quantize.codes.weights import channel_scales, codes
from onnxkit.quantize.formats import IntegerFormat, Plan
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.operators import Target
from onnxkit.quantize.operators.base import array
from onnxkit.quantize.smoothing.folding import Group, groups_of, scale_inputs

Floats = npt.NDArray[np.float32]

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FLOORS = (0.3, 1.0)
FLOOR = 0.5
"""The part of the geometric mean that a fixed alpha takes."""

COLUMNS = 256
"""Output channels of a product that the search looks at."""

PAYS = 5e-7
"""Error that a Mul must spare for each input channel of each product, where nothing takes the division.

A Mul is a pass over all activations. On MiniLM 3 of 18 do not pay, those of the last two wide layers among
them: 0.9983 -> 0.9982 (static) for 3 % of the time with AVX-512. At 1e-6 it is 5 of 18 and 0.9980, at 3e-6
0.9976 and no faster.
"""

_TINY = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What was done to one group's inputs.

    Attributes:
        alpha: the exponent; 0.0 where leaving the input alone was best (`factors` are ones then).
        factors: float32 `[K]`: the input was divided by them.
    """

    alpha: float
    factors: Floats

    def of(self, statistics: InputStatistics) -> InputStatistics:
        """Statistics of the divided input from those of the input; its sample is left out."""
        by, hessian = self.factors, statistics.hessian
        return InputStatistics(
            count=statistics.count,
            absmax=statistics.absmax / by,
            mean=statistics.mean / by,
            mean_square=statistics.mean_square / by**2,
            hessian=None if hessian is None else hessian / by / by[:, None],
        )


def smooth(
    model: ir.Model,
    targets: Sequence[Target],
    statistics: Mapping[str, InputStatistics],
    plan: Plan,
    *,
    alpha: float | Literal["auto"] = "auto",
) -> dict[str, Smoothing]:
    """Smooth the inputs of the targets with an integer format, in place; return what was done, by target.

    Args:
        model: a float graph; it goes on computing the same.
        targets: of the graph.
        statistics: by the name of the value that a target reads; targets without stay as they are.
        plan: whose formats the error is taken under.
        alpha: one exponent for all, or "auto": the best for each group on samples of its inputs
            (`InputStatistics.sample`); a group with fewer than two tokens of them stays as it is.
    """
    done: dict[str, Smoothing] = {}
    chosen = [target for target in targets if isinstance(plan.get(target.name), IntegerFormat)]
    for group in reversed(groups_of(chosen)):
        seen = statistics.get(_read_by(group))
        if seen is None:
            continue
        found = _search(group, seen, plan) if alpha == "auto" else _fixed(group, seen, alpha)
        _apply(model, group, found)
        done |= {target.name: found for target in group.targets}
    return done


def repeat(model: ir.Model, targets: Sequence[Target], done: Mapping[str, Smoothing]) -> None:
    """Do to a graph loaded anew what `smooth` did to its twin."""
    for group in reversed(groups_of([target for target in targets if target.name in done])):
        _apply(model, group, done[group.targets[0].name])


def _apply(model: ir.Model, group: Group, found: Smoothing) -> None:
    if (found.factors != 1.0).any():  # no Mul for nothing
        scale_inputs(model, group, found.factors)


def smoothing_factors(magnitudes: Floats, weights: Floats, alpha: float, floor: float) -> Floats:
    """max|x|^alpha / max|w|^(1-alpha), brought to a geometric mean of 1; float32 `[K]`.

    Args:
        magnitudes: max |x| of each input channel.
        weights: max |w| of each input channel over all products of the group.
        alpha: how much of the range moves.
        floor: a magnitude counts as at least this part of the geometric mean of all.
    """
    x = np.maximum(magnitudes, _TINY)
    x = np.maximum(x, floor * np.exp(np.log(x).mean()))
    logs = alpha * np.log(x) - (1.0 - alpha) * np.log(np.maximum(weights, _TINY))
    factors: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _read_by(group: Group) -> str:
    activation = group.targets[0].activation
    return str(activation.name) if activation is not None else ""


def _fixed(group: Group, seen: InputStatistics, alpha: float) -> Smoothing:
    return Smoothing(alpha=alpha, factors=_factors(group, seen.absmax, alpha, FLOOR))


def _search(group: Group, seen: InputStatistics, plan: Plan) -> Smoothing:
    """Try every alpha and floor on both halves of the sample, each with factors made from the other."""
    ones = np.ones(group.depth, np.float32)
    sample = seen.sample
    if sample is None or len(sample) < 2:  # nothing to search on: one token is no half of anything
        return Smoothing(alpha=0.0, factors=ones)
    halves = (sample[: len(sample) // 2], sample[len(sample) // 2 :])
    error = _Error(group, plan)
    untouched = Smoothing(alpha=0.0, factors=ones)
    alone = sum(error(half, ones) for half in halves)
    best, least = untouched, alone
    for alpha in ALPHAS:
        for floor in FLOORS:
            total = 0.0
            for made_from, tried_on in (halves, halves[::-1]):
                total += error(tried_on, _factors(group, np.abs(made_from).max(axis=0), alpha, floor))
            if total < least:
                least = total
                best = Smoothing(alpha=alpha, factors=_factors(group, seen.absmax, alpha, floor))
    spared = (alone - least) / len(halves) / len(group.targets)
    return best if group.absorption is not None or spared > PAYS * group.depth else untouched


def _factors(group: Group, magnitudes: Floats, alpha: float, floor: float) -> Floats:
    """The factors of a group; channels that are tied get the largest one's."""
    weights = np.max([np.abs(_rows(target)).max(axis=1) for target in group.targets], axis=0)
    return smoothing_factors(_tied(magnitudes, group), _tied(weights, group), alpha, floor)


def _tied(values: Floats, group: Group) -> Floats:
    """Give all channels that share a number the largest of their values."""
    numbers = group.ties
    largest = np.zeros(int(numbers.max()) + 1, np.float32)
    np.maximum.at(largest, numbers, values)
    return largest[numbers]


def _rows(target: Target) -> Floats:
    """The weight as `[K, N]`."""
    weight = array(target.weight)
    rows: Floats = weight if target.channel_axis == 1 else weight.T
    return rows


class _Error:
    """Relative squared error of a group's outputs under integer formats."""

    def __init__(self, group: Group, plan: Plan) -> None:
        self._weights = [_some_columns(_rows(target)) for target in group.targets]
        self._formats: list[IntegerFormat] = [plan[target.name] for target in group.targets]  # type: ignore[misc]

    def __call__(self, x: Floats, factors: Floats) -> float:
        """Sum over the products of |x·W - q(x/s)·q(sW)|² / |x·W - mean|²."""
        total, made = 0.0, {}
        for weight, form in zip(self._weights, self._formats, strict=True):
            right = x @ weight
            by_row = form.activations == "rows"
            if by_row not in made:
                made[by_row] = _quantized(x / factors, by_row=by_row)
            scaled = weight * factors[:, None]
            scales = channel_scales(scaled, 1, form.grid, per_channel=form.per_channel)
            difference = right - made[by_row] @ (codes(scaled, scales, 1) * scales)
            power = float(np.square(right - right.mean(axis=0)).sum())
            total += float(np.square(difference).sum()) / max(power, _TINY)
        return total


def _some_columns(weight: Floats) -> Floats:
    """At most `COLUMNS` output channels, evenly spread: enough to tell the candidates apart."""
    return np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // COLUMNS)])


def _quantized(x: Floats, *, by_row: bool) -> Floats:
    """x rounded to u8 codes and back: with a scale a row around 128, or one range for all."""
    if by_row:
        scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), _TINY) / np.float32(127)
        by_rows: Floats = np.rint(x / scale) * scale
        return by_rows
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32(max(high - low, _TINY) / 255.0)
    zero = np.rint(-low / step)
    rounded: Floats = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    return rounded


__all__ = ["ALPHAS", "FLOOR", "FLOORS", "PAYS", "Smoothing", "repeat", "smooth", "smoothing_factors"]
