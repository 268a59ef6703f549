from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.cli import figures


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"), (1.0, "1.00"), (12.345, "12.3"), (123.4, "123"), (99.96, "100"), (0.001234, "0.00123"),
        (1e-7, "1.00e-07"), (3.2e7, "3.20e+07"), (None, "-"), (-4.5678, "-4.57"),
    ],
)  # fmt: skip
def test_digits(number: float | None, text: str) -> None:
    assert figures.digits(number) == text


@given(st.floats(1e-9, 1e9))
def test_digits_are_within_half_a_percent(number: float) -> None:
    assert float(figures.digits(number)) == pytest.approx(number, rel=5e-3)


@pytest.mark.parametrize(
    ("count", "text"),
    [(17, "17 bytes"), (1_000, "1.00 kB"), (22_613_201, "22.6 MB"), (3_100_000_000, "3.10 GB"), (None, "-")],
)
def test_sizes_count_in_powers_of_ten(count: int | None, text: str) -> None:
    assert figures.size(count) == text


def test_an_exact_size_shows_its_base() -> None:
    assert figures.exact_size(22_613_201) == "22.6 MB (22,613,201 bytes)"


def test_differences() -> None:
    assert figures.difference(3.21e-7) == "3.2e-07"
    assert figures.difference(0.0) == "0"
    assert figures.difference(None) == figures.difference(float("nan")) == "-"
    assert figures.judged(3.21e-7, 1e-4) == "worst difference 3.2e-07 of 1e-04 allowed"


def test_words() -> None:
    assert figures.plural(1, "node") == "1 node"
    assert figures.plural(1200, "entry") == "1,200 entries"
    assert figures.shape(["batch_size", 3, None]) == "batch_size x 3 x ?"
    assert figures.shape([]) == "scalar"
    assert figures.share(1, 0) == "-"
    assert figures.share(1, 8) == "12.5 %"
