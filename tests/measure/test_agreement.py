"""Agreement against independent formulas."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from onnxkit.errors import InputError
from onnxkit.measure import agreement
from onnxkit.measure.agreement import Agreement, compare, compare_sessions, weighted_cosine, worst

arrays = npst.arrays(
    np.float32, npst.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.floats(-1e3, 1e3, width=32)
)


@given(arrays, st.integers(0, 2**32 - 1))
def test_against_plain_numpy(reference: Any, seed: int) -> None:
    actual = reference + np.random.default_rng(seed).normal(size=reference.shape).astype(np.float32)
    got = compare(reference, actual)
    ref, act = reference.astype(float).ravel(), actual.astype(float).ravel()
    assert got.max_abs == np.abs(ref - act).max()
    assert got.scale == np.abs(ref).max()
    if got.scale:
        assert got.relative == pytest.approx(got.max_abs / got.scale)
        norms = np.linalg.norm(ref) * np.linalg.norm(act)
        assert got.cosine == pytest.approx(ref @ act / norms if norms > 1e-30 else got.cosine, abs=1e-9)
        expected = 10 * math.log10((ref @ ref) / ((ref - act) @ (ref - act)))
        assert got.sqnr_db == pytest.approx(expected, abs=1e-6)
    assert got.finite


@given(arrays)
def test_equal_arrays_agree_fully(array: Any) -> None:
    got = compare(array, array.copy())
    assert (got.relative, got.max_abs, got.finite) == (0.0, 0.0, True)
    assert got.sqnr_db == math.inf
    assert got.cosine == pytest.approx(1.0)
    assert got.token_cosine == pytest.approx(1.0)


def test_token_cosine_is_the_mean_over_positions() -> None:
    reference = np.array([[[1.0, 0.0], [100.0, 0.0]]])
    actual = np.array([[[0.0, 1.0], [100.0, 0.0]]])
    got = compare(reference, actual)
    assert got.token_cosine == pytest.approx(0.5)
    assert got.cosine > 0.99
    assert got.positions == 2


def test_padding_does_not_count() -> None:
    reference = np.ones((2, 3, 4), np.float32)
    actual = reference.copy()
    actual[1, 2] = np.nan
    valid = np.array([[1, 1, 1], [1, 1, 0]])
    assert not compare(reference, actual).finite
    assert compare(reference, actual, valid).relative == 0.0
    assert compare(reference, actual, valid).positions == 5


def test_infinities_agree_only_with_themselves() -> None:
    reference = np.array([[-np.inf, 1.0, 2.0]])
    assert compare(reference, reference).relative == 0.0
    other = compare(reference, np.array([[0.0, 1.0, 2.0]]))
    assert (other.finite, other.relative) == (False, math.inf)
    assert not compare(np.array([np.nan]), np.array([np.nan])).finite


def test_scale_of_the_whole_output_may_be_given() -> None:
    assert compare(np.array([1.0]), np.array([1.1]), scale=10.0).relative == pytest.approx(0.01)


def test_anything_against_nothing() -> None:
    assert compare(np.zeros(3), np.ones(3)).relative == math.inf
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).relative == 0.0
    with pytest.raises(InputError, match=r"shape \(2,\) with \(3,\)"):
        compare(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("dtype", [np.int64, np.float16, bool, ml_dtypes.bfloat16])
def test_dtypes(dtype: Any) -> None:
    array = np.array([[0, 1, 1]]).astype(dtype)
    assert compare(array, array).relative == 0.0
    assert compare(np.array(3, np.int64), np.array(4, np.int64)).max_abs == 1.0


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference, actual = rng.normal(size=(2, 50, 3))
    whole = compare(reference, actual)
    monkeypatch.setattr(agreement, "_CHUNK_VALUES", 10)
    parts = compare(reference, actual)
    for name in ("max_abs", "scale", "cosine", "token_cosine", "sqnr_db", "positions"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def _agreement(**values: Any) -> Agreement:
    usual = {"max_abs": 0.0, "scale": 1.0, "relative": 0.0, "cosine": 1.0, "token_cosine": 1.0,
             "sqnr_db": 9.0, "positions": 1, "finite": True}  # fmt: skip
    return Agreement(**{**usual, **values})


def test_batches_are_weighted_by_tokens() -> None:
    parts = [_agreement(token_cosine=1.0, positions=3), _agreement(token_cosine=0.5, positions=1)]
    assert weighted_cosine(parts) == pytest.approx(0.875)


def test_a_non_finite_case_is_the_worst() -> None:
    cases = [
        agreement.CaseAgreement(case="a", output="y", agreement=_agreement(relative=math.inf, finite=True)),
        agreement.CaseAgreement(case="b", output="y", agreement=_agreement(finite=False)),
    ]
    assert worst(cases).case == "b"


def test_sessions_are_compared_without_padding(masked_sum: Any) -> None:
    feeds = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 0]]),
        "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
    }
    same, shifted = masked_sum(0.0), masked_sum(0.5)
    (found,) = compare_sessions(same, same, [("pair", feeds)])
    assert (found.case, found.output, found.agreement.relative) == ("pair", "last_hidden_state", 0.0)
    (found,) = compare_sessions(same, shifted, [("pair", feeds)])
    assert found.agreement.max_abs == pytest.approx(0.5)
    assert found.agreement.positions == 5
    # The graph adds a million to padded positions of the shifted one: they must not count.
    assert found.agreement.scale == 5.0
