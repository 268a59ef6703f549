from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.cli import options
from onnxkit.errors import UsageError, suggestion


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_a_sweep_comes_back(numbers: list[int]) -> None:
    assert options.split_integers(", ".join(map(str, numbers)), "--batch") == tuple(numbers)


@pytest.mark.parametrize("text", ["1,x", "0", "-1", "1.5", "", ",", "²"])
def test_a_bad_sweep_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--batch"):
        options.split_integers(text, "--batch")


def test_no_sweep_is_empty() -> None:
    assert options.split_integers(None, "--batch") == ()
    assert options.split_list(" cpu, ,cuda ") == ("cpu", "cuda")


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=9)))
def test_pairs_come_back(pairs: dict[str, str]) -> None:
    written = [f"{key}={value}" for key, value in pairs.items()]
    assert options.split_pairs(written, "--column") == pairs


@pytest.mark.parametrize("items", [["text"], ["=x"], ["a=1", "a=2"], ["a=1", " a=2"]])
def test_bad_pairs_name_their_option(items: list[str]) -> None:
    with pytest.raises(UsageError, match="--column"):
        options.split_pairs(items, "--column")


@pytest.mark.parametrize(
    ("names", "variable"),
    [
        (("--threads",), "ONNXKIT_THREADS"),
        (("--level", "-O"), "ONNXKIT_LEVEL"),
        (("--verify/--no-verify",), "ONNXKIT_VERIFY"),
        (("--trust-remote-code",), "ONNXKIT_TRUST_REMOTE_CODE"),
    ],
)
def test_the_environment_variable_follows_from_the_name(names: tuple[str, ...], variable: str) -> None:
    assert options.variable(*names) == variable


def test_suggestions_are_the_nearest_names_or_all() -> None:
    assert suggestion("int8-dinamic", ["int8-dynamic", "fp16"]) == "did you mean int8-dynamic?"
    assert suggestion("zzz", ["a", "b"]) == "known are a, b"
    assert suggestion("zzz", map(str, range(30))).endswith("18, 19, …")
