from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.cli import coercion


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_comes_back(number: int) -> None:
    assert coercion.to_int(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_comes_back(number: float) -> None:
    assert coercion.to_float(repr(number)) == number


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1,5", "", "one"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        coercion.to_float(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("on", True), ("0", False), ("No", False), ("off", False)],
)
def test_switches(text: str, value: bool) -> None:
    assert coercion.to_bool(text) is value


def test_a_switch_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a switch"):
        coercion.to_bool("maybe")


def test_paths() -> None:
    assert coercion.to_path("build/x") == Path("build/x")
    for text in ("", "a\0b"):
        with pytest.raises(ValueError, match="path"):
            coercion.to_path(text)
