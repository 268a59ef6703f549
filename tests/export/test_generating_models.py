"""Models that generate: a graph with a cache, or an encoder and a decoder, checked alone and together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import GateFailed, InputError, UsageError
from onnxkit.export import ExportOptions, ExportReport, checking, export_model, generation
from onnxkit.measure import verify_model
from onnxkit.measure.geometry import Geometry
from onnxkit.runtime import RuntimeOptions, TensorSpec, open_session
from tests.heard import Heard
from tests.tiny_models import BY_NAME, save_tiny

Tiny = Callable[[str], Path]
ONE = RuntimeOptions(threads=1)


def export(source: Path, out: Path, **options: Any) -> ExportReport:
    return export_model(source, out, ExportOptions(**{"exporter": "trace", **options}))


@pytest.fixture(scope="module")
def decoder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("decoder") / "llama"
    return out, export(tiny("llama-lm"), out)


@pytest.fixture(scope="module")
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("pair") / "bart"
    return out, export(tiny("bart-seq2seq"), out)


def test_a_decoder_is_one_graph(decoder: tuple[Path, ExportReport]) -> None:
    _, report = decoder
    (graph,) = report.graphs
    assert (report.task, graph.part, graph.file) == ("text-generation", "model", "model.onnx")
    assert graph.regions["attention"] == 3
    shapes = {spec.name: spec.shape for spec in graph.inputs}
    assert shapes["attention_mask"] == ("batch_size", "total_sequence_length")
    assert shapes["past_key_values.2.value"] == ("batch_size", 2, "past_sequence_length", 8)
    assert [spec.name for spec in graph.outputs][:3] == ["logits", "present.0.key", "present.0.value"]


def test_how_many_logits_is_an_option(decoder: tuple[Path, ExportReport]) -> None:
    out, report = decoder
    assert "num_logits_to_keep" not in {spec.name for spec in report.graphs[0].inputs}
    session = open_session(out / "model.onnx", ONE)
    assert [(spec.name, spec.shape) for spec in session.overridable] == [("num_logits_to_keep", ())]
    assert report.verification is not None
    assert "the last two logits" in report.verification.cases


def test_the_check_of_a_decoder(decoder: tuple[Path, ExportReport]) -> None:
    out, report = decoder
    check = report.verification
    assert check is not None
    assert check.passed
    assert {
        "prefill", "left padding", "decode", "continuation", "chunk of three rows", "chunks of 3, 1, 1 and 3",
    } <= set(check.cases)  # fmt: skip
    assert report.checked == "the checkpoint"
    assert report.generation is not None
    assert (report.generation.tokens, report.generation.rows) == (32, 3)
    kept = {case.name for case in ModelDir.open(out).reference()}
    assert "decode" in kept
    assert "chunk of three rows" not in kept  # what optimize makes of the graph need not take it


def test_an_encoder_decoder_is_two_graphs(pair: tuple[Path, ExportReport]) -> None:
    out, report = pair
    encoder, decoder = report.graphs
    assert (encoder.file, decoder.file) == ("encoder_model.onnx", "decoder_model.onnx")
    assert [spec.name for spec in encoder.inputs] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in encoder.outputs] == [
        "last_hidden_state",
        *(f"present.{layer}.encoder.{half}" for layer in range(2) for half in ("key", "value")),
    ]
    assert [spec.name for spec in decoder.inputs] == [
        "input_ids", "encoder_attention_mask",
        *(f"past_key_values.{layer}.{kind}.{half}" for layer in range(2)
          for kind in ("decoder", "encoder") for half in ("key", "value")),
    ]  # fmt: skip
    assert decoder.regions["attention"] == 4
    assert report.generation is not None
    model = ModelDir.open(out)
    assert (model.task, sorted(model.components)) == ("text2text-generation", ["decoder", "encoder"])
    with pytest.raises(InputError, match="no single graph"):
        _ = model.model_file


def test_weights_that_both_graphs_hold_are_stored_once(pair: tuple[Path, ExportReport]) -> None:
    out, _ = pair
    stored: dict[str, set[str]] = {}
    for file in ("encoder_model.onnx", "decoder_model.onnx"):
        graph = onnx.load(out / file, load_external_data=False).graph
        for tensor in graph.initializer:
            if tuple(tensor.dims) in ((128, 32), (32, 128)):  # the embedding, tied to the projection
                entries = {entry.key: entry.value for entry in tensor.external_data}
                stored.setdefault(entries["location"], set()).add(entries["offset"])
    assert stored.keys() == {"model.onnx.data"}
    assert len(stored["model.onnx.data"]) <= 2  # as embedding, and transposed as a projection at most
    model = ModelDir.open(out)
    assert model.weight_files == ("decoder_model.onnx", "encoder_model.onnx", "model.onnx.data")


def test_verify_repeats_every_graphs_check(pair: tuple[Path, ExportReport]) -> None:
    report = verify_model(pair[0], runtime=ONE)
    assert report.passed
    assert {each.component for each in report.outputs} == {"encoder", "decoder"}


def test_without_its_manifest_it_is_found_by_its_files(
    pair: tuple[Path, ExportReport], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pair[0], copy)
    (copy / "onnxkit.json").unlink()
    model = ModelDir.open(copy)
    assert (model.task, sorted(model.components)) == ("text2text-generation", ["decoder", "encoder"])
    assert "model.onnx.data" in model.weight_files


def test_tokens_other_than_transformers_publish_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = generation.reference_tokens
    monkeypatch.setattr(generation, "reference_tokens", lambda *given: (right(*given) + 1) % 128)
    with pytest.raises(GateFailed, match="greedy generation differs from transformers' at token 1 of row 1"):
        export(tiny("llama-lm"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_first_layers_are_checked_where_memory_is_short(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "can_be_checked", lambda model: False)
    heard = Heard()
    options = ExportOptions(exporter="trace")
    report = export_model(tiny("llama-lm"), tmp_path / "out", options, progress=heard)
    assert report.checked == "the first 2 of its 3 layers"
    assert report.verification is not None
    assert report.verification.against.endswith(report.checked)
    assert report.generation is not None
    assert any("the first 2 of its 3 layers" in text for text in heard.warnings)
    assert len(report.graphs[0].outputs) == 1 + 2 * 3  # what is published has all of them
    assert not (tmp_path / "out" / "reference.npz").exists()


class Scripted:
    """A decoder whose logits are given, and which has no cache."""

    inputs = (TensorSpec(name="input_ids", dtype="int64", shape=(None, None)),)
    overridable = ()

    def __init__(self, logits: list[list[float]]) -> None:
        self.steps = iter(logits)

    def run(self, feeds: Any) -> dict[str, Any]:
        return {"logits": np.array([[next(self.steps)]], np.float32)}


def greedy(logits: list[list[float]], right: list[int], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(generation, "TOKENS", len(right))
    monkeypatch.setattr(generation, "reference_tokens", lambda *given: np.array([right]))
    prompt = generation.Prompt(ids=np.zeros((1, 1), np.int64), mask=None, encoder={})
    sessions: Any = {"model": Scripted(logits)}
    model: Any = SimpleNamespace()
    return generation.check_greedy(sessions, prompt, model, Geometry(), 1e-4)


def test_a_near_tie_is_said_and_the_row_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = greedy([[0, 1, 0], [1, 0, 1.00001], [9, 0, 0]], [1, 0, 2], monkeypatch)
    assert (found.tokens, found.near_ties) == (3, (1,))


def test_a_difference_that_is_no_tie_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateFailed, match="at token 2 of row 1: 2 instead of 0"):
        greedy([[0, 1, 0], [1, 0, 1.1]], [1, 0], monkeypatch)


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("bert", {"task": "text2text-generation"}, InputError, "no bert model for the task text2text"),
        ("t5-seq2seq", {"task": "automatic-speech-recognition"}, InputError, "no t5 model for the task"),
        ("bert", {"layout": "optimum"}, UsageError, "splits encoder-decoders"),
        ("llama-lm", {"layout": "optimum"}, UsageError, "splits encoder-decoders"),
        ("llama-lm", {"layout": "nonsense"}, UsageError, "no layout 'nonsense'"),
    ],
)
def test_what_does_not_apply(
    name: str, options: dict[str, Any], kind: type[Exception], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        export(tiny(name), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_only_the_decoder_needs(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "source"
    shutil.copytree(tiny("bart-seq2seq"), source)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.decoder.layers.1.encoder_attn.q_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights .*decoder\.layers\.1\.encoder_attn\.q_proj\.weight"):
        export(source, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_a_model_with_other_states_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=64, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(InputError, match="other states than keys and values"):
        export(tmp_path / "mamba", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if name.endswith(("-seq2seq", "-speech"))])
def test_every_encoder_decoder(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "source")
    report = export(source, tmp_path / "out", task=BY_NAME[name].task)
    assert report.generation is not None
    assert (report.generation.tokens, report.generation.near_ties) == (32, ())
    assert report.verification is not None
    assert report.verification.worst < 1e-5
    # Whisper's encoder is never padded; T5Gemma's decoder has layers with a window and others.
    masks = {"whisper-speech": 1, "t5gemma-seq2seq": 3}.get(name, 2)
    regions = report.graphs[1].regions
    assert (regions["attention"], regions["mask"]) == (4, masks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5-seq2seq", "marian-seq2seq", "whisper-speech"])
def test_optimums_layout(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "source")
    report = export(source, tmp_path / "out", task=BY_NAME[name].task, layout="optimum")
    assert [graph.part for graph in report.graphs] == ["encoder", "decoder", "decoder_with_past"]
    first = report.graphs[1]
    assert "encoder_hidden_states" in {spec.name for spec in first.inputs}
    assert {"present.0.decoder.key", "present.0.encoder.key"} <= {spec.name for spec in first.outputs}
    assert report.generation is not None
    assert {entry.name for entry in report.files} >= {"model.onnx.data", "decoder_with_past_model.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["llama-lm", "bart-seq2seq", "t5-seq2seq", "whisper-speech"])
def test_half_types_keep_the_cache_in_their_own(name: str, dtype: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "source")
    report = export(source, tmp_path / "out", task=BY_NAME[name].task, dtype=dtype)
    graph = report.graphs[-1]
    kinds = {spec.name.partition(".")[0]: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    cache = {"fp16": "float16", "bf16": "bfloat16"}[dtype]
    assert (kinds["past_key_values"], kinds["present"], kinds["logits"]) == (cache, cache, "float32")
    assert report.verification is not None
    assert report.verification.passed
    assert json.loads((tmp_path / "out" / "onnxkit.json").read_text())["task"] == BY_NAME[name].task


MAKE = """
import sys
import torch, transformers
config = transformers.LlamaConfig(
    hidden_size=1024, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4,
    intermediate_size=4096, vocab_size=32000, tie_word_embeddings=True,
)
with torch.no_grad():
    transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""
EXPORT = """
import sys
from pathlib import Path
from onnxkit.export import ExportOptions, export_model
from onnxkit.machine import peak_memory_bytes
export_model(sys.argv[1], Path(sys.argv[2]), ExportOptions(exporter="trace", verify=False))
print(peak_memory_bytes())
"""


def in_a_process(script: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return done.stdout


@pytest.mark.slow
def test_weights_are_streamed(tmp_path: Path) -> None:
    """Peak memory, the libraries' code included: at most 1.2 times the weights (0.5 GB) + 1.5 GB."""
    in_a_process(MAKE, tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert weights > 450e6
    peak = int(in_a_process(EXPORT, tmp_path / "model", tmp_path / "out").split()[-1])
    assert peak <= 1.2 * weights + 1.5e9
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size >= 0.99 * weights
