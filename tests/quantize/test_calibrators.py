"""Calibrators against twins that keep everything and know no tricks; and what they take of memory."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators import CALIBRATORS, DEFAULT_CALIBRATOR
from onnxkit.quantize.calibration.calibrators.entropy import Entropy
from onnxkit.quantize.calibration.calibrators.moving_average import MovingAverage
from onnxkit.quantize.calibration.calibrators.mse import MeanSquare
from onnxkit.quantize.calibration.calibrators.percentile import Percentile
from onnxkit.quantize.calibration.calibrators.sketches import LinearBins, RelativeBins

SHAPES = ("normal", "gelu", "relu", "laplace", "outliers", "shifted", "constant", "zeros", "tiny")


def draw(kind: str, seed: int, size: int) -> np.ndarray:
    """Values as activations have them."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(size)
    made = {
        "normal": normal,
        "gelu": normal * 3 / (1 + np.exp(-5 * normal)),
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=size),
        "outliers": np.where(rng.random(size) < 0.001, 300 * normal, normal),
        "shifted": normal + 20,
        "constant": np.full(size, -1.5),
        "zeros": np.zeros(size),
        "tiny": normal * 1e-30,
    }[kind]
    return made.astype(np.float32)


@st.composite
def ragged_batches(draw_from):
    """A list of arrays of any shapes, whose scale differs from one to the next."""
    kind = draw_from(st.sampled_from(SHAPES))
    sizes = draw_from(st.lists(st.integers(1, 4000), min_size=1, max_size=6))
    scales = draw_from(st.lists(st.sampled_from([0.01, 0.5, 1.0, 3.0, 70.0]), min_size=6, max_size=6))
    seed = draw_from(st.integers(0, 1000))
    return [
        draw(kind, seed + number, size).reshape((1, -1) if number % 2 else (-1, 1)) * np.float32(scale)
        for number, (size, scale) in enumerate(zip(sizes, scales, strict=False))
    ]


def together(batches) -> list[np.ndarray]:
    """Batches of at least 1024 values, but for the last."""
    made = [np.empty(0, np.float32)]
    for batch in batches:
        if made[-1].size >= 1024:
            made.append(np.empty(0, np.float32))
        made[-1] = np.concatenate([made[-1], batch.ravel()])
    return made


def naive_moving_average(batches) -> Range:
    joined = together(batches)
    shares = np.array([0.01 * min(1, batch.size / 1024) for batch in joined])
    weights = shares * np.array([np.prod(1 - shares[number + 1 :]) for number in range(len(shares))])
    lows, highs = np.array([[b.min(), b.max()] for b in joined], np.float64).T
    return Range(low=float(lows @ weights / weights.sum()), high=float(highs @ weights / weights.sum()))


def naive_percentile(batches) -> Range:
    values = np.sort(np.concatenate([b.ravel() for b in batches]))
    place = int(len(values) * Percentile.TAIL)
    return Range(low=float(values[place]), high=float(values[len(values) - 1 - place]))


def mean_square_error(values: np.ndarray, found: Range) -> float:
    step = (found.high - found.low) / 255
    clipped = np.clip(values, found.low, found.high)
    inside = ((values >= found.low) & (values <= found.high)).mean()
    return float(inside * step**2 / 12 + np.mean((values - clipped) ** 2))


def naive_mse(batches) -> Range:
    """The best of all pairs of a fine grid, by sums over all values in order."""
    values = np.sort(np.concatenate([b.ravel() for b in batches]).astype(np.float64))
    grid = 0.996 ** np.arange(700)
    lows = -max(-values[0], 0.0) * grid if values[0] < 0 else np.zeros(1)
    highs = max(values[-1], 0.0) * grid if values[-1] > 0 else np.zeros(1)
    above, over = naive_excess(values, highs)
    below, under = naive_excess(-values[::-1], -lows)
    steps = (highs[None] - lows[:, None]) / 255
    error = (1 - below[:, None] - above[None]) * steps**2 / 12 + under[:, None] + over[None]
    low, high = np.unravel_index(error.argmin(), error.shape)
    return Range(low=float(lows[low]), high=float(highs[high]))


def naive_excess(values, ends):
    """Share above each end, and mean of (x - end)² over it."""
    outside = [values[np.searchsorted(values, end, side="right") :] for end in ends]
    shares = [len(part) / len(values) for part in outside]
    squares = [((part - end) ** 2).sum() / len(values) for part, end in zip(outside, ends, strict=True)]
    return np.array(shares), np.array(squares)


def naive_entropy(batches) -> Range:
    """Bins over everything at once, levels and shares in plain loops."""
    values = np.concatenate([b.ravel() for b in batches]).astype(np.float64)
    most = np.abs(values).max()
    if most == 0:
        return Range(low=0.0, high=0.0)
    width = 2.0 ** (np.floor(np.log2(most)) + 1) / LinearBins.BINS
    edges = np.arange(LinearBins.BINS + 1) * width
    histogram = np.histogram(np.abs(values), edges)[0]
    used = int(np.flatnonzero(histogram)[-1]) + 1
    best, chosen = np.inf, used
    for size in Entropy.sizes(used):
        divergence = naive_divergence(histogram, size)
        if divergence < best:
            best, chosen = divergence, size
    limit = chosen * width
    return Range(low=float(max(values.min(), -limit)), high=float(min(values.max(), limit)))


def naive_divergence(histogram, size) -> float:
    kept = histogram[:size].astype(np.float64)
    if not kept.any():
        return np.inf
    spread = np.zeros(size)
    level_of = np.arange(size) * 128 // size
    for level in range(128):
        places = np.flatnonzero((level_of == level) & (kept > 0))
        if len(places):
            spread[places] = kept[places].sum() / len(places)
    kept[-1] += histogram[size:].sum()
    p, q = naive_smoothing(kept), naive_smoothing(spread)
    return float((p * np.log(p / q)).sum())


def naive_smoothing(counts):
    zeros = (counts == 0).sum()
    smooth = np.where(counts == 0, 1e-4, counts - 1e-4 * zeros / (len(counts) - zeros))
    return smooth / smooth.sum()


def naive_minmax(batches) -> Range:
    values = np.concatenate([b.ravel() for b in batches])
    return Range(low=float(values.min()), high=float(values.max()))


TWINS = {
    "minmax": naive_minmax, "moving-average": naive_moving_average, "percentile": naive_percentile,
    "entropy": naive_entropy, "mse": naive_mse,
}  # fmt: skip


def calibrated(name: str, batches) -> Range:
    calibrator = CALIBRATORS[name]()
    for batch in batches:
        calibrator.begin_sample()
        calibrator.update("v", batch)
    return calibrator.ranges()["v"]


def assert_close(found: Range, right: Range) -> None:
    """Each threshold within 1 % of its twin."""
    np.testing.assert_allclose((found.low, found.high), (right.low, right.high), rtol=0.01, atol=1e-37)


def test_every_calibrator_has_a_twin():
    assert set(TWINS) == set(CALIBRATORS)
    assert DEFAULT_CALIBRATOR in CALIBRATORS


@pytest.mark.parametrize("name", ["minmax", "moving-average", "percentile"])
@given(ragged_batches())
@settings(max_examples=60, deadline=None)
def test_thresholds_are_those_of_keeping_everything(name, batches):
    assert_close(calibrated(name, batches), TWINS[name](batches))


@given(ragged_batches())
@settings(max_examples=6, deadline=None)
def test_entropy_thresholds_are_those_of_keeping_everything(batches):
    assert_close(calibrated("entropy", batches), naive_entropy(batches))


@given(ragged_batches())
@settings(max_examples=20, deadline=None)
def test_the_mean_square_error_is_the_smallest(batches):
    """Where the error is flat, ends further apart are as good: within 1 %, or no worse than 0.5 %."""
    found, right = calibrated("mse", batches), naive_mse(batches)
    values = np.concatenate([b.ravel() for b in batches]).astype(np.float64)
    least = mean_square_error(values, right)
    near = np.allclose((found.low, found.high), (right.low, right.high), rtol=0.01, atol=1e-37)
    assert near or mean_square_error(values, found) <= 1.005 * least


@given(ragged_batches(), st.randoms())
@settings(max_examples=8, deadline=None)
def test_order_and_division_into_batches_do_not_matter(batches, random):
    """Of all but the moving average, which knows what came last."""
    shuffled = [piece for batch in batches for piece in np.array_split(batch.ravel(), 3) if piece.size]
    random.shuffle(shuffled)
    for name in set(CALIBRATORS) - {"moving-average", "mse"}:
        assert calibrated(name, batches) == calibrated(name, shuffled)
    one, other = calibrated("mse", batches), calibrated("mse", shuffled)
    assert_close(one, other)


@given(ragged_batches())
@settings(max_examples=40, deadline=None)
def test_bins_widen_without_losing_a_count(batches):
    linear, relative = LinearBins(), RelativeBins(sums=True)
    for batch in batches:
        linear.update(batch)
        relative.update(batch)
    values = np.concatenate([b.ravel() for b in batches])
    middles, counts = relative.occupied()
    assert counts.sum() == values.size
    assert (middles @ counts) == pytest.approx(values.sum(dtype=np.float64), rel=1e-6, abs=1e-6)
    assert all(one < other for one, other in pairwise(middles))
    if values.any():
        assert linear.counts.sum() == values.size
        expected = np.histogram(
            np.abs(values).astype(np.float64), np.arange(LinearBins.BINS + 1) * linear.width
        )[0]
        np.testing.assert_array_equal(linear.counts, expected)


def test_a_few_outliers_do_not_take_the_range():
    values = draw("normal", 0, 200_000)
    values[:2] = 1000.0, -1000.0
    assert calibrated("minmax", [values]) == Range(low=-1000.0, high=1000.0)
    assert calibrated("percentile", [values]).high < 20
    assert calibrated("entropy", [values]).high <= 32  # no threshold below 128 bins


def test_the_first_sample_counts_no_more_than_others():
    batches = [np.full(1024, value, np.float32) for value in (100.0, *[1.0] * 63)]
    assert calibrated("moving-average", batches).high < 3
    assert MovingAverage.parameters() == {"averaging": 0.01, "enough": 1024}


@pytest.mark.parametrize("size", [8, 64, 500])
def test_small_samples_are_not_clipped_at_the_mean_of_their_extremes(size):
    batches = [draw("normal", seed, size) for seed in range(200)]
    values = np.concatenate(batches)
    error = mean_square_error(values, calibrated("moving-average", batches))
    assert error < 5 * mean_square_error(values, calibrated("mse", batches))


def test_the_runs_of_one_sample_count_once():
    """A prompt and the tokens that are decoded after it."""
    whole, calibrator = CALIBRATORS["moving-average"](), CALIBRATORS["moving-average"]()
    for seed in range(5):
        values = draw("laplace", seed, 400)
        whole.begin_sample()
        whole.update("v", values)
        calibrator.begin_sample()
        for piece in np.array_split(values, 9):
            calibrator.update("v", piece)
    assert calibrator.ranges() == whole.ranges()


def test_an_octave_limit_is_no_limit_in_practice():
    """Where nearly everything is small, the error of clipping still decides."""
    found = calibrated("mse", [draw("outliers", 1, 50_000)])
    assert 0 < found.high < 300 * 5
    assert MeanSquare.OCTAVES == 8


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
def test_what_is_kept_does_not_grow_with_the_samples(name):
    arrays = [draw("normal", number, 8_000 + number) for number in range(8)]

    def peak(samples: int) -> int:
        calibrator = CALIBRATORS[name]()
        calibrator.update("v", arrays[0])
        gc.collect()
        tracemalloc.start()
        for number in range(samples):
            calibrator.begin_sample()
            calibrator.update("v", arrays[number % 8])
        calibrator.ranges()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(8), peak(512)
    assert many <= 1.05 * few + 65_536  # some small objects of the interpreter
