"""What is known of the channels of a value without running the graph: a rough distribution of each.

A channel is a function of one normal variable, held as its values at the nodes of a Gauss-Hermite
quadrature. Functions of one value are exact in it whatever operators they are written with (x · sigmoid(x),
GELU and its approximations, a normalization of Pow, ReduceMean, Sqrt and Div); values of different origin
count as independent, and so do the channels of what a product reads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NODES, _RAW = np.polynomial.hermite_e.hermegauss(21)
_WEIGHTS = _RAW / _RAW.sum()

_origins = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The channels of a value; they lie on its trailing axes, as in `layouts`.

    Attributes:
        points: float64 `[*layout, nodes]`; a layout of one channel says no more than a size.
        origin: the normal variable that it is a function of; None: a constant.
    """

    points: Array
    origin: int | None

    @property
    def layout(self) -> tuple[int, ...]:
        """Sizes of the trailing axes, 1 where an axis is no channel."""
        return self.points.shape[:-1]

    @property
    def size(self) -> int:
        """Number of channels."""
        return self.points[..., 0].size

    @property
    def mean(self) -> Array:
        """The mean of each channel, float64 of the layout."""
        found: Array = self.points @ _WEIGHTS
        return found

    @property
    def square(self) -> Array:
        """The mean square of each channel, float64 of the layout."""
        found: Array = self.points**2 @ _WEIGHTS
        return found

    @property
    def variance(self) -> Array:
        """The variance of each channel, float64 of the layout."""
        return np.maximum(self.square - self.mean**2, 0)

    def map(self, function: Callable[[Array], Array]) -> Moments:
        """Apply a function to each element."""
        return dataclasses.replace(self, points=function(self.points))

    def taken(self, layout: npt.NDArray[np.int64]) -> Moments:
        """The channels with these numbers, in the layout of the numbers."""
        return dataclasses.replace(self, points=self.points.reshape(-1, len(_NODES))[layout])

    def averaged(self) -> Moments:
        """The mean over all channels, as a constant: of many channels it hardly varies."""
        return constant(self.mean.mean())


def normal(mean: npt.ArrayLike, variance: npt.ArrayLike) -> Moments:
    """Normally distributed channels, of an origin of their own."""
    middle, spread = np.asarray(mean, np.float64), np.sqrt(np.maximum(variance, 0.0))
    points = np.atleast_1d(middle)[..., None] + np.atleast_1d(spread)[..., None] * _NODES
    return Moments(points=points, origin=next(_origins))


def constant(values: npt.ArrayLike) -> Moments:
    """Channels that do not vary."""
    points = np.atleast_1d(np.asarray(values, np.float64))[..., None]
    return Moments(points=np.broadcast_to(points, (*points.shape[:-1], len(_NODES))), origin=None)


def unknown() -> Moments:
    """One channel of mean 0 and mean square 1: all channels count as alike."""
    return normal(0.0, 1.0)


def combined(function: np.ufunc, left: Moments, right: Moments) -> Moments | None:
    """Apply np.add, subtract, multiply, divide or power; None where nothing is known of the result."""
    try:
        np.broadcast_shapes(left.layout, right.layout)
    except ValueError:
        return None
    if left.origin is None or right.origin is None or left.origin == right.origin:
        origin = right.origin if left.origin is None else left.origin
        return Moments(points=function(left.points, right.points), origin=origin)
    if function in (np.add, np.subtract):
        return normal(function(left.mean, right.mean), left.variance + right.variance)
    if function is np.multiply:
        mean = left.mean * right.mean
        return normal(mean, left.square * right.square - mean**2)
    return None


def normalized(value: Moments, *, centered: bool, epsilon: float) -> Moments:
    """LayerNormalization (`centered`) or RMSNormalization over the channels, before gain and bias."""
    left = value.map(lambda points: points - value.averaged().points) if centered else value
    size = np.sqrt(left.square.mean() + epsilon)
    return left.map(lambda points: points / size)


def _erf(x: Array) -> Array:
    return np.asarray(_erf_of(x), np.float64)


_erf_of: Any = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    found: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return found


def gelu(x: Array) -> Array:
    """By its approximation with tanh, which is within 0.001."""
    found: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return found


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Gelu": gelu,
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Erf": _erf,
    "Softplus": lambda x: np.logaddexp(0, x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: 1 / x,
    "Exp": np.exp,
    "Neg": np.negative,
    "Abs": np.abs,
}
"""ONNX operators that are a function of each element."""
