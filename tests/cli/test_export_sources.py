"""Where `export` takes a model from, and what it writes for whom; `profile` of models that generate."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from onnxkit.cli.app import execute
from onnxkit.cli.console import Console
from tests.cli.test_commands import call
from tests.generate.decoder_graphs import decoder, save


def said(*words: str) -> tuple[int, str]:
    err = io.StringIO()
    return execute(list(words), Console(out=io.StringIO(), err=err)), err.getvalue()


def test_a_gguf_file_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    words = ["export", "--gguf", "x.gguf", "out", "--adapter", "lora", "--genai-config"]
    model, out, options = call(monkeypatch, "onnxkit.export.export_model", words).args
    assert (model, out) == ("x.gguf", Path("out"))
    assert (options.adapter, options.genai_config, options.layout) == (Path("lora"), True, "onnxkit")


def test_a_model_is_named_once(tmp_path: Path) -> None:
    code, text = said("export", "model", "out", "--gguf", "x.gguf")
    assert code == 2 and "given twice" in text
    code, text = said("export", "-m", "model", "out", "--gguf", "x.gguf")
    assert code == 2 and "--gguf does not apply" in text
    code, text = said("export", "--gguf", str(tmp_path), "out")
    assert code == 2 and "is a directory" in text


@pytest.mark.parametrize("stage", ["optimize", "quantize"])
def test_later_stages_write_genais_configuration_too(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    made = call(monkeypatch, f"onnxkit.{stage}.{stage}_model", [stage, "a", "b", "--genai-config"])
    assert made.args[2].genai_config is True


def test_prompts_and_depths_reach_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["profile", "a", "b", "--prefill", "8,16", "--depth", "4"]
    made = call(monkeypatch, "onnxkit.measure.profile_model", words)
    options = made.args[1]
    assert (options.prefill, options.depth, options.sequence) == ((8, 16), (4,), None)


def test_the_tables_of_a_model_that_generates(tmp_path: Path) -> None:
    folders = [str(save(tmp_path / name, model=decoder(shared=name == "one"))) for name in ("one", "two")]
    out = io.StringIO()
    words = ["profile", *folders, "--prefill", "4", "--depth", "3", "--runs", "2", "--threads", "1"]
    assert execute(words, Console(out=out, err=io.StringIO())) == 0
    text = out.getvalue()
    for title in (
        "Prompts",
        "Decoding",
        "Memory",
        "Operators of one at 1 x 3",
        "first token ms",
        "bandwidth",
    ):
        assert title in text
    assert "one buffer" in text and "copied each step" in text
    assert "Latency of a run" not in text
