"""Samples for calibration: every kind of file, chosen, cut and split as told; bad ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from PIL import Image
from tokenizers import processors

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.predictor import Predictor
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet, read_data, reservoir, split
from onnxkit.quantize.calibration.raw import single_rows
from onnxkit.quantize.calibration.token_rows import MOST_GENERATED, token_rows
from onnxkit.runtime import TensorSpec
from tests.generating_models import TEMPLATE, language_model, letters, translator
from tests.heard import Heard
from tests.model_dirs import image_dir, table, text_dir
from tests.quantize.graphs import ONE, mlp_dir, proto, random

TEXTS = ["the cat sat", "where is anna ?", "a good film"]


def read(path: Path | str, model: ModelDir, **options) -> DataSet:
    return read_data(path, model, **{"most": 99, "columns": {}, "seed": 0, "task": None, **options})


def fed(data: DataSet) -> list[dict[str, np.ndarray]]:
    return [dict(feeds) for _, feeds in data.numbered_feeds(Progress())]


def rows_of(data: DataSet, progress: Progress | None = None) -> list[list[int]]:
    return [row.ids.tolist() for _, row in token_rows(data, ONE, progress or Progress())]


@pytest.fixture
def bert(tmp_path) -> ModelDir:
    return ModelDir.open(
        text_dir(tmp_path / "bert", "feature-extraction", table(4), outputs=("last_hidden_state",))
    )


@pytest.fixture
def gpt(tmp_path) -> ModelDir:
    return ModelDir.open(language_model(tmp_path / "gpt", template=TEMPLATE))


def write(path: Path, texts=TEXTS, column: str = "text") -> Path:
    """Write texts in the format of the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    elif path.suffix == ".csv":
        path.write_text(column + "\n" + "".join(f'"{text}"\n' for text in texts))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet.write_table(pyarrow.table({column: list(texts)}), path)
    else:
        path.write_text("".join(text + "\n" for text in texts))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt", "parquet"])
def test_every_format_gives_what_run_feeds(bert, tmp_path, suffix, monkeypatch):
    pytest.importorskip("pyarrow.parquet") if suffix == "parquet" else None
    data = read(write(tmp_path / f"c.{suffix}"), bert)
    ran: list[dict[str, np.ndarray]] = []
    predictor = Predictor(bert, runtime=ONE, batch_size=1)
    run = predictor.session.run
    monkeypatch.setattr(
        predictor.session, "run", lambda feeds, outputs: (ran.append(feeds), run(feeds, outputs))[1]
    )
    for text in TEXTS:
        predictor([text])
    made = fed(data)
    assert (data.total, len(made)) == (3, 3)
    for one, other in zip(made, ran, strict=True):
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_column_is_named(bert, tmp_path):
    path = write(tmp_path / "c.csv", column="sentence")
    assert len(fed(read(path, bert, columns={"text": "sentence"}))) == 3
    with pytest.raises(InputError, match=r"no 'text' \(columns: sentence\)"):
        fed(read(path, bert))
    with pytest.raises(InputError, match="no column 'phrase'"):
        read(path, bert, columns={"text": "phrase"})


def test_an_empty_file_is_refused(bert, tmp_path):
    for name in ("c.txt", "c.jsonl", "c.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="holds no samples"):
            read(tmp_path / name, bert)
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no samples"):
        read(tmp_path / "blank.txt", bert)


def test_blank_lines_are_no_samples(bert, tmp_path):
    assert read(write(tmp_path / "c.txt", [*TEXTS, "", "  "]), bert).total == 3


def test_a_length_cuts_texts(bert, gpt, tmp_path):
    path = write(tmp_path / "c.txt", ["the cat sat on the mat in paris"])
    (feeds,) = fed(read(path, bert, max_length=5))
    assert feeds["input_ids"].shape == (1, 5)
    (ids,) = rows_of(read(path, gpt, max_length=6))
    assert ids == letters().encode("the cat sat on").ids[:6]


def test_prose_is_cut_at_the_context_and_that_is_said(gpt, tmp_path):
    heard = Heard()
    lengths = [len(ids) for ids in rows_of(read(write(tmp_path / "c.txt", ["ab" * 300, "b"]), gpt), heard)]
    assert lengths == [64, 2]  # the model's context is shorter than the usual 512
    assert heard.warnings == ["1 of 2 texts were longer than the 64 tokens that are read, and were cut there"]


def test_single_tokens_are_passed_over(gpt, tmp_path):
    tokenizer = letters()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(gpt.path / "tokenizer.json"))
    assert [len(ids) for ids in rows_of(read(write(tmp_path / "c.txt", ["a", "ab", "c"]), gpt))] == [2]
    with pytest.raises(InputError, match="no text of two tokens"):
        rows_of(read(write(tmp_path / "c.txt", ["a", "c"]), gpt))


def test_chats_go_through_the_template(gpt, tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (ids,) = rows_of(read(tmp_path / "c.jsonl", gpt))
    assert ids == letters().encode("<u>hi<a>yes", add_special_tokens=False).ids


@pytest.mark.parametrize("length", [0, 1])
def test_a_length_must_leave_something(bert, tmp_path, length):
    with pytest.raises(UsageError, match="--max-length"):
        read(write(tmp_path / "c.txt"), bert, max_length=length)


def test_a_length_applies_to_texts_only(tmp_path):
    model = ModelDir.open(mlp_dir(tmp_path / "mlp"))
    np.savez(tmp_path / "c.npz", x=random(2, 3, 32))
    assert len(read(tmp_path / "c.npz", model).samples) == 2
    with pytest.raises(UsageError, match="--max-length does not apply"):
        read(tmp_path / "c.npz", model, max_length=8)
    images = ModelDir.open(image_dir(tmp_path / "images"))
    with pytest.raises(UsageError, match="no option 'max_length'"):
        read(pictures(tmp_path / "photos"), images, max_length=8)


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_images(tmp_path):
    model = ModelDir.open(image_dir(tmp_path / "model"))
    data = read(pictures(tmp_path / "photos"), model)
    assert [one["pixel_values"].shape[0] for one in fed(data)] == [1, 1, 1]
    before = data.digest()
    pixels = np.zeros((20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos/0.png")
    assert read(tmp_path / "photos", model).digest() != before


def test_a_folder_of_tensors(tmp_path):
    model = ModelDir.open(mlp_dir(tmp_path / "mlp"))
    (tmp_path / "many").mkdir()
    for number in range(3):
        np.savez(tmp_path / f"many/{number}.npz", x=random(2, 3 + number, 32))
    assert [one["x"].shape for one in fed(read(tmp_path / "many", model))] == [
        (1, 3, 32), (1, 3, 32), (1, 4, 32), (1, 4, 32), (1, 5, 32), (1, 5, 32),
    ]  # fmt: skip


def test_an_answer_that_nobody_gives_fits_into_the_context(tmp_path, caplog):
    """64 tokens would not, and nobody asked for them: not a word about that."""
    model = ModelDir.open(translator(tmp_path / "t5", min_new_tokens=60))
    [row] = rows_of(read(write(tmp_path / "a.txt", ["good"]), model))
    assert len(row) == 48 < MOST_GENERATED
    assert not caplog.records


def test_random_data_is_seeded_and_says_so(bert, gpt, tmp_path):
    for model in (bert, gpt, ModelDir.open(translator(tmp_path / "t5"))):
        one, other = read("random", model, most=5), read("random", model, most=5)
        assert one.random
        assert one.source == "seeded random data"
        pairs = zip(fed(one), fed(other), strict=True)
        assert all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)
        assert one.digest() == other.digest() != read("random", model, most=5, seed=1).digest()
        assert len({feeds["input_ids"].shape for feeds in fed(one)}) > 1  # ragged


def test_the_digest_knows_samples_and_how_they_are_read(bert, tmp_path):
    path = write(tmp_path / "c.txt")
    whole = read(path, bert).digest()
    assert whole == read(write(tmp_path / "other.txt"), bert).digest()  # the place does not matter
    assert whole.startswith("sha256:")
    different = [
        read(path, bert, most=2), read(path, bert, max_length=5),
        read(write(tmp_path / "d.txt", TEXTS[::-1]), bert), read(path, bert).subset([0, 1]),
    ]  # fmt: skip
    assert len({whole, *(data.digest() for data in different)}) == 5


@given(st.integers(0, 300), st.integers(1, 200), st.booleans(), st.integers(0, 5))
def test_calibration_and_held_out_never_meet(count, samples, hold_out, seed):
    data = DataSet(
        source="f", samples=tuple({"text": str(i)} for i in range(count)), total=count, task=None, model=None
    )
    parts = split(data, samples=samples, hold_out=hold_out, seed=seed)
    one = [sample["text"] for sample in parts.calibration.samples]
    other = [sample["text"] for sample in parts.held_out.samples] if parts.held_out else []
    assert not set(one) & set(other)
    assert len(one) == min(samples, count - len(other))
    assert bool(other) == (hold_out and count >= 5)
    assert len(other) <= 64
    assert parts == split(data, samples=samples, hold_out=hold_out, seed=seed)


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 5))
def test_the_reservoir_keeps_order_and_count(count, most, seed):
    kept, total = reservoir(({"n": n} for n in range(count)), most, seed)
    numbers = [sample["n"] for sample in kept]
    assert total == count
    assert len(numbers) == min(most, count)
    assert numbers == sorted(set(numbers))


SPECS = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="mask", dtype="int64", shape=(1, "length")),
    TensorSpec(name="scale", dtype="float32", shape=()),
)
ROWS = {"x": random(3, 4), "mask": np.ones((3, 2), np.int64), "scale": np.float32(2.0).reshape(())}


def test_tensors_are_divided_along_the_batch_axis():
    rows = list(single_rows(ROWS, SPECS, "c.npz"))
    assert [{name: array.shape for name, array in row.items()} for row in rows] == [
        {"x": (1, 4), "mask": (1, 2), "scale": ()}
    ] * 3
    np.testing.assert_array_equal(np.concatenate([row["x"] for row in rows]), ROWS["x"])


def test_a_recurrent_state_is_divided_along_its_second_axis():
    specs = (SPECS[0], TensorSpec(name="state", dtype="float32", shape=(2, "batch", 5)))
    rows = list(single_rows({"x": ROWS["x"], "state": random(2, 3, 5)}, specs, "c.npz"))
    assert [row["state"].shape for row in rows] == [(2, 1, 5)] * 3
    np.testing.assert_array_equal(rows[2]["state"], random(2, 3, 5)[:, 2:])


def test_an_input_of_one_sample_beside_many_goes_into_every_row():
    specs = (SPECS[0], TensorSpec(name="h", dtype="float32", shape=(1, 1, 5)))
    rows = list(single_rows({"x": ROWS["x"], "h": random(1, 1, 5)}, specs, "c.npz"))
    assert [row["h"].shape for row in rows] == [(1, 1, 5)] * 3


def test_an_input_that_is_named_like_a_column_keeps_its_batch_axis(tmp_path):
    nodes = [helper.make_node("MatMul", ["image", "w"], ["y"], name="n")]
    model = proto(nodes, {"w": random(32, 48)}, inputs={"image": ["batch_size", "rows", 32]})
    (tmp_path / "model").mkdir()
    onnx.save(model, tmp_path / "model" / "model.onnx")
    images = random(3, 5, 32)
    np.savez(tmp_path / "c.npz", image=images)
    data = read(tmp_path / "c.npz", ModelDir.open(tmp_path / "model"))
    np.testing.assert_array_equal(np.concatenate([row["image"] for row in fed(data)]), images)
    assert data.place(2).startswith(f"{tmp_path / 'c.npz'}[1]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": random(3, 4).astype(np.float64)}, "x is float64 of rank 2; the model takes float32"),
        ({"x": random(3, 4, 1)}, "of rank 3"),
        ({"x": random(2, 4)}, "batch sizes differ"),
        ({"y": random(3, 4)}, "the model's inputs are"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(single_rows({**ROWS, **change}, SPECS, "c.npz"))
