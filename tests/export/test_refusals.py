"""What cannot be exported is refused at once, in one line that says what the model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.export import Dim

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.export import ExportOptions, export_model
from onnxkit.export.attention import HookRefused
from onnxkit.export.hooks import run_either_way
from onnxkit.export.probes import scalars
from onnxkit.export.refusals import reason
from tests import tiny_settings as tiny

SMALL = {"vocab_size": 64, "decoder_start_token_id": 2}
LED = {
    **{name: value for name, value in tiny.S2S.items() if name != "max_position_embeddings"},
    "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 8,
}  # fmt: skip
PROPHET = {
    **SMALL, "hidden_size": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_encoder_layers": 1,
    "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
SWITCH = {**tiny.T5_S2S, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
VITS = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
    "flow_size": 16, "spectrogram_bins": 33, "upsample_initial_channel": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model", "settings", "message"),
    [
        ("LED", "LEDForConditionalGeneration", LED, r"LEDEncoder .*data-dependent control flow"),
        ("ProphetNet", "ProphetNetForConditionalGeneration", PROPHET, "one token at a time over its cache"),
        (
            "SwitchTransformers",
            "SwitchTransformersForConditionalGeneration",
            SWITCH,
            "TransformersExperts comp",
        ),
        ("Vits", "VitsModel", VITS, "gives waveform, .*: no last_hidden_state, which feature-extraction is"),
    ],
)
def test_models_that_do_what_no_graph_does(
    config: str, model: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**settings))
    made.save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=message) as refusal:
        export_model(tmp_path / "source", tmp_path / "out", ExportOptions())
    assert "meta" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_annotation_that_is_wrong_refuses_nothing(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(**tiny.TEXT, embedding_size=16)
    transformers.AlbertForQuestionAnswering(config).save_pretrained(tmp_path / "source")
    report = export_model(tmp_path / "source", tmp_path / "out", ExportOptions())
    assert (report.task, report.level) == ("question-answering", "L1")


def test_what_a_model_asserts_of_its_config_is_said(tmp_path: Path) -> None:
    config = transformers.ReformerConfig(
        vocab_size=32, hidden_size=16, num_attention_heads=2, attention_head_size=8, attn_layers=["local"],
        axial_pos_shape=[4, 4], axial_pos_embds_dim=[8, 8], feed_forward_size=16, is_decoder=True,
        max_position_embeddings=16, local_attn_chunk_length=4,
    )  # fmt: skip
    transformers.ReformerModelWithLMHead(config).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=r"cannot be built as .* for fill-mask: .*is_decoder=False"):
        export_model(tmp_path / "source", tmp_path / "out", ExportOptions(task="fill-mask"))


def test_a_package_that_a_model_needs_is_missing(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*given: Any, **named: Any) -> Any:
        raise ImportError("\nBertModel requires the timm library but it was not found\n`pip install timm`")

    source = tiny("bert")
    monkeypatch.setattr(transformers.BertModel, "__init__", build)
    with pytest.raises(EnvironmentProblem, match="requires the timm library"):
        export_model(source, tmp_path / "out", ExportOptions())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "newmodel9"}, r"transformers \S+ does not know the model type newmodel9; a newer"),
        ({"model_type": 5}, "does not know the model type 5"),
        ({"model_type": ["bert"]}, "does not know the model type"),
        ({"model_type": None}, r"config\.json has no model_type"),
        ({"architectures": None}, "names no architectures .*--task .*: feature-extraction"),
        ({"architectures": "BertModel"}, "names no architectures"),
        ({"architectures": ["BertForFortunes"]}, "is a BertForFortunes: say with --task"),
    ],
)
def test_checkpoints_that_do_not_say_what_they_are(
    settings: dict[str, Any], message: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = {**json.loads((tiny("bert") / "config.json").read_text()), **settings}
    content = json.dumps({name: value for name, value in config.items() if value is not None})
    (source / "config.json").write_text(content, encoding="utf-8")
    shutil.copy(tiny("bert") / "model.safetensors", source)
    with pytest.raises(InputError, match=message):
        export_model(source, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


class Chooser(torch.nn.Module):
    """Asks for a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


class Blocks(torch.nn.Module):
    """Takes multiples of 4 only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 4, -1)


def traced(module: torch.nn.Module) -> BaseException:
    with pytest.raises(Exception) as failure:
        torch.export.export(
            torch.nn.Sequential(module), (torch.ones(2, 8),), dynamic_shapes=({1: Dim.DYNAMIC},), strict=False
        )
    return failure.value


def test_what_a_trace_stumbles_over_is_said_of_the_model() -> None:
    assert reason(traced(Chooser())) == (
        "Chooser computes one thing or another by the values it meets (data-dependent control flow)"
    )
    with pytest.raises(RuntimeError) as failure:
        Chooser()(torch.ones(2, 8, device="meta"))
    assert reason(failure.value).startswith("Chooser computes one thing or another")
    with pytest.raises(Exception) as failure:
        torch.export.export(Blocks(), (torch.ones(2, 8),), dynamic_shapes=({1: Dim("length")},), strict=False)
    assert "the length of its input" in reason(failure.value)


def test_other_reasons_are_the_innermost_errors_first_line() -> None:
    inner = ValueError("needs a heart\nand more")
    outer = RuntimeError("in the middle")
    outer.__cause__ = inner
    assert reason(outer) == "ValueError: needs a heart"
    assert reason(HookRefused("a mask of its own")) == "a mask of its own"
    assert reason(KeyError()) == "KeyError"
    failed = (
        "FAIL : Non-zero status code returned while running Add node. Name:'layer.0/Add_2' Status Message: "
    )
    ort = RuntimeError(f"[ONNXRuntimeError] : 1 : {failed}/onnxruntime_src/x.h:563")
    assert reason(ort) == "ONNX Runtime fails to run the Add layer.0/Add_2: no reason given"
    short = RuntimeError(f"{failed}bad_alloc: Failed to allocate memory")
    assert reason(short).endswith("Add_2: bad_alloc: Failed to allocate memory")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("Constraints violated (batch_size)! For more", "batches of one size only"),
        ("Constraints violated (sequence_length)! For more", "the length of its input"),
        ("Pending unbacked symbols {u0} not in returned outputs", "by the values it meets"),
    ],
)
def test_what_torch_cannot_trace_is_said_of_the_model(said: str, what: str) -> None:
    assert what in reason(RuntimeError(said))


def test_the_first_failure_keeps_its_cause() -> None:
    def run() -> None:
        raise RuntimeError("outer") from ValueError("the true reason")

    model = transformers.BertModel(transformers.BertConfig(**tiny.TEXT))
    with pytest.raises(RuntimeError) as caught:
        run_either_way(model, run)
    assert reason(caught.value) == "ValueError: the true reason"


@pytest.mark.parametrize("name", ["tensor", "as_tensor"])
def test_numbers_become_tensors_that_a_trace_knows(name: str) -> None:
    hooked = {attribute: replacement for _, attribute, replacement in scalars()}[name]
    assert hooked(3, device="meta").dtype == torch.int64
    assert hooked(0.5, device="meta", dtype=torch.float16).dtype == torch.float16
    assert hooked([1, 2]).tolist() == [1, 2]
