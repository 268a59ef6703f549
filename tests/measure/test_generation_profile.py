"""Profiling of models that generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.artifact import ModelDir
from onnxkit.errors import UsageError
from onnxkit.measure import ProfileOptions, profile_model
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.generation_profile import Workload, bandwidth_share, workloads
from onnxkit.measure.memory_speed import read_bandwidth, weights_read
from onnxkit.measure.profile_report import GenerationFacts
from onnxkit.progress import Progress
from tests.generate.decoder_graphs import decoder, encoder, save

QUICK: dict[str, Any] = {"runs": 3, "warmup": 1, "threads": (1,)}


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    return save(tmp_path / "growing", model=decoder())


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return save(tmp_path / "shared", model=decoder(shared=True))


def _limit(folder: Path, limit: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": limit}))


def test_prompts_and_steps_side_by_side(growing: Path, shared: Path) -> None:
    options = ProfileOptions(prefill=(9, 4), depth=(5,), batch=(1, 2), **QUICK)
    report = profile_model([growing, shared], options, progress=Progress())
    first, second = report.models
    shapes = [("prefill", 1, 4), ("prefill", 1, 9), ("prefill", 2, 4), ("prefill", 2, 9)]
    shapes += [("decode", 1, 5), ("decode", 2, 5)]
    for model in (first, second):
        assert [(row.phase, row.batch, row.sequence) for row in model.measurements] == shapes
        assert [row.tokens for row in model.measurements] == [4, 9, 8, 18, 1, 2]
        assert all((row.bandwidth_share is None) == (row.phase == "prefill") for row in model.measurements)
        assert all(row.latency.runs == 3 and row.tokens_per_s for row in model.measurements)
    assert all(row.ratio is None for row in first.measurements)
    assert all(row.ratio is not None for row in second.measurements)
    assert first.generation is not None and second.generation is not None
    assert (first.generation.shared_cache, second.generation.shared_cache) == (False, True)
    assert first.generation.cache_bytes_per_token == second.generation.cache_bytes_per_token > 0


def test_operators_are_those_of_the_deepest_step(shared: Path) -> None:
    options = ProfileOptions(prefill=(4,), depth=(3, 6), **QUICK)
    (model,) = profile_model([shared], options, progress=Progress()).models
    with_tables = [row for row in model.measurements if row.operators]
    assert [(row.phase, row.sequence) for row in with_tables] == [("decode", 6)]
    assert "GroupQueryAttention" in {row.op for row in with_tables[0].operators}


def test_an_encoder_counts_as_part_of_the_first_token(tmp_path: Path) -> None:
    folder = save(tmp_path / "both", encoder_model=encoder(), decoder_model=decoder(cross=True))
    options = ProfileOptions(prefill=(4,), depth=(3,), operators=False, **QUICK)
    (model,) = profile_model([folder], options, progress=Progress()).models
    assert [(row.phase, row.tokens) for row in model.measurements] == [("prefill", 4), ("decode", 1)]


def test_prompts_of_an_encoder_go_by_its_own_positions(tmp_path: Path) -> None:
    """RoBERTa's count from the padding id + 1: a table of 66 holds 64 tokens."""
    folder = save(tmp_path / "both", encoder_model=encoder(), decoder_model=decoder(cross=True))
    table = {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}
    config = {"model_type": "encoder-decoder", "encoder": table, "decoder": {**table, "n_positions": 9}}
    (folder / "config.json").write_text(json.dumps(config))
    found = workloads(ModelDir.open(folder), ProfileOptions())
    assert [(each.phase, each.tokens) for each in found] == [("prefill", 64), ("decode", 32)]
    with pytest.raises(UsageError, match="--prefill 65: 1 to 64"):
        workloads(ModelDir.open(folder), ProfileOptions(prefill=(65,)))


def test_lengths_that_the_context_cannot_hold_are_refused(growing: Path) -> None:
    _limit(growing, 64)
    model = ModelDir.open(growing)
    assert [each.tokens for each in workloads(model, ProfileOptions()) if each.phase == "prefill"] == [64]
    assert [each.tokens for each in workloads(model, ProfileOptions()) if each.phase == "decode"] == [32]
    with pytest.raises(UsageError, match="--prefill 65: 1 to 64"):
        workloads(model, ProfileOptions(prefill=(65,)))
    with pytest.raises(UsageError, match="--depth 60: 1 to 47"):
        workloads(model, ProfileOptions(depth=(60,)))
    with pytest.raises(UsageError, match="--depth 0"):
        workloads(model, ProfileOptions(depth=(0,)))


@pytest.mark.parametrize("options", [{"sequence": (8,)}, {"padding": "left"}])
def test_options_of_encoders_do_not_apply(growing: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="does not apply"):
        profile_model([growing], ProfileOptions(**options))


@pytest.mark.parametrize("options", [{"prefill": (8,)}, {"depth": (8,)}])
def test_options_of_generation_do_not_apply_to_encoders(text_dir: Path, options: dict[str, Any]) -> None:
    assert not generates(ModelDir.open(text_dir))
    with pytest.raises(UsageError, match="does not apply: the model does not generate"):
        profile_model([text_dir], ProfileOptions(**options))


def test_both_kinds_at_once_are_refused(text_dir: Path, growing: Path) -> None:
    with pytest.raises(UsageError, match="only one of them generates"):
        profile_model([text_dir, growing], ProfileOptions())


def test_a_lookup_reads_rows_only_unless_the_head_shares_the_table() -> None:
    table, head = np.ones((50, 4), np.float32), np.ones((4, 8), np.float32)

    def model(*nodes: onnx.NodeProto, **tensors: np.ndarray[Any, Any]) -> onnx.ModelProto:
        initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        return helper.make_model(helper.make_graph(list(nodes), "g", [], [], initializers))

    lookup = helper.make_node("Gather", ["table", "ids"], ["x"])
    product = helper.make_node("MatMul", ["x", "head"], ["y"])
    tied = helper.make_node("Gemm", ["x", "table"], ["y"], transB=1)
    assert weights_read(model(lookup, product, table=table, head=head)) == head.nbytes
    assert weights_read(model(lookup, tied, table=table)) == table.nbytes


def test_tensors_at_one_place_of_a_file_count_once() -> None:
    def external(name: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[10])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w"), ("offset", "64"), ("length", "10")):
            tensor.external_data.add(key=key, value=value)
        return tensor

    nodes = [helper.make_node("MatMulNBits", ["x", name], [f"{name}y"]) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "g", [], [], [external("a"), external("b")])
    assert weights_read(helper.make_model(graph)) == 10


def test_the_share_counts_weights_and_cache() -> None:
    facts = GenerationFacts(
        context=None, cache_bytes_per_token=10, cache_bytes=None, shared_cache=True, weights_read_bytes=600,
        memory_read_bytes_per_s=1e6,
    )  # fmt: skip
    step = Workload(phase="decode", batch=2, tokens=20)
    assert bandwidth_share(facts, step, 2.0) == pytest.approx((600 + 2 * 20 * 10) / 2000)
    assert bandwidth_share(facts, Workload(phase="prefill", batch=1, tokens=9), 2.0) is None


def test_memory_is_read_at_a_plausible_speed() -> None:
    assert 1e8 < read_bandwidth(1) < 1e12
