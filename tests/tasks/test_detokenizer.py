"""Text as it comes is the text of the whole, and stop strings are cut exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from onnxkit.tasks.detokenizer import StopStrings, TextStream, TokenStream
from tests.model_dirs import word_piece
from tests.tasks.generating_dirs import SAMPLES, byte_fallback

TOKENIZERS = {
    "byte-level BPE": lambda: Tokenizer.from_file(str(SAMPLES / "pydoc-gpt2" / "tokenizer.json")),
    "unigram": lambda: Tokenizer.from_file(str(SAMPLES / "numbers-t5" / "tokenizer.json")),
    "byte fallback": byte_fallback,
    "word pieces": word_piece,
}


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def streamed(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    stream = TokenStream(lambda some: decoded(tokenizer, some), context)
    return [*(stream.push(token) for token in ids), stream.flush()]


def tokens_of(tokenizer: Tokenizer, name: str) -> st.SearchStrategy[list[int]]:
    """Draw any tokens; those for single bytes only as whole characters."""
    vocabulary = tokenizer.get_vocab()
    others = st.sampled_from([[i] for token, i in vocabulary.items() if not token.startswith("<0x")])
    if name != "byte fallback":
        return st.lists(others, max_size=40).map(lambda groups: [*chain.from_iterable(groups)])
    characters = st.characters(codec="utf-8").map(
        lambda one: [vocabulary[f"<0x{byte:02X}>"] for byte in one.encode()]
    )
    return st.lists(others | characters, max_size=40).map(lambda groups: [*chain.from_iterable(groups)])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_join_to_the_text_of_the_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]()

    @settings(max_examples=150, deadline=None)
    @given(tokens_of(tokenizer, name))
    def check(ids: list[int]) -> None:
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == decoded(tokenizer, ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])

    check()


@pytest.mark.parametrize("name", ["byte-level BPE", "byte fallback"])
def test_pieces_of_real_texts(name: str) -> None:
    tokenizer = TOKENIZERS[name]()

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=30), st.text(max_size=30))
    def check(before: str, after: str) -> None:
        context = tokenizer.encode(before).ids
        ids = tokenizer.encode(after, add_special_tokens=False).ids
        whole = decoded(tokenizer, [*context, *ids])
        assert decoded(tokenizer, context) + "".join(streamed(tokenizer, ids, context)) == whole

    check()


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode("a€", add_special_tokens=False).ids
    assert streamed(tokenizer, ids) == ["a", "", "", "€", ""]


def text_stream(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], TextStream]:
    """Stream texts as if each token were one of them."""
    stream = TextStream(TokenStream(lambda ids: "".join(pieces[i] for i in ids)), StopStrings(stops))
    said = [stream.text(index) for index in range(len(pieces))]
    return [*said, stream.flush()], stream


@pytest.mark.parametrize(
    ("stops", "pieces", "said"),
    [
        (["END"], ["abc", "E", "N", "D", "x"], ["abc", "", "", "", "", ""]),
        (["END"], ["abE", "Nx"], ["ab", "ENx", ""]),
        (["END"], ["abENDcd"], ["ab", ""]),
        (["b", "ab"], ["xab"], ["x", ""]),
        (["\n\n"], ["a\n", "\nb"], ["a", "", ""]),
        (["\n\n"], ["a\n"], ["a", "\n"]),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", "", ""]),
    ],
)
def test_stop_strings_are_cut_wherever_tokens_part_them(
    stops: list[str], pieces: list[str], said: list[str]
) -> None:
    assert text_stream(stops, pieces)[0] == said


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab", max_size=4)))
@example(["a", "bab"], ["ba", "b"])
def test_streams_and_cuts_agree(stops: list[str], pieces: list[str]) -> None:
    """A sequence ends with the piece that completes a stop, even if a longer one began before that."""
    said, stream = text_stream(stops, pieces)
    text = ""
    for piece in pieces:
        text += piece
        if any(stop in text for stop in stops):
            break
    assert "".join(said) == StopStrings(stops).cut(text)
    assert stream.stopped == any(stop in text for stop in stops)


def test_the_check_ends_with_the_token_that_completes_the_stop() -> None:
    pieces = ["a", "b", "c"]
    stream = TextStream(TokenStream(lambda ids: "".join(pieces[i] for i in ids)), StopStrings(["bc"]))
    assert [stream.push(index) for index in range(3)] == [False, False, True]
