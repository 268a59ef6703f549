"""Algorithms of blocks against naive loops: what is stored, errors, edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.quantize.codes.blocks import ALGORITHMS, BlockCodes, awq_scales
from onnxkit.quantize.codes.blocks.awq import scaled_statistics
from onnxkit.quantize.codes.blocks.hessian import trusted, upper_factor
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

Array = np.ndarray[Any, Any]
DATA_FREE = [name for name, row in ALGORITHMS.items() if row.needs != "hessian"]


def seen(x: Array) -> InputStatistics:
    return InputStatistics(
        count=len(x), absmax=np.abs(x).max(0), mean=x.mean(0), mean_square=np.square(x).mean(0),
        hessian=(x.T @ x / len(x)).astype(np.float32),
    )  # fmt: skip


def inputs(depth: int, tokens: int = 512, seed: int = 0) -> Array:
    """Correlated, with a few channels that carry far more than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, depth)) @ rng.normal(size=(depth, depth)) / depth**0.5
    x[:, :: max(1, depth // 3)] *= 12
    return x.astype(np.float32)


def naive(made: BlockCodes) -> Array:
    """Dequantized weights, a weight at a time."""
    rows = len(made.codes)
    out = np.zeros((rows, made.depth), np.float32)
    for row in range(rows):
        for column in range(made.depth):
            block, place = divmod(column, made.size)
            zero = 2 ** (made.bits - 1) if made.zero_points is None else int(made.zero_points[row, block])
            out[row, column] = np.float32(int(made.codes[row, block, place]) - zero) * made.scales[row, block]
    return out


def output_error(made: BlockCodes, weight: Array, x: Array) -> float:
    return float(np.square((made.dequantized() - weight) @ x.T).mean())


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Shapes, depths that are no multiple of a block, zeros, constants, outliers, ties, one sign, tiny."""
    rows, depth = draw(st.integers(1, 5)), draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weight = rng.normal(size=(rows, depth)) * draw(st.sampled_from([1e-42, 1e-9, 1e-3, 0.02, 1.0, 1e3]))
    match draw(st.sampled_from(["normal", "zeros", "constant", "outlier", "ties", "positive", "negative"])):
        case "zeros":
            weight[:, : depth // 2 + 1] = 0
        case "constant":
            weight[:] = weight[0, 0]
        case "outlier":
            weight[:, 0] *= 50
        case "ties":
            weight = np.rint(rng.normal(size=(rows, depth)) * 4) * 0.5
        case "positive":
            weight = np.abs(weight) + 1
        case "negative":
            weight = -np.abs(weight) - 1
    return weight.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    weight=weights(),
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
)
def test_what_is_stored_is_what_is_computed(
    weight: Array, bits: Any, size: int, symmetric: bool, algorithm: Any
) -> None:
    fmt = BlockFormat(bits=bits, size=size, symmetric=symmetric, algorithm=algorithm)
    made = ALGORITHMS[algorithm].quantize(weight, fmt, seen(inputs(weight.shape[1])))
    blocks = -(-weight.shape[1] // size)
    assert made.codes.shape == (len(weight), blocks, size) and made.codes.dtype == np.uint8
    assert made.codes.max() < 2**bits
    assert (made.zero_points is None) == symmetric
    assert np.isfinite(made.scales).all()
    assert np.array_equal(made.scales, made.scales.astype(np.float16).astype(np.float32))
    assert np.array_equal(made.dequantized(), naive(made))


@settings(max_examples=60, deadline=None)
@given(weight=weights(), bits=st.sampled_from([4, 8]), symmetric=st.booleans())
def test_round_to_nearest_is_off_by_half_a_step(weight: Array, bits: Any, symmetric: bool) -> None:
    """And by what the lowest and the highest code lose: half a step of the zero point; a step at +peak."""
    fmt = BlockFormat(bits=bits, size=16, symmetric=symmetric)
    made = ALGORITHMS["rtn"].quantize(weight, fmt, None)
    step = np.repeat(np.abs(made.scales), 16, axis=1)[:, : weight.shape[1]]
    off = np.abs(made.dequantized() - weight)
    assert (off <= step * 1.13 + 2.0**bits * 2.0**-25 + 1e-7 * np.abs(weight)).all()


@settings(max_examples=60, deadline=None)
@given(weight=weights(), bits=st.sampled_from([4, 8]), symmetric=st.booleans(), weighted=st.booleans())
def test_search_is_never_worse_than_round_to_nearest(
    weight: Array, bits: Any, symmetric: bool, weighted: bool
) -> None:
    fmt = BlockFormat(bits=bits, size=16, symmetric=symmetric)
    statistics = seen(inputs(weight.shape[1])) if weighted else None
    counts = np.ones(weight.shape[1]) if statistics is None else statistics.mean_square.astype(np.float64)
    counts = counts / counts.mean() + (0.01 if weighted else 0)

    def error(algorithm: Any) -> float:
        made = ALGORITHMS[algorithm].quantize(weight, fmt, statistics).dequantized()
        return float((np.square(made.astype(np.float64) - weight) * counts).sum())

    assert error("search") <= error("rtn") * (1 + 1e-4) + 1e-30


def test_search_comes_near_to_an_exhaustive_one() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    made = ALGORITHMS["search"].quantize(weight, BlockFormat(bits=4), None)
    least = np.full(len(weight), np.inf)
    for part in np.linspace(0.6, 1.1, 60):
        for zero in range(16):
            scale = (weight.max(1) - weight.min(1)) * part / 15
            codes = np.clip(np.rint(weight / scale[:, None]) + zero, 0, 15) - zero
            power = np.maximum(np.square(codes).sum(1), 1e-9)
            best = (codes * weight).sum(1) / power
            least = np.minimum(least, np.square(codes * best[:, None] - weight).sum(1))
    assert np.square(made.dequantized() - weight).sum() < 1.03 * least.sum()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_errors_of_outputs_are_ordered(bits: Any, symmetric: bool) -> None:
    """On the text that they have seen: round to nearest, then weighted search, then GPTQ."""
    x = inputs(72)
    weight = np.random.default_rng(1).standard_t(4, size=(64, 72)).astype(np.float32)
    fmt = BlockFormat(bits=bits, size=32, symmetric=symmetric)
    plain, search, gptq = (
        output_error(ALGORITHMS[name].quantize(weight, fmt, seen(x)), weight, x)
        for name in ("rtn", "search", "gptq")
    )
    assert gptq < search < plain


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), depth=st.integers(20, 70), size=st.sampled_from([16, 32]))
def test_gptq_beats_round_to_nearest_on_any_correlated_input(seed: int, depth: int, size: int) -> None:
    x = inputs(depth, seed=seed)
    weight = np.random.default_rng(seed).normal(size=(48, depth)).astype(np.float32)
    fmt = BlockFormat(bits=4, size=size)
    made = ALGORITHMS["gptq"].quantize(weight, fmt, seen(x))
    assert output_error(made, weight, x) < output_error(
        ALGORITHMS["rtn"].quantize(weight, fmt, None), weight, x
    )


def test_gptq_carries_over_to_other_text() -> None:
    """Few tokens, many channels: the Hessian is shrunk, so that it does not learn them by heart."""
    x = inputs(128, tokens=1024)
    weight = np.random.default_rng(2).normal(size=(64, 128)).astype(np.float32)
    few, others = x[:96], x[96:]
    made, search = (
        ALGORITHMS[name].quantize(weight, BlockFormat(bits=4), seen(few)) for name in ("gptq", "search")
    )  # fmt: skip
    assert output_error(made, weight, others) < output_error(search, weight, others)


def test_gptq_wants_a_hessian_that_is_finite() -> None:
    fmt, weight = BlockFormat(bits=4, algorithm="gptq"), np.ones((2, 32), np.float32)
    with pytest.raises(ValueError, match="needs the Hessian"):
        ALGORITHMS["gptq"].quantize(weight, fmt, None)
    x = inputs(32)
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        ALGORITHMS["gptq"].quantize(weight, fmt, seen(x))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_channels_that_never_stirred(algorithm: Any) -> None:
    x = np.zeros((8, 40), np.float32)
    weight = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    made = ALGORITHMS[algorithm].quantize(weight, BlockFormat(bits=4), seen(x)).dequantized()
    assert np.abs(made - weight).max() < 0.5


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(algorithm: Any, bad: float) -> None:
    weight = np.ones((3, 32), np.float32)
    weight[1, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        ALGORITHMS[algorithm].quantize(weight, BlockFormat(bits=4), seen(inputs(32)))


@pytest.mark.parametrize("algorithm", DATA_FREE)
def test_weights_too_large_for_half_precision_are_refused(algorithm: Any) -> None:
    with pytest.raises(ValueError, match="too large"):
        ALGORITHMS[algorithm].quantize(np.full((1, 32), 1e7, np.float32), BlockFormat(bits=4), None)


@pytest.mark.parametrize("algorithm", DATA_FREE)
@pytest.mark.parametrize("value", [0.0, 0.375, -3.0])
def test_constant_weights(algorithm: Any, value: float) -> None:
    weight = np.full((2, 48), value, np.float32)
    made = ALGORITHMS[algorithm].quantize(weight, BlockFormat(bits=4), None).dequantized()
    assert np.allclose(made, weight, rtol=1e-3, atol=0)


def test_blocks_far_from_zero_keep_their_values() -> None:
    """ONNX Runtime's k-quant takes the range without zero, and clips all of such a block away."""
    weight = np.linspace(1, 1.1, 32, dtype=np.float32)[None]
    for algorithm in DATA_FREE:
        made = ALGORITHMS[algorithm].quantize(weight, BlockFormat(bits=4), None).dequantized()
        assert np.abs(made - weight).max() < 0.06, algorithm


def test_half_quadratic_minimizes_the_p_norm() -> None:
    weight = np.random.default_rng(3).standard_t(3, size=(64, 64)).astype(np.float32)
    fmt = BlockFormat(bits=4, size=64)
    plain, found = (
        np.abs(ALGORITHMS[name].quantize(weight, fmt, None).dequantized() - weight) for name in ("rtn", "hqq")
    )  # fmt: skip
    assert (found**0.7).mean() < (plain**0.7).mean()


def test_awq_scales_lower_the_error_of_the_output() -> None:
    x = inputs(64)
    rng = np.random.default_rng(4)
    first, second = (rng.normal(size=(40, 64)).astype(np.float32) for _ in range(2))
    fmt = BlockFormat(bits=4, algorithm="awq")
    scales = awq_scales([first, second], seen(x), fmt)
    assert scales.shape == (64,) and scales.dtype == np.float32 and (scales > 0).all()
    quantize = ALGORITHMS["awq"].quantize
    made = quantize(first * scales, fmt, scaled_statistics(seen(x), scales)).dequantized() / scales
    plain = quantize(first, fmt, seen(x))
    assert np.square((made - first) @ x.T).mean() <= 1.02 * output_error(plain, first, x)


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 60), seed=st.integers(0, 1000))
def test_the_upper_factor_is_one(depth: int, seed: int) -> None:
    hessian = trusted(seen(inputs(depth, tokens=20, seed=seed)).hessian)
    factor = upper_factor(hessian)
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(factor @ factor.T, hessian, rtol=1e-4, atol=1e-4 * hessian.max())


def test_gptq_in_parts_is_gptq_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(5).normal(size=(20, 40)).astype(np.float32)
    fmt, statistics = BlockFormat(bits=4, size=16), seen(inputs(40))
    once = ALGORITHMS["gptq"].quantize(weight, fmt, statistics)
    monkeypatch.setattr("onnxkit.quantize.codes.blocks.gptq._PART", 7 * 40)
    parts = ALGORITHMS["gptq"].quantize(weight, fmt, statistics)
    assert np.mean(once.codes == parts.codes) > 0.98  # sums of another order may turn a tie
