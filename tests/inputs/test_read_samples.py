"""Every format, its errors with their places, and that nothing is read ahead."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxkit.errors import EnvironmentProblem, InputError, UsageError
from onnxkit.inputs import Located, place, read_samples


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def plain(samples: object) -> list[dict]:
    return [dict(sample) for sample in samples]


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_txt_gives_a_text_a_line_and_keeps_blank_ones(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\ntwo\u2028still two\nlast")
    samples = list(read_samples(path))
    assert plain(samples) == [{"text": "one"}, {"text": ""}, {"text": "two\u2028still two"}, {"text": "last"}]
    assert [sample.where for sample in samples] == [f"{path}:{n}" for n in (1, 2, 3, 4)]


def test_jsonl_gives_objects_and_skips_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "é", "label": 1}\n\n{"text": "b", "label": [2]}\n')
    samples = list(read_samples(str(path)))
    assert plain(samples) == [{"text": "é", "label": 1}, {"text": "b", "label": [2]}]
    assert place(samples[1]) == f"{path}:3"


def test_csv_knows_quotes_and_line_breaks_inside_them(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"a, ""b""\nc",x\nd,y\n')
    samples = list(read_samples(path))
    assert plain(samples) == [{"text": 'a, "b"\nc', "label": "x"}, {"text": "d", "label": "y"}]
    assert [sample.where for sample in samples] == [f"{path}:2", f"{path}:4"]


def test_tsv(tmp_path):
    path = write(tmp_path / "a.tsv", "text\ttext_pair\na,b\tc\n")
    assert plain(read_samples(path)) == [{"text": "a,b", "text_pair": "c"}]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [f"t{i}" for i in range(600)], "label": list(range(600))})
    parquet.write_table(table, tmp_path / "a.parquet")
    samples = list(read_samples(tmp_path / "a.parquet"))
    assert len(samples) == 600
    assert dict(samples[599]) == {"text": "t599", "label": 599}
    assert samples[599].where.endswith("a.parquet:row 600")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", "x")
    with pytest.raises(EnvironmentProblem, match=r"pip install 'onnxkit\[data\]'"):
        list(read_samples(path))


def test_a_file_that_is_no_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="not a readable parquet"):
        list(read_samples(write(tmp_path / "a.parquet", "no parquet")))


def test_audio_files_and_folders_of_them(tmp_path):
    for name in ("b.wav", "yes/1.FLAC", "yes/2.mp3", "no/x.ogg", "no/notes.txt", ".hidden.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")
    assert plain(read_samples(tmp_path / "b.wav")) == [{"audio": tmp_path / "b.wav"}]
    samples = list(read_samples(tmp_path))
    assert plain(samples) == [
        {"audio": tmp_path / "b.wav"},
        {"audio": tmp_path / "no/x.ogg", "label": "no"},
        {"audio": tmp_path / "yes/1.FLAC", "label": "yes"},
        {"audio": tmp_path / "yes/2.mp3", "label": "yes"},
    ]
    assert plain(read_samples(write(tmp_path / "odd.bin", ""), format="audio")) == [
        {"audio": tmp_path / "odd.bin"}
    ]


def test_relative_audio_paths_are_meant_from_the_file(tmp_path):
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / "a.csv", "audio,target\nx.wav,hello\n")
    assert plain(read_samples(path)) == [{"audio": tmp_path / "data" / "x.wav", "target": "hello"}]


def test_a_folder_of_images_in_order_with_labels_from_subfolders(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "b/.hidden.png", ".git/3.png", "b/notes.txt", "0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    assert plain(read_samples(tmp_path)) == [
        {"image": tmp_path / "0.png"},
        {"image": tmp_path / "a/1.JPG", "label": "a"},
        {"image": tmp_path / "b/2.png", "label": "b"},
    ]


def test_a_single_image(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    [sample] = read_samples(tmp_path / "x.png")
    assert sample == {"image": tmp_path / "x.png"}
    assert sample.where == str(tmp_path / "x.png")


def test_image_paths_are_relative_to_the_file_that_names_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    absolute = tmp_path / "y.png"
    lines = [{"image": "images/x.png"}, {"image": str(absolute)}]
    path = write(folder / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert [sample["image"] for sample in read_samples(path)] == [folder / "images/x.png", absolute]


def test_npz_columns_become_rows(tmp_path):
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez(tmp_path / "a.npz", image=images, label=np.array([0, 1, 2]))
    samples = list(read_samples(tmp_path / "a.npz"))
    assert [sample["label"] for sample in samples] == [0, 1, 2]
    np.testing.assert_array_equal(samples[2]["image"], images[2])
    assert samples[2].where.endswith("a.npz[2]")


def test_npz_of_inputs_is_one_sample(tmp_path):
    np.savez(tmp_path / "a.npz", input_ids=np.ones((3, 4)), attention_mask=np.ones((3, 4)))
    [sample] = read_samples(tmp_path / "a.npz")
    assert sample["input_ids"].shape == (3, 4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        (b'\n{"text": "a"}\n', [{"text": "a"}]),
        (b"{curly, but text\nb\n", [{"text": "{curly, but text"}, {"text": "b"}]),
        (b"a\n", [{"text": "a"}]),
    ],
)
def test_standard_input_is_told_apart(monkeypatch, content, expected):
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert plain(read_samples("-")) == expected


def test_standard_input_in_a_named_format(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"text\na\n"))
    [sample] = read_samples("-", format="csv")
    assert (dict(sample), sample.where) == ({"text": "a"}, "standard input:2")
    with pytest.raises(UsageError, match="parquet"):
        list(read_samples("-", format="parquet"))


def test_columns_are_renamed(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"sentence": "a", "text": "old", "gold": 1}')
    columns = {"text": "sentence", "label": "gold"}
    assert plain(read_samples(path, columns=columns)) == [{"text": "a", "label": 1}]


def test_columns_may_be_swapped(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "text_pair": "b"}')
    columns = {"text": "text_pair", "text_pair": "text"}
    assert plain(read_samples(path, columns=columns)) == [{"text": "b", "text_pair": "a"}]


def test_a_renamed_column_must_be_there(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}')
    with pytest.raises(InputError, match=r"a\.jsonl:1: there is no column 'sentence' \(columns: text\)"):
        list(read_samples(path, columns={"text": "sentence"}))


def test_an_unknown_column_of_ours_offers_the_nearest():
    with pytest.raises(UsageError, match=r"'txt'; did you mean text"):
        read_samples("whatever.txt", columns={"txt": "sentence"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\xfe\n", r"a\.txt:2: byte 1 of the line is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON: Expecting value at column"),
        ("a.jsonl", b'["a"]\n', r"a\.jsonl:1: expected a JSON object .* got list"),
        ("a.jsonl", b'{"text": "\xc3"}\n', r"a\.jsonl:1: byte 11 of the line is not UTF-8"),
        ("a.jsonl", b'{"a":' + b"[" * 100_000 + b"\n", r"a\.jsonl:1: JSON nested too deeply"),
        ("a.csv", b"text,label\na,b\nc\n", r"a\.csv:3: 1 fields, but the header has 2"),
        ("a.csv", b'text\n"a\n', r"a\.csv:2: unexpected end of data"),
        ("a.csv", b"text,text\n", r"a\.csv:1: the header repeats text"),
        ("a.txt", b"", r"a\.txt: holds no samples"),
        ("a.jsonl", b"\n\n", r"a\.jsonl: holds no samples"),
        ("a.csv", b"text\n", r"a\.csv: holds no samples"),
        ("a.xyz", b"a", r"does not follow from the suffix"),
    ],
)
def test_malformed_input_names_its_place(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_samples(write(tmp_path / name, content)))


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_samples(tmp_path / "a.txt"))
    with pytest.raises(InputError, match="no image"):
        list(read_samples(tmp_path))


def test_npz_columns_of_different_lengths(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((3, 2, 2)), label=np.zeros(2))
    with pytest.raises(InputError, match=r"differ in length \(image 3, label 2\)"):
        list(read_samples(tmp_path / "a.npz"))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxkit.inputs.lines.MAX_LINE_BYTES", 1024)
    with pytest.raises(InputError, match=r"a\.txt:2: the line is longer"):
        list(read_samples(write(tmp_path / "a.txt", "short\n" + "x" * 4096)))


def test_reading_is_lazy(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 3 + "broken\n")
    samples = read_samples(path)
    assert plain(itertools.islice(samples, 3)) == [{"text": "a"}] * 3
    with pytest.raises(InputError, match=":4: not JSON"):
        next(samples)


_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1)


@given(_TEXTS)
def test_jsonl_round_trips(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    write(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [sample["text"] for sample in read_samples(path)] == texts


def test_place_of_a_plain_mapping():
    assert place({"text": "a"}, 3) == "sample 3"
    assert place(Located({"text": "a"}, "x:1"), 3) == "x:1"
