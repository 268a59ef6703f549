"""Logarithmic codes: the nearest of all there are, and what numpy makes of them without our tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxkit.quantize.codes.logarithm import STEPS, LogCodes, levels, quantize

BITS = st.sampled_from((4, 8))
SIZES = st.sampled_from((16, 32, 64))
WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.one_of(
        st.floats(-2, 2, width=32),
        st.sampled_from((0.0, -0.0, 1.0, -1.0, 1e-30, 6e4, -6e4, 0.75, 0.1875)),
    ),
)


def decoded(codes: LogCodes) -> np.ndarray:
    """Every weight by the formula, a code at a time."""
    most, steps = 2 ** (codes.bits - 1) - 1, STEPS[codes.bits]
    found = np.zeros((len(codes.packed), codes.scales.shape[1] * codes.packed.shape[2] * 8 // codes.bits))
    for row, blocks in enumerate(codes.packed):
        values = []
        for block, scale in zip(blocks, codes.scales[row], strict=True):
            for byte in block:
                for code in [byte] if codes.bits == 8 else [byte % 16, byte // 16]:
                    sign, level = divmod(int(code), most + 1)
                    size = float(np.float32(2.0 ** (-(most - level) / steps))) if level else 0.0
                    values.append((-1) ** sign * size * float(scale))
        found[row] = values
    return found.astype(np.float32)[:, : codes.depth]


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, BITS, SIZES)
def test_codes_mean_what_the_formula_says(weight, bits, size):
    codes = quantize(weight, bits, size)
    np.testing.assert_array_equal(codes.dequantized(), decoded(codes))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, BITS, SIZES)
def test_each_weight_gets_the_nearest_level(weight, bits, size):
    codes = quantize(weight, bits, size)
    scales = np.repeat(codes.scales.astype(np.float64), size, axis=1)[:, : codes.depth, None]
    every = np.concatenate([levels(bits), -levels(bits)])
    least = np.abs(weight[..., None] - scales * every).min(axis=-1)
    got = np.abs(weight - codes.dequantized().astype(np.float64))
    assert (got <= least + 1e-6 * np.abs(weight)).all()


@given(WEIGHTS, BITS, SIZES)
@settings(max_examples=60, deadline=None)
def test_the_search_is_no_worse_than_the_largest_magnitude_as_scale(weight, bits, size):
    codes = quantize(weight, bits, size)
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % size))).reshape(len(weight), -1, size)
    plain = np.abs(padded).max(axis=-1, keepdims=True).astype(np.float16).astype(np.float64)
    every = np.concatenate([levels(bits), -levels(bits)])
    wrong = (np.abs(padded[..., None] - plain[..., None] * every).min(axis=-1) ** 2).sum()
    got = ((weight - codes.dequantized().astype(np.float64)) ** 2).sum()
    assert got <= wrong * 1.001 + 1e-9 * (weight.astype(np.float64) ** 2).sum() + 1e-14 * weight.size


@pytest.mark.parametrize(("bits", "least"), [(4, 20.5), (8, 41.0)])
def test_normal_weights_keep_the_signal_that_the_docstring_says(bits, least):
    weight = np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)
    wrong = weight - quantize(weight, bits, 32).dequantized()
    assert 10 * np.log10((weight**2).sum() / (wrong**2).sum()) > least


def test_zeros_stay_zeros():
    codes = quantize(np.zeros((3, 20), np.float32), 4, 16)
    assert not codes.packed.any() and not codes.dequantized().any()


@pytest.mark.parametrize(
    ("bad", "message"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (1e5, "float16 scale")]
)
def test_what_no_code_can_stand_for_is_refused(bad, message):
    weight = np.ones((2, 32), np.float32)
    weight[1, 3] = bad
    with pytest.raises(ValueError, match=message):
        quantize(weight, 8, 32)
