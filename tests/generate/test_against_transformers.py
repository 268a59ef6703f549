"""Real exports, portable and lowered, against transformers' `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from onnxkit.artifact import ModelDir
from onnxkit.export import export_model
from onnxkit.generate import Engine, Request
from onnxkit.generate.options import GenerationOptions
from onnxkit.optimize import OptimizeOptions, optimize_model
from onnxkit.runtime import RuntimeOptions
from tests.tiny_models import save_tiny

EOS, CONTEXT = 2, 64
_T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": EOS,
}  # fmt: skip


def sharpened(model: Any, folder: Path) -> Any:
    """Save `model` with larger weights, so that no two tokens are nearly equally good."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module", params=["llama-lm", "gemma3-lm", "bloom-lm", "gpt2-lm"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = save_tiny(request.param, tmp_path_factory.mktemp("checkpoint"))
    made = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return sharpened(made, folder), _exported(folder)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    return sharpened(
        transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5)), folder
    ), _exported(folder)


def _exported(folder: Path) -> Path:
    """Export and optimize; return the folder above `portable` and `lowered`."""
    above = folder.parent / f"{folder.name}-onnx"
    above.mkdir()
    export_model(folder, above / "portable")
    optimize_model(above / "portable", above / "lowered", OptimizeOptions(measure=False))
    return above


def generated(model: Any, ids: np.ndarray[Any, Any], skip: int, **options: Any) -> list[list[int]]:
    """Return the new tokens of each sequence that transformers generates, without padding and eos."""
    given = torch.tensor(ids)[None]
    with torch.no_grad():
        found = model.generate(
            given, attention_mask=torch.ones_like(given), **{"do_sample": False, "pad_token_id": 0, **options}
        )
    rows = [row[skip:] for row in found.tolist()]
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


def random_prompts(*lengths: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 128, length) for length in lengths]


def completions(engine: Engine, requests: list[Request]) -> list[list[list[int]]]:
    found = dict(engine.generate(requests))
    return [[list(sequence.tokens) for sequence in found[index].sequences] for index in range(len(requests))]


def opened(folder: Path, **settings: Any) -> Engine:
    return Engine.open(ModelDir.open(folder), RuntimeOptions(threads=1), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["portable", "lowered"])
def test_decoders(decoder: tuple[Any, Path], form: str) -> None:
    model, folder = decoder
    engine = opened(folder / form, batch_size=3)
    prompts = random_prompts(5, 17, 1, 30, 9, 12, 2)
    extras: list[dict[str, Any]] = [
        {},
        {},
        {},
        {"repetition_penalty": 1.5},
        {"num_beams": 3, "num_return_sequences": 2},
        {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 2},
        {"num_beams": 2},
    ]
    options = [{"max_new_tokens": 6 + index, **extra} for index, extra in enumerate(extras)]
    requests = [
        Request(prompt=prompt, options=GenerationOptions(eos_token_ids=(EOS,), **each))
        for prompt, each in zip(prompts, options, strict=True)
    ]
    wanted = [generated(model, p, len(p), **each) for p, each in zip(prompts, options, strict=True)]
    assert completions(engine, requests) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("form", ["portable", "lowered"])
def test_conversations_and_speculation(decoder: tuple[Any, Path], form: str) -> None:
    model, folder = decoder
    engine = opened(folder / form, speculate="ngram")
    talk = engine.conversation()
    history = random_prompts(5)[0]
    for turn in range(3):
        found = talk.generate(Request(prompt=history, options=GenerationOptions(max_new_tokens=8)))
        assert [list(found.sequences[0].tokens)] == generated(
            model, history, len(history), max_new_tokens=8, eos_token_id=None
        )
        assert (found.stats.cached_tokens > 0) == (turn > 0)
        history = np.array([*history, *found.sequences[0].tokens, 40 + turn])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["portable", "lowered"])
def test_encoder_decoders(seq2seq: tuple[Any, Path], form: str) -> None:
    model, folder = seq2seq
    engine = opened(folder / form, batch_size=3)
    prompts = random_prompts(5, 17, 1, 30, 9)
    beams = [1, 1, 3, 1, 2]
    requests = [
        Request(
            prompt=np.array([0]),
            encoder={"input_ids": prompt},
            options=GenerationOptions(max_new_tokens=9, num_beams=count, eos_token_ids=(EOS,)),
        )
        for prompt, count in zip(prompts, beams, strict=True)
    ]
    wanted = [
        generated(model, p, 1, max_new_tokens=9, num_beams=count)
        for p, count in zip(prompts, beams, strict=True)
    ]
    assert completions(engine, requests) == wanted
