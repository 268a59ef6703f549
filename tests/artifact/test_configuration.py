from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxkit.artifact.configuration import (
    attention_heads,
    decoder_positions,
    input_positions,
    positive,
    shortest_waveform,
    text_part,
    waveform_convolutions,
)
from onnxkit.artifact.genai import GENAI_NAME
from onnxkit.generate.decoder import Decoder
from onnxkit.measure.geometry import geometry
from onnxkit.runtime import open_session
from tests.artifact.test_genai import CONFIG, fit, graph_of
from tests.generate import decoder_graphs

PLACES = {
    "flat": {"num_attention_heads": 12},
    "gpt2": {"n_head": 12},
    "bart": {"encoder_attention_heads": 4, "decoder_attention_heads": 12},
    "text_config": {
        "text_config": {"num_attention_heads": 12}, "vision_config": {"num_attention_heads": 4}
    },
    "decoder": {"decoder": {"n_head": 12}, "encoder": {"num_attention_heads": 4}},
    "of the whole and the part, the part": {
        "num_attention_heads": 4, "text_config": {"num_attention_heads": 12}
    },
    "no text": {"vision_config": {"num_attention_heads": 12}},
}  # fmt: skip


@pytest.mark.parametrize("config", PLACES.values(), ids=PLACES)
def test_heads_are_the_same_for_all_that_ask(config: dict[str, Any], tmp_path: Path) -> None:
    assert attention_heads(config) == geometry(config).heads == 12
    decoder = Decoder(open_session(decoder_graphs.decoder()), config)
    assert decoder.chunk(200_000) == Decoder(decoder.session, {"num_attention_heads": 12}).chunk(200_000)
    assert decoder.chunk(200_000) < Decoder(decoder.session, {"num_attention_heads": 4}).chunk(200_000)
    common = {key: value for key, value in CONFIG.items() if key != "num_attention_heads"}
    (tmp_path / "config.json").write_text(json.dumps({**common, **config}))
    fit(tmp_path, graph_of())
    written = json.loads((tmp_path / GENAI_NAME).read_text())
    assert written["model"]["decoder"]["num_attention_heads"] == 12


@pytest.mark.parametrize("value", [None, 0, -1, True, "12", [3, 6]])
def test_what_is_no_number_is_not_known(value: Any) -> None:
    assert attention_heads({"num_attention_heads": value}) is None
    assert positive({"a": value, "encoder": {"a": 2}}, "b", "a") == 2


def test_the_text_part_keeps_what_only_the_whole_says() -> None:
    config = {"pad_token_id": 1, "vocab_size": 9, "decoder": None, "text_config": {"vocab_size": 7}}
    assert text_part(config) == {**config, "vocab_size": 7}
    assert text_part({"decoder": "gpt2"}) == {"decoder": "gpt2"}


ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("config", "read", "written"),
    [
        (ROBERTA, 512, 512),
        ({"model_type": "bert", "max_position_embeddings": 64}, 64, 64),
        ({"encoder": ROBERTA, "decoder": {"model_type": "gpt2", "n_positions": 32}}, 512, 32),
        ({"encoder": {"image_size": 8}, "decoder": ROBERTA}, None, 512),
        ({"max_source_positions": 1500, "max_target_positions": 448}, None, 448),
        ({"text_config": {"max_position_embeddings": 77}, "max_position_embeddings": 9}, 77, 77),
        ({"max_position_embeddings": "many"}, None, None),
    ],
)
def test_what_positions_reach(config: dict[str, Any], read: int | None, written: int | None) -> None:
    assert (input_positions(config), decoder_positions(config)) == (read, written)
    known = geometry(config)
    assert (known.positions, known.decoder_positions) == (read or written, written)


@pytest.mark.parametrize(
    ("config", "least"),
    [
        ({"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}, 400),
        ({"model_type": "moonshine"}, 895),
        ({"conv_kernel": [10, 3], "conv_stride": [5]}, 1),
        ({"conv_kernel": [10, 0], "conv_stride": [5, 2]}, 1),
        ({}, 1),
    ],
)
def test_samples_of_a_frame(config: dict[str, Any], least: int) -> None:
    samples = least
    for kernel, stride in waveform_convolutions(config):
        samples = (samples - kernel) // stride + 1
    assert (shortest_waveform(config), samples) == (least, 1)
