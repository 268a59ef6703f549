"""Pooling and the modules after it, against numpy row by row on the real tokens alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from onnxkit.errors import InputError, UnsafeError
from onnxkit.export.heads import POOLINGS, LastEnd, sentence_head
from onnxkit.safety import read_modules
from tests.tiny_models import BY_NAME

Array = np.ndarray[Any, Any]


def by_position(rows: Array) -> Array:
    weights = np.arange(1, len(rows) + 1)[:, None]
    return (rows * weights).sum(0) / weights.sum()


# On the real tokens of one row; `weightedmean` weighs by the place in the padded row, so it is told apart.
BY_DEFINITION: dict[str, Callable[[Array], Array]] = {
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(0),
    "mean": lambda rows: rows.mean(0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / np.sqrt(len(rows)),
    "weightedmean": by_position,
    "lasttoken": lambda rows: rows[-1],
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_ignores_right_padding(name: str) -> None:
    tokens = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    pooled = POOLINGS[name](tokens, mask).numpy()
    for row, length in enumerate((6, 3, 1)):
        expected = BY_DEFINITION[name](tokens[row, :length].numpy())
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["max", "mean", "mean_sqrt_len_tokens", "lasttoken"])
def test_pooling_ignores_left_padding(name: str) -> None:
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    pooled = POOLINGS[name](tokens, mask).numpy()
    for row, start in enumerate((2, 5)):
        expected = BY_DEFINITION[name](tokens[row, start:].numpy())
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-5, atol=1e-6)


def test_weighted_mean_weighs_by_place_in_the_row() -> None:
    tokens, mask = torch.tensor([[[9.0], [1.0], [4.0]]]), torch.tensor([[0, 1, 1]])
    assert POOLINGS["weightedmean"](tokens, mask).item() == pytest.approx((2 * 1 + 3 * 4) / 5)


def head_output(root: Path) -> tuple[Array, Array]:
    head = sentence_head(root, read_modules(root / "modules.json"))
    tokens = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    out = head.outputs(SimpleNamespace(last_hidden_state=tokens), {"attention_mask": mask})
    return tokens.numpy(), out["sentence_embedding"].detach().numpy()


def test_dense_and_normalize(tiny_sentence_model: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(tiny_sentence_model / "2_Dense" / "model.safetensors")
    tokens, got = head_output(tiny_sentence_model)
    mean = np.stack([tokens[0].mean(0), tokens[1, :2].mean(0)])
    dense = np.tanh(mean @ weights["linear.weight"].T + weights["linear.bias"])
    expected = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def directory(root: Path, modules: list[tuple[str, str]], **configs: Any) -> Path:
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in modules]
    (root / "modules.json").write_text(json.dumps(entries))
    for _, path in modules[1:]:
        (root / path).mkdir()
        (root / path / "config.json").write_text(json.dumps(configs.get(path, {})))
    return root


def test_several_poolings_are_joined_in_sentence_transformers_order(tmp_path: Path) -> None:
    flags = {
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": True,
        "pooling_mode_max_tokens": False,
    }
    tokens, got = head_output(directory(tmp_path, [("Transformer", ""), ("Pooling", "p")], p=flags))
    np.testing.assert_allclose(got[0], np.concatenate([tokens[0, 0], tokens[0].mean(0)]), rtol=1e-5)


def test_the_newer_form_of_the_config(tmp_path: Path) -> None:
    root = directory(tmp_path, [("Transformer", ""), ("Pooling", "p")], p={"pooling_mode": "lasttoken"})
    tokens, got = head_output(root)
    np.testing.assert_array_equal(got, np.stack([tokens[0, 3], tokens[1, 1]]))


@pytest.mark.parametrize(
    ("modules", "configs", "message"),
    [
        ([("Transformer", ""), ("Normalize", "n")], {}, "expected Transformer, Pooling"),
        ([("Transformer", ""), ("Pooling", "p")], {"p": {"pooling_mode": "attention"}}, "pooling attention"),
        ([("Transformer", ""), ("Pooling", "p")], {"p": {}}, "not named"),
        (
            [("Transformer", ""), ("Pooling", "p"), ("CNN", "c")],
            {"p": {"pooling_mode": "mean"}},
            "cannot export sentence-transformers' module CNN",
        ),
        (
            [("Transformer", ""), ("Pooling", "p"), ("Dense", "d")],
            {"p": {"pooling_mode": "mean"}, "d": {"activation_function": "os.system"}},
            "activation function os.system",
        ),
        (
            [("Transformer", ""), ("Pooling", "p"), ("Dense", "d")],
            {"p": {"pooling_mode": "mean"}, "d": {"in_features": 32, "out_features": 4}},
            "no model.safetensors",
        ),
    ],
)
def test_what_is_not_known_is_refused(
    modules: list[tuple[str, str]], configs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        head_output(directory(tmp_path, modules, **configs))


def test_pickled_dense_weights_need_consent(tmp_path: Path) -> None:
    modules = [("Transformer", ""), ("Pooling", "p"), ("Dense", "d")]
    configs = {"p": {"pooling_mode": "mean"}, "d": {"in_features": 32, "out_features": 4, "bias": False}}
    root = directory(tmp_path, modules, **configs)
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"linear.weight": weight}, root / "d" / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match="--allow-pickle"):
        head_output(root)
    head = sentence_head(root, read_modules(root / "modules.json"), allow_pickle=True)
    tokens = torch.ones(1, 1, 32)
    out = head.outputs(SimpleNamespace(last_hidden_state=tokens), {"attention_mask": torch.ones(1, 1)})
    torch.testing.assert_close(out["sentence_embedding"], torch.tanh(weight.sum(1))[None])


@pytest.mark.parametrize("stem", ["Bart", "T5"])
def test_an_encoder_decoder_classifies_at_the_last_end_token(stem: str) -> None:
    import transformers

    config = getattr(transformers, f"{stem}Config")(**BY_NAME[f"{stem.lower()}-seq2seq"].settings)
    model = getattr(transformers, f"{stem}ForSequenceClassification")(config).eval()
    end, pad = config.eos_token_id, config.pad_token_id
    rows = torch.tensor([[5, end, 7, 8, end], [9, end, end, pad, pad], [pad, pad, end, 7, end]])
    inputs = {"input_ids": rows, "attention_mask": (rows != pad).long()}
    with torch.no_grad():
        expected, found = model(**inputs).logits, LastEnd()(model, inputs)["logits"]
        torch.testing.assert_close(found, expected)
        other = {name: torch.cat([value, value[:1]]) for name, value in inputs.items()}
        other["input_ids"][0, 1] = 6  # one end token, where the others have two
        mixed = LastEnd()(model, other)["logits"]
        alone = LastEnd()(model, {name: value[:1] for name, value in other.items()})["logits"]
        torch.testing.assert_close(mixed[:1], alone)
        torch.testing.assert_close(mixed[1:3], expected[1:])
