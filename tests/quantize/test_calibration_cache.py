"""The calibration cache gives back what was written, to whom it belongs alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, ResourceError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.cache import (
    CachedCalibration,
    CacheKey,
    cache_key,
    read_cache,
    write_cache,
)
from onnxkit.quantize.calibration.data import read_data
from onnxkit.quantize.report import Calibration
from tests.quantize.graphs import mlp_dir

KEY = CacheKey(
    model="sha256:a", data="sha256:b", options={"--calibrator": "mse", "tail": 3e-5, "--smooth": None}
)
FACTS = Calibration(
    source="c.txt", samples=8, available=9, method="mse", distinct=8, widening=0.1, seconds=1.5
)
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
PAIRS = st.tuples(FLOATS, FLOATS).map(sorted).map(lambda pair: Range(low=pair[0], high=pair[1]))
RANGES = st.dictionaries(
    st.text(max_size=9), st.dictionaries(st.text(max_size=20), PAIRS, max_size=4), max_size=3
)


def cached(ranges=None, **change) -> CachedCalibration:
    ranges = {"model": {"x": Range(low=-1.0, high=2.5)}} if ranges is None else ranges
    return CachedCalibration(**{"key": KEY, "ranges": ranges, "facts": {"model": FACTS}, **change})


@given(RANGES)
def test_what_is_written_comes_back(tmp_path_factory, ranges):
    path = tmp_path_factory.mktemp("cache") / "c.json"
    whole = cached(ranges, extra={"alpha": [0.5, 0.7]})
    write_cache(path, whole)
    assert read_cache(path, KEY) == whole
    assert [file.name for file in path.parent.iterdir()] == ["c.json"]


def test_it_can_be_read_by_people(tmp_path):
    write_cache(tmp_path / "c.json", cached())
    plain = json.loads((tmp_path / "c.json").read_text())
    assert plain["ranges"] == {"model": {"x": [-1.0, 2.5]}}
    assert plain["options"]["--calibrator"] == "mse"
    assert '  "x": [-1.0, 2.5]' in (tmp_path / "c.json").read_text().splitlines()


def test_no_file_is_no_cache(tmp_path):
    assert read_cache(tmp_path / "c.json", KEY) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "sha256:c"}, "of another model: name another file"),
        ({"data": "sha256:c"}, "of other calibration samples: name"),
        ({"options": {**KEY.options, "--calibrator": "minmax"}}, "of --calibrator mse instead of minmax"),
        ({"options": {**KEY.options, "--include": "x"}}, "of --include None instead of x"),
        ({"model": "m", "data": "d"}, "of another model, other calibration samples"),
    ],
)
def test_what_belongs_to_others_is_refused_and_says_what_differs(tmp_path, change, message):
    write_cache(tmp_path / "c.json", cached())
    with pytest.raises(InputError, match=message):
        read_cache(tmp_path / "c.json", dataclasses.replace(KEY, **change))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("onnxkit/calibration/1", "onnxkit/calibration/9", "no calibration cache of this version"),
        ('"x": [-1.0, 2.5]', '"x": [3.0, 2.5]', "a damaged calibration cache"),
        ('"x": [-1.0, 2.5]', '"x": [NaN, 2.5]', "a damaged calibration cache"),
        ('"x": [-1.0, 2.5]', '"x": [2.5]', "a damaged calibration cache"),
        ('"ranges"', '"rages"', "a damaged calibration cache"),
        ('"samples"', '"sample"', "a damaged calibration cache"),
        ("{", "", "not JSON"),
    ],
)
def test_a_damaged_cache_is_refused(tmp_path, old, new, message):
    path = tmp_path / "c.json"
    write_cache(path, cached())
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_cache(path, KEY)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ResourceError, match=r"no-folder.c\.json: the calibration cache cannot be written"):
        write_cache(tmp_path / "no-folder" / "c.json", cached())


def test_the_key_is_of_the_models_bytes_and_the_samples(tmp_path):
    def key(folder: str, seed: int = 0, **options) -> CacheKey:
        model = ModelDir.open(tmp_path / folder)
        data = read_data("random", model, most=4, columns={}, seed=seed, task=None)
        return cache_key(model, data, options)

    mlp_dir(tmp_path / "one")
    mlp_dir(tmp_path / "same")
    mlp_dir(tmp_path / "other", seed=5)
    assert key("one") == key("same") != key("other")
    assert key("one").data != key("one", seed=1).data
    assert key("one", calibrator="mse") != key("one", calibrator="minmax")
