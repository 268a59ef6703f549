"""`Engine.open`: which graphs of a directory it takes, and drafts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError
from onnxkit.generate import Engine, Request
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.draft import DraftProposer
from onnxkit.generate.encoder import Encoder
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.roles import roles_of
from onnxkit.runtime import open_session
from tests.generate import decoder_graphs as graphs

PROMPT = [1, 2, 3]


def request(count: int = 12) -> Request:
    return Request(prompt=np.array(PROMPT), options=GenerationOptions(max_new_tokens=count))


def test_a_directory_with_one_graph(tmp_path: Path) -> None:
    engine = Engine.open(ModelDir.open(graphs.save(tmp_path, model=graphs.decoder())))
    assert (engine.limit, engine.vocabulary) == (graphs.CONTEXT, graphs.VOCABULARY)
    assert engine.cache_bytes_per_token == graphs.LAYERS * 2 * graphs.HEAD * 4
    ((_, found),) = engine.generate([request()])
    assert list(found.sequences[0].tokens) == graphs.greedy(PROMPT, 12)


@pytest.mark.parametrize("optimum", [False, True])
def test_an_encoder_with_its_decoders(tmp_path: Path, optimum: bool) -> None:
    decoder = graphs.decoder(cross=True, keep=False)
    encoder = graphs.encoder(projected=not optimum)
    if optimum:
        first = graphs.first_step()
        graphs.save(tmp_path, encoder_model=encoder, decoder_model=first, decoder_with_past_model=decoder)
    else:
        graphs.save(tmp_path, encoder_model=encoder, decoder_model=decoder)
    engine = Engine.open(ModelDir.open(tmp_path, task="text2text-generation"))
    assert engine.decoder.stepwise == optimum
    sources = [[3, 4, 5], [7], [1, 30, 8, 8]]
    asked = [
        Request(
            prompt=np.array(PROMPT),
            encoder={"input_ids": np.array(source)},
            options=GenerationOptions(max_new_tokens=6, num_beams=beams),
        )
        for source, beams in zip(sources, (1, 1, 2), strict=True)
    ]
    found = dict(engine.generate(asked))
    for index in (0, 1):
        assert list(found[index].sequences[0].tokens) == graphs.greedy(PROMPT, 6, sources[index])
    scores = engine.score(np.array([*PROMPT, 4]), encoder={"input_ids": np.array([3])})
    assert scores.shape == (3,)


def test_an_encoder_without_what_the_decoder_takes() -> None:
    roles = roles_of(open_session(graphs.decoder(cross=True)))
    with pytest.raises(InputError, match=r"no output present\.0\.encoder\.key"):
        Encoder(open_session(graphs.encoder(projected=False)), roles)


def test_a_draft_changes_nothing_but_the_number_of_steps(tmp_path: Path) -> None:
    model = ModelDir.open(graphs.save(tmp_path / "large", model=graphs.decoder()))
    draft = ModelDir.open(graphs.save(tmp_path / "small", model=graphs.decoder(shared=True, keep=False)))
    engine = Engine.open(model, draft=draft)
    for _, found in engine.generate([request(40), request(5)]):
        count = len(found.sequences[0].tokens)
        assert list(found.sequences[0].tokens) == graphs.greedy(PROMPT, count)
        assert 0 < found.stats.accepted == found.stats.proposed
        assert found.stats.steps < count - 1


def test_a_draft_has_its_own_context(tmp_path: Path) -> None:
    model = ModelDir.open(graphs.save(tmp_path / "large", model=graphs.decoder()))
    draft = ModelDir.open(graphs.save(tmp_path / "small", model=graphs.decoder()))
    (tmp_path / "small/config.json").write_text('{"n_positions": 10, "is_decoder": true}')
    draft = ModelDir.open(tmp_path / "small")
    ((_, found),) = Engine.open(model, draft=draft).generate([request(20)])
    assert list(found.sequences[0].tokens) == graphs.greedy(PROMPT, 20)
    assert found.stats.proposed <= 10


def test_a_draft_with_fewer_tokens_is_no_reason_to_fail() -> None:
    decoder = Decoder(open_session(graphs.decoder()), {})
    proposer = DraftProposer(decoder, np.array(PROMPT), None)
    assert proposer.propose(4) == graphs.greedy(PROMPT, 4)
    proposer.push(graphs.VOCABULARY + 3)  # the large model's vocabulary is longer
    assert proposer.propose(4) == []
