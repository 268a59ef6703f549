"""Statistics of layers' inputs against numpy over everything at once; decoders' runs against one go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError
from onnxkit.graph.files import load_model
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet, read_data
from onnxkit.quantize.calibration.runs import DECODE_STEPS, Graph, Run, runs
from onnxkit.quantize.calibration.statistics import BLOCK_TOKENS, collect_statistics, gather
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.rewrite import prepare
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.select import select
from onnxkit.runtime import open_session
from tests.generate import decoder_graphs
from tests.generating_models import language_model, letters, translator
from tests.quantize.graphs import ONE, mlp, random


def run_of(array: np.ndarray, mask: np.ndarray | None = None) -> Run:
    feeds = {} if mask is None else {"attention_mask": mask}
    return Run(sample=1, where="a", feeds=feeds, values={"v": array})


def assert_right(found, x: np.ndarray) -> None:
    x = x.astype(np.float64)
    assert found.count == len(x)
    np.testing.assert_allclose(found.absmax, np.abs(x).max(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=2e-5 * np.abs(x).max())
    np.testing.assert_allclose(found.mean_square, (x**2).mean(0), rtol=1e-4)
    if found.hessian is not None:
        expected = x.T @ x / len(x)
        np.testing.assert_allclose(found.hessian, expected, atol=1e-4 * expected.max())
        np.testing.assert_array_equal(found.hessian, found.hessian.T)
        assert found.hessian.dtype == np.float32


@given(
    st.lists(st.integers(1, 2 * BLOCK_TOKENS), min_size=1, max_size=6),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_statistics_are_those_of_all_tokens_at_once(lengths, width, hessians, seed):
    arrays = [random(1, length, width, seed=seed + n, scale=1 + n) for n, length in enumerate(lengths)]
    found = gather(map(run_of, arrays), {"v": width}, hessians=hessians)["v"]
    assert (found.hessian is not None) == hessians
    assert_right(found, np.concatenate([array[0] for array in arrays]))


def test_padding_is_left_out():
    array, mask = random(2, 5, 3), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = gather([run_of(array, mask)], {"v": 3}, hessians=True)["v"]
    assert_right(found, array[mask > 0])


@pytest.fixture
def graph(tmp_path) -> Graph:
    return Graph(component="model", model=ir.from_proto(mlp()), path=tmp_path / "model.onnx")


def targets_of(graph: Graph):
    return select(graph.model, SCHEMES["int8-dynamic"], QuantizeOptions(include=(".",))).targets


def collected(graph: Graph, feeds, tmp_path, **options):
    data = DataSet(source="f", samples=tuple(feeds), total=len(feeds), task=None, model=None)
    return collect_statistics(
        graph, targets_of(graph), data, scratch=tmp_path / "scratch", runtime=ONE, progress=Progress(),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("budget", [1 << 30, 64 * 64 * 4, 1])
def test_groups_that_fit_the_budget_give_the_same(graph, tmp_path, budget):
    feeds = [{"x": random(1, length, 32, seed=length)} for length in (3, 9, 40)]
    found = collected(graph, feeds, tmp_path, hessians=True, budget_bytes=budget)
    assert list(found) == ["x", "r"]
    x = np.concatenate([one["x"][0] for one in feeds])
    weights = {tensor.name: ir.from_proto(tensor).numpy() for tensor in mlp().graph.initializer}
    assert_right(found["x"], x)
    assert_right(found["r"], np.maximum(x @ weights["up.weight"] + weights["up.bias"], 0))
    assert isinstance(found["x"].hessian, np.memmap) == (budget < 1 << 30)


def test_without_hessians_one_pass_is_enough(graph, tmp_path):
    found = collected(graph, [{"x": random(1, 4, 32)}], tmp_path, hessians=False, budget_bytes=1)
    assert [one.hessian for one in found.values()] == [None, None]


def test_bad_samples_are_named(graph, tmp_path):
    with pytest.raises(InputError, match="calibration set is empty"):
        collected(graph, [], tmp_path, hessians=False)
    bad = {"x": np.full((1, 2, 32), np.nan, np.float32)}
    with pytest.raises(InputError, match="sample 2: this calibration sample makes NaN or infinity in 'x'"):
        collected(graph, [{"x": random(1, 4, 32)}, bad], tmp_path, hessians=True)


def jsonl(folder: Path, *samples: dict) -> Path:
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def graph_of(model: ModelDir, component: str) -> Graph:
    path = model.path / model.components[component].file
    return Graph(component=component, model=prepare(load_model(path), str(path)), path=path)


def made_by(graph: Graph, data: DataSet, values, tmp_path) -> list[Run]:
    found = runs(graph, values, data, scratch=tmp_path / "scratch", runtime=ONE, progress=Progress())
    return [
        Run(sample=r.sample, where=r.where, feeds=r.feeds, values={n: a.copy() for n, a in r.values.items()})
        for r in found
    ]


def read(path: Path | str, model: ModelDir, **options) -> DataSet:
    return read_data(path, model, **{"most": 9, "columns": {}, "seed": 0, "task": None, **options})


def head_input(graph: Graph) -> str:
    """Name of the value that the head reads."""
    return str(next(node for node in graph.model.graph if node.op_type == "Tanh").outputs[0].name)


@pytest.mark.parametrize("shared", [False, True])
def test_a_decoder_sees_prefill_and_steps_as_one_text(tmp_path, shared):
    folder = language_model(tmp_path / "model")
    (folder / "model.onnx").write_bytes(decoder_graphs.decoder(shared=shared))
    model = ModelDir.open(folder)
    graph = graph_of(model, "model")
    text = "a text of many letters"
    made = made_by(graph, read(jsonl(tmp_path, {"text": text}), model), [head_input(graph)], tmp_path)
    ids = letters().encode(text).ids
    assert [len(run.feeds["input_ids"][0]) for run in made] == [len(ids) - DECODE_STEPS, *[1] * DECODE_STEPS]
    assert [run.feeds["attention_mask"].shape[1] for run in made][-1] == len(ids)
    whole = whole_text(tmp_path, graph, ids)
    parts = np.concatenate([run.values[head_input(graph)] for run in made], axis=1)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def whole_text(tmp_path: Path, graph: Graph, ids: list[int]) -> np.ndarray:
    """The head's input for all tokens in one run, from a graph that was exposed by hand."""
    proto = ir.to_proto(graph.model)
    proto.graph.output.append(helper.make_tensor_value_info(head_input(graph), 1, None))
    session = open_session(proto.SerializeToString(), ONE)
    empty = np.zeros((1, 1, 0, decoder_graphs.HEAD), np.float32)
    feeds = {spec.name: empty for spec in session.inputs if spec.name.startswith("past")}
    feeds["input_ids"] = np.array([ids])
    feeds["attention_mask"] = np.ones((1, len(ids)), np.int64)
    feeds["position_ids"] = np.arange(len(ids))[None]
    return session.run(feeds)[head_input(graph)]


def test_an_encoder_decoder_is_run_on_targets_or_on_its_own_answers(tmp_path):
    model = ModelDir.open(translator(tmp_path / "model"))
    graph, encoder = graph_of(model, "decoder"), graph_of(model, "encoder")
    told = read(jsonl(tmp_path, {"text": "one", "target": "eins"}), model)
    made = made_by(graph, told, [head_input(graph)], tmp_path)
    ids = [1, *letters().encode("eins", add_special_tokens=False).ids, 2]
    assert np.concatenate([run.feeds["input_ids"][0] for run in made]).tolist() == ids
    own = made_by(graph, read(jsonl(tmp_path, {"text": "one"}), model), [head_input(graph)], tmp_path)
    generated = np.concatenate([run.feeds["input_ids"][0] for run in own]).tolist()
    states = np.concatenate([run.values[head_input(graph)][0] for run in own])
    best = (states @ decoder_graphs.weights()["H"]).argmax(-1).tolist()
    assert generated[0] == 1
    assert generated[1:] == best[:-1]  # greedy: each token is the best after those before
    (run,) = made_by(encoder, told, ["last_hidden_state"], tmp_path)
    assert run.feeds["input_ids"][0].tolist() == letters().encode("one").ids


def test_raw_tensors_feed_a_decoder_too(tmp_path):
    model = ModelDir.open(language_model(tmp_path / "model"))
    ids = np.array([[5, 6, 7, 8, 9, 10]])
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=np.array([[0, 1, 1, 1, 1, 1]]))
    graph = graph_of(model, "model")
    made = made_by(graph, read(tmp_path / "c.npz", model), [head_input(graph)], tmp_path)
    assert np.concatenate([run.feeds["input_ids"][0] for run in made]).tolist() == ids[0, 1:].tolist()


def test_raw_tensors_of_an_encoder_decoder_name_the_decoders_ids(tmp_path):
    model = ModelDir.open(translator(tmp_path / "model"))
    ids = np.array([[5, 6, 7]])
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    graph = graph_of(model, "decoder")
    np.savez(tmp_path / "c.npz", **tensors)
    with pytest.raises(InputError, match="decoder_input_ids"):
        made_by(graph, read(tmp_path / "c.npz", model), [head_input(graph)], tmp_path)
    np.savez(tmp_path / "c.npz", **tensors, decoder_input_ids=np.array([[0, 9]]))
    made = made_by(graph, read(tmp_path / "c.npz", model), [head_input(graph)], tmp_path)
    assert [run.feeds["input_ids"].tolist() for run in made] == [[[0]], [[9]]]


@pytest.mark.parametrize("make", [language_model, translator])
def test_random_data_feeds_every_graph(tmp_path, make):
    model = ModelDir.open(make(tmp_path / "model"))
    for component in model.components:
        graph = graph_of(model, component)
        value = head_input(graph) if component != "encoder" else "last_hidden_state"
        made = made_by(graph, read("random", model), [value], tmp_path)
        assert {run.sample for run in made} == set(range(1, 10))
