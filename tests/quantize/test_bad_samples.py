"""A sample that ONNX Runtime refuses while it runs is named: its file and line, and how to mend it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError
from onnxkit.generate import Engine
from onnxkit.inputs import read_samples
from onnxkit.measure.agreement import run_case
from onnxkit.measure.divergence import Reference, windows
from onnxkit.predictor import Predictor
from onnxkit.progress import Progress
from onnxkit.quantize import QuantizeOptions, analyze_model, half, quantize_model, stage
from onnxkit.quantize.calibration.data import read_data
from onnxkit.quantize.calibration.statistics import gather
from onnxkit.runtime import open_session
from tests.generating_models import language_model, translator
from tests.quantize.graphs import ONE
from tests.quantize.test_quantize_model import text_classifier

BAD = 5
"""The line that holds the word of which the model has no embedding."""


def strange(folder: Path) -> Path:
    """Let the tokenizer know a word that the model's table has no row for."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["zzz"])
    tokenizer.save(str(path))
    return folder


def texts(path: Path, *, bad: str = "zzz") -> Path:
    """Twelve texts; what is on line `BAD` does not run."""
    lines = ["good film", "bad day", "the cat sat", "a good cat", bad, *["film cat day"] * 7]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def options(scheme: str, **given) -> QuantizeOptions:
    return QuantizeOptions(scheme=scheme, include=(".",), threads=1, **given)


@pytest.mark.parametrize(
    ("scheme", "use"),
    [
        ("int8-static", {"calibration", "eval"}),
        ("int8-dynamic", {"calibration", "eval"}),
        ("int8-dynamic", {"eval"}),
        ("int8-dynamic", {"eval", "limit"}),
        ("log8", {"calibration"}),
        ("fp16", {"eval"}),
    ],
)
def test_a_text_that_does_not_run_is_named(tmp_path, scheme, use):
    source = strange(text_classifier(tmp_path / "in"))
    bad, good = texts(tmp_path / "bad.txt"), texts(tmp_path / "good.txt", bad="fine")
    given = {
        "calibration": bad if "calibration" in use else None,
        "eval": good if "calibration" in use and "eval" in use else bad if "eval" in use else None,
        "min_cosine": 0.5 if "limit" in use else None,
    }
    include = () if scheme == "fp16" else (".",)
    wanted = QuantizeOptions(scheme=scheme, include=include, threads=1, **given)
    with pytest.raises(InputError, match=rf"^\S*bad\.txt:{BAD}: .*; mend this sample or leave it out$"):
        quantize_model(source, tmp_path / "out", wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "good.txt", "in"]


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_half_precision_blames_a_sample_with_the_model_that_was_given(tmp_path, scheme, monkeypatch):
    opened = []

    def opening(model, *rest, **given):
        opened.append(model)
        return open_session(model, *rest, **given)

    for module in (half, stage):
        monkeypatch.setattr(module, "open_session", opening)
    source = strange(text_classifier(tmp_path / "in"))
    wanted = QuantizeOptions(scheme=scheme, threads=1, eval=texts(tmp_path / "bad.txt"))
    with pytest.raises(
        InputError, match=rf"bad\.txt:{BAD}: {source}/model\.onnx: Gather node .*leave it out$"
    ):
        quantize_model(source, tmp_path / "out", wanted)
    assert opened == [source / "model.onnx"]


def test_an_analysis_names_it(tmp_path):
    source = strange(text_classifier(tmp_path / "in"))
    with pytest.raises(InputError, match=rf"bad\.txt:{BAD}: .*leave it out$"):
        analyze_model(source, tmp_path / "out", options("int8-dynamic", eval=texts(tmp_path / "bad.txt")))


def test_the_predictor_names_the_row_of_a_batch(tmp_path):
    predictor = Predictor(strange(text_classifier(tmp_path / "in")), runtime=ONE)
    with pytest.raises(InputError, match=r"^sample 2: .*leave it out$"):
        predictor(["good film", "bad day", "zzz", "a cat sat"])


@pytest.mark.parametrize("make", [language_model, translator])
@pytest.mark.parametrize("given", [{"batch_size": 8}, {"batch_size": 2}, {"speculate": "ngram"}])
def test_a_generator_names_the_prompt(tmp_path, make, given):
    predictor = Predictor(strange(make(tmp_path / "in")), runtime=ONE, max_new_tokens=2, **given)
    stream = predictor.stream(read_samples(texts(tmp_path / "bad.txt")))
    with pytest.raises(InputError, match=rf"^\S*bad\.txt:{BAD}: .*; mend this sample or leave it out$"):
        list(stream)


@pytest.mark.parametrize("make", [language_model, translator])
def test_a_score_names_the_text(tmp_path, make):
    predictor = Predictor(strange(make(tmp_path / "in")), runtime=ONE)
    samples = [{"text": line, "target": "a good film"} for line in ("good film", "a zzz")]
    with pytest.raises(InputError, match=r"^sample 1: .*leave it out$"):
        list(predictor.score(samples))


@pytest.mark.parametrize("make", [language_model, translator])
def test_models_that_generate_name_it(tmp_path, make):
    source = strange(make(tmp_path / "in"))
    bad, good = texts(tmp_path / "bad.txt"), texts(tmp_path / "good.txt", bad="fine")
    for given in ({"calibration": bad, "eval": good}, {"eval": bad}):
        scheme = "int4-weight" if make is language_model or "calibration" in given else "int8-weight"
        with pytest.raises(InputError, match=rf"bad\.txt:{BAD}: .*leave it out$"):
            quantize_model(source, tmp_path / "out", options(scheme, **given))


def test_a_row_of_tensors_is_named(tmp_path):
    source = text_classifier(tmp_path / "in")
    ids = np.ones((6, 4), np.int64)
    ids[BAD - 1, 2] = 9999
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    for given in ({"calibration": tmp_path / "c.npz"}, {"eval": tmp_path / "c.npz"}):
        with pytest.raises(InputError, match=rf"c\.npz, row {BAD}: .*leave it out$"):
            quantize_model(source, tmp_path / "out", options("int8-dynamic", **given))


def test_what_fails_only_together_is_blamed_on_the_case(tmp_path):
    """A batch whose rows each run alone."""
    model = ModelDir.open(text_classifier(tmp_path / "in"))
    data = read_data(texts(tmp_path / "good.txt", bad="fine"), model, most=9, columns={}, seed=0, task=None)
    batch, *_ = data.feeds(8, Progress())
    assert len(batch.places) == 8
    assert all(place.rpartition(":")[0] == str(tmp_path / "good.txt") for place in batch.places)
    session = open_session(model.model_file, ONE)
    batch["attention_mask"] = batch["attention_mask"][:3]
    with pytest.raises(InputError, match=r"^batch 7: .*/model\.onnx: Mul node 'mask' failed"):
        run_case(session, "batch 7", batch)


@pytest.mark.parametrize("ids", [[1, 5, 9999], [1, 9999, 5], [1, -77, 5]])
def test_a_divergence_names_the_text(tmp_path, ids):
    engine = Engine.open(ModelDir.open(language_model(tmp_path / "in")), ONE)
    found = windows([np.array(ids)], where="prose.txt:3")
    with pytest.raises(InputError, match=r"^prose\.txt:3: .*leave it out$"):
        Reference(engine, found).compare(engine)
    assert [dataclasses.asdict(window)["where"] for window in found] == ["prose.txt:3"]


def test_a_tensor_of_a_wrong_width_is_named():
    """Where only inputs of the graph are looked at, it is not run, and ONNX Runtime does not say so."""
    run = SimpleNamespace(tokens=lambda _: np.ones((1, 63), np.float32), where="c.npz, row 1")
    with pytest.raises(InputError, match=r"c\.npz, row 1: 'x' has shape \(1, 63\); the model takes 64 wide"):
        gather([run], {"x": 64}, hessians=False)
