"""Finding a checkpoint: local directories and Hub ids, each failure under its own exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from onnxkit.errors import EnvironmentProblem, InputError, OnnxkitError, UnsafeError, UsageError
from onnxkit.export.checkpoint import Access, open_checkpoint, quiet_hub
from onnxkit.export.plan import choose_task

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("source", ["no/such/directory", "./missing", "/nowhere", "~/nowhere", "a b", "../x"])
def test_neither_a_directory_nor_an_id(source: str) -> None:
    with pytest.raises(InputError, match="no directory"):
        open_checkpoint(source, Access())


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="not GGUF"):
        open_checkpoint(str(tmp_path / "model.safetensors"), Access())


def test_attention_in_blocks_is_full_attention_from_the_start(tmp_path: Path) -> None:
    """PyTorch would turn to it at the first short text, and stay there."""
    import transformers

    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    config = transformers.BigBirdConfig(**size, vocab_size=32, max_position_embeddings=64, block_size=4)
    transformers.BigBirdModel(config).save_pretrained(tmp_path)
    found = open_checkpoint(str(tmp_path), Access())
    assert found.sparse
    assert found.config().attention_type == "original_full"
    model = transformers.AutoModel.from_pretrained(found.weights_path, **found.model_arguments())
    assert model.attention_type == "original_full"


def test_a_local_directory(tiny: Tiny) -> None:
    found = open_checkpoint(str(tiny("bert")), Access())
    assert (found.commit, found.settings["model_type"]) == (None, "bert")
    assert found.digest().startswith("sha256:")
    assert found.config().num_hidden_layers == 3


def test_only_the_weights_that_transformers_reads(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "x")
    shutil.copy(tiny("bert-mlm") / "model.safetensors", tmp_path / "x" / "model.fp16.safetensors")
    found = open_checkpoint(str(tmp_path / "x"), Access())
    assert [file.name for file in found.weight_files] == ["model.safetensors"]


def test_a_subfolder_stays_inside(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "inner")
    assert open_checkpoint(str(tmp_path), Access(subfolder="inner")).path == tmp_path / "inner"
    with pytest.raises(UnsafeError):
        open_checkpoint(str(tmp_path / "inner"), Access(subfolder="../../etc"))


def test_an_old_sentence_transformers_directory(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "0_BERT")
    modules = [{"path": "0_BERT", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    found = open_checkpoint(str(tmp_path), Access())
    assert (found.path, found.weights_path) == (tmp_path, tmp_path / "0_BERT")


def hub_error(kind: type[Exception]) -> Exception:
    """The client's error without the response that its constructor asks for."""
    error = kind.__new__(kind)
    error.args = ("what the Hub says",)
    return error


FAILURES: list[tuple[Exception, type[OnnxkitError], str]] = [
    (hub_error(errors.RepositoryNotFoundError), InputError, "neither a directory nor a Hub repository"),
    (hub_error(errors.GatedRepoError), InputError, "gated"),
    (hub_error(errors.RevisionNotFoundError), InputError, "no revision v9"),
    (hub_error(errors.HfHubHTTPError), EnvironmentProblem, "the Hub does not give"),
    (errors.LocalEntryNotFoundError("x"), EnvironmentProblem, "nor can the Hub be reached"),
    (errors.OfflineModeIsEnabled("x"), EnvironmentProblem, "nor can the Hub be reached"),
    (OSError("no space"), EnvironmentProblem, "no space"),
]


@pytest.mark.parametrize(
    ("raised", "expected", "message"), FAILURES, ids=lambda x: getattr(x, "__name__", None)
)
def test_what_the_hub_answers(
    raised: Exception, expected: type[OnnxkitError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(expected, match=message):
        open_checkpoint("organisation/name", Access(revision="v9"))


def test_a_directory_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory: --revision does not apply"):
        open_checkpoint(str(tmp_path), Access(revision="main"))


def test_a_hub_snapshot(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    snapshot = tmp_path / "0123abc"
    shutil.copytree(tiny("bert"), snapshot)

    def download(source: str, **options: Any) -> str:
        asked.update(options, source=source, offline=constants.HF_HUB_OFFLINE)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = open_checkpoint("organisation/name", Access(token="secret", offline=True))
    assert found.commit == found.digest() == "0123abc"
    assert asked["local_files_only"] is asked["offline"] is True
    assert "model.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in asked["allow_patterns"])
    assert "secret" not in repr(found)


def test_quiet_hub_undoes_what_it_sets() -> None:
    before = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    with quiet_hub(offline=True):
        assert constants.HF_HUB_OFFLINE
        assert constants.HF_HUB_DISABLE_TELEMETRY
    after = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    assert after == before


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "feature-extraction"),
        ("bert-classifier", "text-classification"),
        ("bert-tagger", "token-classification"),
        ("bert-reader", "question-answering"),
        ("bert-mlm", "fill-mask"),
        ("vit", "image-feature-extraction"),
        ("vit-classifier", "image-classification"),
    ],
)
def test_auto_asks_the_checkpoint(name: str, task: str, tiny: Tiny) -> None:
    assert choose_task(open_checkpoint(str(tiny(name)), Access()), "auto") == task


def test_auto_sees_sentence_transformers(tiny_sentence_model: Path) -> None:
    assert choose_task(open_checkpoint(str(tiny_sentence_model), Access()), "auto") == "sentence-similarity"


def test_auto_may_not_know(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="say with --task"):
        choose_task(open_checkpoint(str(tmp_path / "x"), Access()), "auto")
