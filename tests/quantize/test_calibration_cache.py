"""The calibration cache gives back what was written, to whom it belongs alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, ResourceError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.cache import (
    CacheKey,
    CalibrationCache,
    KeptScaling,
    cache_key,
    read_cache,
    write_cache,
)
from onnxkit.quantize.calibration.data import read_data
from onnxkit.quantize.input_statistics import InputStatistics
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
VECTORS = arrays(np.float32, 3, elements=FLOATS)
SCALING = st.builds(
    KeptScaling,
    layers=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    alpha=st.floats(0, 1),
    factors=arrays(np.float32, 3, elements=st.floats(2.0**-60, 2.0**60, width=32)),
)
CHANNELS = st.builds(
    InputStatistics, count=st.integers(1, 99), absmax=VECTORS, mean=VECTORS, mean_square=VECTORS
)


def cached(ranges=None, **change) -> CalibrationCache:
    ranges = {"model": {"x": Range(low=-1.0, high=2.5)}} if ranges is None else ranges
    scaling = {"model": (KeptScaling(layers=("q", "k"), alpha=0.5, factors=np.float32([0.1, 3])),)}
    ones = np.ones(2, np.float32)
    channels = {"model": {"x": InputStatistics(count=7, absmax=ones, mean=ones, mean_square=ones)}}
    given = {"ranges": ranges, "scaling": scaling, "channels": channels, "facts": {"model": FACTS}}
    return CalibrationCache(key=KEY, **{**given, **change})


def plain(item: object) -> object:
    """With lists in place of arrays, which `==` takes by elements."""
    if isinstance(item, Mapping):
        return {name: plain(each) for name, each in item.items()}
    if dataclasses.is_dataclass(item):
        return plain(vars(item))
    if isinstance(item, tuple):
        return [plain(each) for each in item]
    return [item.dtype.name, *item.tolist()] if isinstance(item, np.ndarray) else item


@given(
    RANGES,
    st.dictionaries(st.text(max_size=9), st.lists(SCALING, max_size=2).map(tuple), max_size=2),
    st.dictionaries(
        st.text(max_size=9), st.dictionaries(st.text(max_size=9), CHANNELS, max_size=2), max_size=2
    ),
)
def test_what_is_written_comes_back(tmp_path_factory, ranges, scaling, channels):
    path = tmp_path_factory.mktemp("cache") / "c.json"
    whole = cached(ranges, scaling=scaling, channels=channels)
    write_cache(path, whole)
    assert plain(read_cache(path, KEY)) == plain(whole)
    assert [file.name for file in path.parent.iterdir()] == ["c.json"]


def test_it_can_be_read_by_people(tmp_path):
    write_cache(tmp_path / "c.json", cached())
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["ranges"] == {"model": {"x": [-1.0, 2.5]}}
    assert found["options"]["--calibrator"] == "mse"
    lines = (tmp_path / "c.json").read_text().splitlines()
    assert '"x": [-1.0, 2.5]' in lines
    assert '{"layers": ["q", "k"], "alpha": 0.5, "factors": [0.1, 3.0]}' in lines
    assert '"x": {"count": 7, "absmax": [1.0, 1.0], "mean": [1.0, 1.0], "mean_square": [1.0, 1.0]}' in lines


def test_no_file_is_no_cache(tmp_path):
    assert read_cache(tmp_path / "c.json", KEY).holds == ()


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
        ("onnxkit/calibration/2", "onnxkit/calibration/1", "no calibration cache of this version"),
        ('"x": [-1.0, 2.5]', '"x": [3.0, 2.5]', "a damaged calibration cache"),
        ('"x": [-1.0, 2.5]', '"x": [NaN, 2.5]', "a damaged calibration cache"),
        ('"x": [-1.0, 2.5]', '"x": [2.5]', "a damaged calibration cache"),
        ('"factors": [0.1', '"factors": [-0.1', "a damaged calibration cache"),
        ('"factors": [0.1', '"factors": ["a"', "a damaged calibration cache"),
        ('"mean": [1.0, 1.0]', '"mean": [1.0]', "a damaged calibration cache"),
        ('"mean": [1.0, 1.0]', '"mean": [1.0, Infinity]', "a damaged calibration cache"),
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
