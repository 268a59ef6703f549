"""GPTQ rounding of int8 weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.quantize.codes.rounding import gptq_rounder, inverse_factor
from onnxkit.quantize.codes.weights import channel_scales, codes
from tests.quantize.graphs import random

Array = np.ndarray[Any, Any]


def correlated(tokens: int, depth: int, seed: int = 0) -> Array:
    mix = random(depth, depth, seed=seed + 1) + 3 * random(1, depth, seed=seed + 2)
    return random(tokens, depth, seed=seed) @ mix


def believed(hessian: Array) -> Array:
    """0.6 of what is off the diagonal; a tenth of the mean diagonal is added to it."""
    diagonal = hessian.diagonal()
    found: Array = 0.6 * hessian + np.diag(0.4 * diagonal + 0.1 * diagonal.mean())
    return found


def naive(weight: Array, scales: Array, hessian: Array) -> Array:
    """OBQ in a fixed order, float64: after each column, H⁻¹ without it (Frantar et al., eqs. 2 and 3)."""
    left = weight.astype(np.float64).copy()
    inverse = np.linalg.inv(believed(hessian))
    made = np.zeros_like(left)
    for k in range(len(hessian)):
        made[:, k] = np.clip(np.rint(left[:, k] / scales), -127, 127)
        error = (left[:, k] - made[:, k] * scales) / inverse[k, k]
        left -= np.outer(error, inverse[k])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k, k] = 1.0
    return made


def test_the_factor_is_that_of_the_inverse_of_what_is_believed() -> None:
    x = correlated(100, 24).astype(np.float64)
    hessian = (x.T @ x / 100).astype(np.float32)
    factor = inverse_factor(hessian).astype(np.float64)
    right = believed(hessian.astype(np.float64)) / hessian.diagonal().mean()
    np.testing.assert_allclose(factor.T @ factor @ right, np.eye(24), atol=1e-2)
    assert np.array_equal(factor, np.triu(factor))


def test_it_is_obq_in_order() -> None:
    x, weight = correlated(300, 20), random(16, 20, seed=7)
    hessian = x.T @ x / 300
    scales = channel_scales(weight, 0, "seven", per_channel=True) * 8  # coarse, so that rounding matters
    made = gptq_rounder(hessian, paired=False)(weight, scales)
    right = naive(weight, scales, hessian.astype(np.float64))
    assert made.dtype == np.int8 and (made != right).mean() < 0.02  # float32 decides ties otherwise


@pytest.mark.parametrize("depth", [33, 200])
def test_it_lowers_the_error_of_the_output(depth: int) -> None:
    x, weight = correlated(600, depth), random(24, depth, seed=7)
    scales = channel_scales(weight, 0, "paired", per_channel=True)
    nearest = codes(weight, scales, 0)
    made = gptq_rounder(x.T @ x / 600, paired=True)(weight, scales)
    errors = [np.square(x @ (c * scales[:, None] - weight).T).sum() for c in (made, nearest)]
    assert errors[0] < 0.6 * errors[1]


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_paired_codes_keep_to_the_bound(seed: int) -> None:
    x, weight = correlated(100, 40, seed), random(8, 40, seed=seed) ** 3
    scales = channel_scales(weight, 0, "paired", per_channel=True)
    made = gptq_rounder(x.T @ x / 100, paired=True)(weight, scales).astype(int)
    left, right = made[:, :-1], made[:, 1:]
    assert np.abs(np.where(left * right > 0, left + right, 0)).max() <= 128
    assert np.abs(made).max() <= 127


def test_channels_that_are_never_seen_are_rounded_to_the_nearest() -> None:
    x, weight = correlated(100, 12), random(4, 12, seed=3)
    x[:, 5] = 0
    scales = channel_scales(weight, 0, "full", per_channel=True)
    made = gptq_rounder(x.T @ x / 100, paired=False)(weight, scales)
    assert np.array_equal(made[:, 5], codes(weight, scales, 0)[:, 5])


def test_another_depth_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="depth"):
        gptq_rounder(np.eye(3, dtype=np.float32), paired=False)(random(2, 4), np.ones(2, np.float32))
