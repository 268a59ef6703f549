"""The predictor: order, laziness, errors, pickling, raw tensors, what it imports."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import read_samples
from onnxkit.predictor import ahead
from onnxkit.runtime import RuntimeOptions
from tests.model_dirs import LETTERS, VOCABULARY, image_dir, table, text_dir
from tests.patience import comes_true


@pytest.fixture
def folder(tmp_path):
    return text_dir(tmp_path / "model", "text-classification", table(4), pooled=True)


def texts(count, seed=0):
    generator = np.random.default_rng(seed)
    letters = [one for one in LETTERS if not one.startswith("##")]
    return [" ".join(generator.choice(letters, size=generator.integers(0, 28))) for _ in range(count)]


def readers():
    return {thread for thread in threading.enumerate() if thread.name == "onnxkit-samples"}


def test_records_keep_the_order_whatever_the_batches(folder):
    samples = texts(300)
    one_by_one = Predictor(folder, batch_size=1)
    expected = [one_by_one([text])[0] for text in samples]
    for batch_size in (1, 7, 64):
        records = Predictor(folder, batch_size=batch_size)(samples)
        assert [record["index"] for record in records] == list(range(300))
        assert [record["label"] for record in records] == [record["label"] for record in expected]
        np.testing.assert_allclose(
            [record["score"] for record in records], [record["score"] for record in expected], rtol=1e-5
        )


def test_a_stream_reads_only_what_it_needs(folder):
    before = readers()
    predictor = Predictor(folder, batch_size=4)
    read = []

    def endless():
        for text in iter(lambda: "good film", None):
            read.append(text)
            yield text

    stream = predictor.stream(endless())
    assert [next(stream)["index"] for _ in range(10)] == list(range(10))
    stream.close()
    assert comes_true(lambda: readers() <= before)
    assert len(read) <= 4 + 8 + 16 + 32


def test_no_thread_is_left_behind(folder):
    before = readers()
    predictor = Predictor(folder)
    predictor(texts(20))
    for _ in range(3):
        next(iter(predictor.stream(texts(2000))))
    assert comes_true(lambda: readers() <= before)


def test_errors_of_the_reader_arrive_after_the_records_before_them(folder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 8 + "broken\n")
    stream = Predictor(folder, batch_size=8).stream(read_samples(path))
    assert [next(stream)["index"] for _ in range(8)] == list(range(8))
    with pytest.raises(InputError, match=r"a\.jsonl:9: not JSON"):
        next(stream)


def test_nothing_in_nothing_out(folder):
    assert Predictor(folder)([]) == []


def test_what_the_thread_raises_is_raised_here():
    def failing():
        yield 1
        raise KeyError("x")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(KeyError):
        next(items)


def test_a_pickled_predictor_opens_its_directory_again(folder):
    predictor = Predictor(folder, batch_size=3, top_k=2, runtime=RuntimeOptions(threads=1))
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy(["good", "bad"]) == predictor(["good", "bad"])
    assert (copy.batch_size, copy.session.threads.count) == (3, 1)
    opened = Predictor(ModelDir.open(folder))
    assert pickle.loads(pickle.dumps(opened))(["good"]) == opened(["good"])


@pytest.mark.slow
def test_predictors_cross_to_spawned_processes(folder):
    predictor = Predictor(folder)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(predictor, [["good"], ["bad", "a"]])
    assert results == [predictor(["good"]), predictor(["bad", "a"])]


def test_a_batch_size_below_one(folder):
    with pytest.raises(UsageError, match="batch size"):
        Predictor(folder, batch_size=0)


def feeds_of(length=3):
    ids = np.arange(2 * length, dtype=np.int64).reshape(2, length)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_raw_tensors_in_and_out(folder, tmp_path):
    np.savez(tmp_path / "a.npz", **feeds_of())
    predictor = Predictor(folder, task="raw")
    [record] = predictor(read_samples(tmp_path / "a.npz"))
    assert list(record) == ["index", "outputs"]
    expected = table(4)[feeds_of()["input_ids"]].sum(axis=1)
    np.testing.assert_allclose(record["outputs"]["logits"], expected, atol=1e-5)
    assert len(predictor([feeds_of(), feeds_of(5)])) == 2


def test_raw_keeps_the_models_dtypes(tmp_path):
    folder = image_dir(tmp_path, half=True)
    [record] = Predictor(folder, task="raw")([{"pixel_values": np.zeros((1, 3, 4, 4), np.float16)}])
    assert record["outputs"]["logits"].dtype == np.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, r"sample 0: has no attention_mask; the model's inputs are input_ids"),
        ({"pixels": np.zeros(3)}, r"sample 0: has pixels"),
        ({"input_ids": np.zeros((2, 3), np.int32)}, r"sample 0: input_ids is int32; the model takes int64"),
        ({"input_ids": np.zeros(3, np.int64)}, r"sample 0: .*input_ids"),
        ({"input_ids": np.full((2, 3), len(VOCABULARY))}, r"sample 0: "),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    sample = {name: value for name, value in {**feeds_of(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        Predictor(folder, task="raw")([sample])


_SCRIPT = """
import sys
from onnxkit import Predictor
assert Predictor(sys.argv[1])(["good film"])[0]["index"] == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_text_model_runs_without_heavy_imports(folder):
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "tokenizers" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "onnx_ir",
        "onnxscript",
        "optimum",
        "PIL",
        "scipy",
        "pyarrow",
    }
