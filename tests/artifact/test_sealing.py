from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxkit.artifact import Invocation, Manifest, ModelDir, Verification, copy_companions, publish, seal
from onnxkit.errors import InputError, UsageError

_VERIFIED = Verification(
    passed=True,
    against="its input",
    tolerance=1e-4,
    worst=1e-6,
    output="last_hidden_state",
    cases=("batch 1",),
)


def _optimize(source: Path, out: Path, invocation: Invocation | None = None) -> Manifest:
    model = ModelDir.open(source)
    with publish(out, overwrite=True) as staging:
        copy_companions(model, staging)
        (staging / "model.onnx").write_bytes(model.model_file.read_bytes())
        return seal(
            staging,
            task=model.task,
            components={"model": "model.onnx"},
            invocation=invocation or Invocation(stage="optimize"),
            parent=model,
            verified=_VERIFIED,
            measured={"nodes": 3, "report": _VERIFIED, "path": Path("x")},
        )


def test_history_grows_and_records_the_input(ours: Path, tmp_path: Path) -> None:
    before = ModelDir.open(ours)
    written = _optimize(ours, tmp_path / "b")
    model = ModelDir.open(tmp_path / "b")
    assert model.manifest == written and model.manifest is not None
    assert [entry.stage for entry in model.manifest.history] == ["export", "optimize"]
    last = model.manifest.history[1]
    assert last.input_digest == before.digest()
    assert last.measured["report"]["tolerance"] == 1e-4 and last.measured["path"] == "x"
    assert last.versions["onnxkit"] and last.versions["onnx"]
    assert model.manifest.verified == _VERIFIED
    assert set(model.manifest.files) == {"model.onnx", "config.json", "tokenizer.json"}


def test_a_foreign_parent_starts_the_history(ours: Path, tmp_path: Path) -> None:
    (ours / "onnxkit.json").unlink()
    manifest = _optimize(ours, tmp_path / "b")
    assert [entry.stage for entry in manifest.history] == ["optimize"]
    assert manifest.history[0].input_digest == ModelDir.open(ours).digest()


def test_same_input_same_bytes(ours: Path, tmp_path: Path) -> None:
    for name in ("b", "c"):
        _optimize(ours, tmp_path / name)
    assert (tmp_path / "b/onnxkit.json").read_bytes() == (tmp_path / "c/onnxkit.json").read_bytes()
    assert '"created": "2023-11-14T22:13:20Z"' in (tmp_path / "b/onnxkit.json").read_text()


def test_a_parent_that_was_changed_is_refused(ours: Path, tmp_path: Path) -> None:
    (ours / "config.json").write_text('{"architectures": ["BertMode1"]}')
    with pytest.raises(InputError, match="differs"):
        _optimize(ours, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_options_keep_their_source_and_no_credential_is_written(ours: Path, tmp_path: Path) -> None:
    invocation = Invocation(
        stage="export",
        argv=("onnxkit", "export", "m", "--token", "hf_secret", "--token=hf_secret", "--seed", "1"),
        options={"token": "hf_secret", "seed": 1, "out": Path("b"), "include": ("a", "b")},
        sources={"seed": "command line"},
    )
    _optimize(ours, tmp_path / "b", invocation)
    text = (tmp_path / "b" / "onnxkit.json").read_text()
    assert "hf_secret" not in text
    entry = json.loads(text)["history"][1]
    assert entry["options"]["seed"] == {"value": 1, "source": "command line"}
    assert entry["options"]["include"] == {"value": ["a", "b"], "source": "default"}
    assert entry["argv"][-2:] == ["--seed", "1"]


def test_a_bad_epoch_and_a_missing_component(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        _optimize(ours, tmp_path / "b")
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    with pytest.raises(InputError, match=r"model\.onnx"), publish(tmp_path / "c", overwrite=False) as staging:
        seal(
            staging,
            task="raw",
            components={"model": "model.onnx"},
            invocation=Invocation(stage="x"),
            parent=None,
            verified=None,
            measured={},
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours"]


@pytest.mark.parametrize(
    ("stages", "cuda"),
    [
        ([("optimize", {"ep": "cpu"})], False),
        ([("optimize", {"ep": "cuda"})], True),
        ([("optimize", {"ep": "CUDAExecutionProvider"}), ("quantize", {"target": None})], True),
        ([("optimize", {"ep": "cuda"}), ("quantize", {"target": "avx2"})], False),
        ([("optimize", {"ep": "cpu"}), ("quantize", {"target": "cuda"})], True),
    ],
)
def test_genai_opens_the_graph_with_the_provider_that_it_was_written_for(
    stages: list[tuple[str, dict[str, str | None]]], cuda: bool, ours: Path, tmp_path: Path
) -> None:
    source = ModelDir.open(ours)
    for number, (stage, options) in enumerate(stages):
        with publish(tmp_path / str(number), overwrite=False) as staging:
            copy_companions(source, staging)
            (staging / "model.onnx").write_bytes(source.model_file.read_bytes())
            if not number:
                (staging / "genai_config.json").write_text('{"model": {"decoder": {}}, "search": {}}')
            seal(
                staging, task=source.task, components={"model": "model.onnx"}, parent=source, measured={},
                invocation=Invocation(stage=stage, options=options), verified=None,
            )  # fmt: skip
        source = ModelDir.open(tmp_path / str(number))
    written = json.loads((source.path / "genai_config.json").read_text())
    assert bool(written["model"]["decoder"]["session_options"].get("provider_options")) == cuda
