"""KL divergence, top-1 agreement and perplexity of two language models, against naive numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxkit.errors import InputError
from onnxkit.generate import Engine
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.encoder import Encoder
from onnxkit.measure import divergence
from onnxkit.measure.divergence import Divergence, Reference, Window, kl_divergence, windows
from onnxkit.runtime import open_session
from tests.generate import decoder_graphs as graphs

Array = np.ndarray[Any, Any]
SHARPER = 1.7  # what the other model's logits are multiplied by


def engine(factor: float = 1.0, *, limit: int = graphs.CONTEXT) -> Engine:
    model = onnx.load_from_string(graphs.decoder())
    [head] = [each for each in model.graph.initializer if each.name == "H"]
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(factor), "H"))
    return Engine(Decoder(open_session(model.SerializeToString()), {}), None, limit=limit)


def texts(*lengths: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, graphs.VOCABULARY, length) for length in lengths]


def naive(pieces: list[Array], factor: float) -> Divergence:
    """All logits at once, in float64, a token at a time."""
    kls, agreed, before, after = [], 0, 0.0, 0.0
    for ids in pieces:
        for logits, chosen in zip(graphs.reference(ids)[:-1].astype(np.float64), ids[1:], strict=True):
            p, q = (np.exp(x) / np.exp(x).sum() for x in (logits, factor * logits))
            kls.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            agreed += p.argmax() == q.argmax()
            before -= math.log(p[chosen])
            after -= math.log(q[chosen])
    ordered = sorted(kls)
    return Divergence(
        tokens=len(kls),
        kl_mean=sum(kls) / len(kls),
        kl_p999=ordered[math.ceil(0.999 * (len(kls) - 1))],
        kl_max=ordered[-1],
        top1_agreement=agreed / len(kls),
        perplexity_before=math.exp(before / len(kls)),
        perplexity_after=math.exp(after / len(kls)),
    )


def close(found: Divergence, expected: Divergence) -> None:
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("remember", [False, True])
def test_agrees_with_naive_numpy_in_chunks(
    remember: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_CHUNK_BYTES", 7 * 4 * graphs.VOCABULARY)
    pieces = windows(texts(30, 9, 2), length=20)
    reference = Reference(engine(), pieces, remember=tmp_path if remember else None)
    for factor in (SHARPER, 0.5):  # the second time what is remembered is read
        close(reference.compare(engine(factor)), naive([piece.ids for piece in pieces], factor))
    assert not list(tmp_path.iterdir())


def test_a_model_does_not_diverge_from_itself() -> None:
    found = Reference(engine(), windows(texts(40))).compare(engine())
    assert found.tokens == 39
    assert (found.kl_mean, found.kl_max, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.perplexity_before == found.perplexity_after


def test_an_encoder_decoder_sees_its_encoder() -> None:
    decoder = Decoder(open_session(graphs.decoder(cross=True)), {})
    pair = Engine(decoder, Encoder(open_session(graphs.encoder()), decoder.roles), limit=graphs.CONTEXT)
    [target], [source] = texts(12), texts(5)
    found = Reference(pair, [Window(ids=target, encoder={"input_ids": source})]).compare(pair)
    logits = graphs.reference(target, source)[:-1]
    chosen = logits[np.arange(11), target[1:]] - np.log(np.exp(logits).sum(-1))
    assert found.perplexity_before == pytest.approx(math.exp(-chosen.mean()), rel=1e-4)


def test_what_is_not_finite_is_infinitely_far() -> None:
    found = Reference(engine(), windows(texts(10))).compare(engine(math.nan))
    assert (found.kl_mean, found.kl_max, found.perplexity_after) == (math.inf, math.inf, math.inf)


def test_a_token_that_is_ruled_out_adds_nothing() -> None:
    before = np.log(np.array([[0.5, 0.5, 1e-30]], np.float32))
    before[0, 2] = -np.inf
    after = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    assert kl_divergence(before, after) == pytest.approx([0.5 * math.log(2)])
    assert kl_divergence(after, before) == [math.inf]


@given(lengths=st.lists(st.integers(0, 23), max_size=5), length=st.integers(2, 9),
       tokens=st.none() | st.integers(1, 40))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows_cover_the_texts_in_order(lengths: list[int], length: int, tokens: int | None) -> None:
    given_texts = texts(*lengths)
    found = windows(given_texts, length=length, tokens=tokens)
    assert all(2 <= len(window.ids) <= length for window in found)
    whole = windows(given_texts, length=length)
    predicted = [token for window in found for token in window.ids[1:]]
    everything = [token for window in whole for token in window.ids[1:]]
    assert predicted == everything[: len(everything) if tokens is None else tokens]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="a text of two tokens"):
        Reference(engine(), windows(texts(1)))
    with pytest.raises(InputError, match="a window of 20 tokens: the model's context is 8"):
        Reference(engine(limit=8), windows(texts(20))).compare(engine())
    other = engine()
    other.decoder.vocabulary = 41
    with pytest.raises(InputError, match="vocabularies of 40 and 41"):
        Reference(engine(), windows(texts(4))).compare(other)
