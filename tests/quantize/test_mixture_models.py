"""Mixtures of experts from the checkpoint to codes: exported, optimized for the CPU and put in blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.export import ExportOptions, export_model
from onnxkit.graph.files import load_model
from onnxkit.optimize import OptimizeOptions, optimize_model
from onnxkit.quantize import QuantizeOptions, QuantizeReport, quantize_model
from onnxkit.runtime import RuntimeOptions, open_session
from tests import tiny_models
from tests.expert_graphs import Array

pytestmark = pytest.mark.slow

NAMES = ("mixtral-lm", "qwen3-moe-lm", "gpt-oss-lm", "olmoe-lm", "phimoe-lm", "top-1")
PROMPT = "the cat sat on the mat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """One model in every form."""

    exported: Path
    optimized: Path


@pytest.fixture(scope="module", params=NAMES)
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "top-1":
        mixtral = tiny_models.BY_NAME["mixtral-lm"]
        single = dataclasses.replace(mixtral, settings={**mixtral.settings, "num_experts_per_tok": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(tiny_models.BY_NAME, "top-1", single)
            tiny_models.save_tiny("top-1", root / "checkpoint")
    else:
        tiny_models.save_tiny(request.param, root / "checkpoint")
    made = Stages(exported=root / "exported", optimized=root / "optimized")
    export_model(str(root / "checkpoint"), made.exported, ExportOptions(task="text-generation"))
    report = optimize_model(made.exported, made.optimized, OptimizeOptions(measure=False, threads=1))
    assert report.components[0].lowered["experts"] == 3
    return made


def operators(folder: Path) -> set[str]:
    return {node.op_type for node in load_model(folder / "model.onnx").graph}


def logits(folder: Path) -> Array:
    """Of a batch with left padding, at every token."""
    session = open_session(folder / "model.onnx", RuntimeOptions(threads=1))
    rows, length, pads = 3, 9, 4
    mask = np.ones((rows, length), np.int64)
    mask[1, :pads] = 0
    given: dict[str, Array] = {
        "input_ids": np.random.default_rng(0).integers(5, 100, (rows, length)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
    }
    for spec in session.inputs:
        if spec.name.startswith("past_key_values"):
            _, heads, _, size = spec.shape
            given[spec.name] = np.zeros((rows, int(heads), 0, int(size)), np.float32)
    return session.run(given)["logits"][mask == 1]


def divergence(right: Array, got: Array) -> float:
    """The mean KL divergence of the next token's distribution."""

    def log_softmax(values: Array) -> Array:
        shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    p, q = log_softmax(right), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def tokens(folder: Path) -> str:
    [record] = Predictor(folder, max_new_tokens=12, do_sample=False)([PROMPT])
    return str(record["text"])


def quantize(source: Path, out: Path, scheme: str, **given: object) -> QuantizeReport:
    options = QuantizeOptions(scheme=scheme, measure=False, threads=1, **given)
    return quantize_model(source, out, options)


def test_one_operator_says_what_the_loops_say(stages: Stages) -> None:
    assert "Loop" in operators(stages.exported)
    assert "Loop" not in operators(stages.optimized)
    np.testing.assert_allclose(logits(stages.optimized), logits(stages.exported), rtol=1e-4, atol=1e-5)
    assert tokens(stages.optimized) == tokens(stages.exported)


@pytest.mark.parametrize(("scheme", "most"), [("int8-weight", 1e-5), ("int4-weight", 1e-3)])
def test_in_blocks(stages: Stages, scheme: str, most: float, tmp_path: Path) -> None:
    """The operator of the optimized graph and the loops of the exported one are about as good."""
    right = logits(stages.exported)
    report = quantize(stages.optimized, tmp_path / "fused", scheme)
    quantize(stages.exported, tmp_path / "loops", scheme)
    assert {"QMoE", "MoE", "Loop"} & operators(tmp_path / "fused") == {"QMoE"}
    assert {"QMoE", "MoE", "Loop"} & operators(tmp_path / "loops") == {"Loop"}
    assert sum(layer.op_type == "MoE" for layer in report.quantized) == 3
    for form in ("fused", "loops"):
        assert divergence(right, logits(tmp_path / form)) < most


def test_an_excluded_layer_and_mixed_formats(stages: Stages, tmp_path: Path) -> None:
    report = quantize(
        stages.optimized, tmp_path / "out", "mixed", bits_per_weight=6.5, exclude=(r"layers\.0\..*experts",)
    )
    assert [layer.name for layer in report.kept if layer.op_type == "MoE"]
    assert {"QMoE", "MoE"} <= operators(tmp_path / "out")
    assert divergence(logits(stages.exported), logits(tmp_path / "out")) < 1e-3
