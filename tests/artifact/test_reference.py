from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxkit.artifact import ReferenceCase, load_reference, sample_output, save_reference
from onnxkit.errors import InputError, OnnxkitError


def _case(name: str = "left padding", shape: tuple[int, ...] = (2, 5, 8)) -> ReferenceCase:
    rng = np.random.default_rng(len(name))
    return ReferenceCase(
        name=name,
        inputs={"input_ids": rng.integers(0, 99, shape[:2]), "attention_mask": np.ones(shape[:2], np.int64)},
        outputs={"a/b.0": sample_output(rng.normal(size=shape).astype(np.float32), count=20)},
    )


def _same(one: ReferenceCase, other: ReferenceCase) -> None:
    assert one.name == other.name and one.inputs.keys() == other.inputs.keys()
    for name, array in one.inputs.items():
        assert array.dtype == other.inputs[name].dtype
        np.testing.assert_array_equal(array, other.inputs[name])
    for name, output in one.outputs.items():
        found = other.outputs[name]
        assert (output.shape, output.scale) == (found.shape, found.scale)
        np.testing.assert_array_equal(output.index, found.index)
        np.testing.assert_array_equal(output.values, found.values)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    cases = [_case(), _case("größe 1", (1, 1, 3))]
    assert save_reference(tmp_path / "reference.npz", cases) == ("left padding", "größe 1")
    for one, other in zip(cases, load_reference(tmp_path / "reference.npz"), strict=True):
        _same(one, other)
    save_reference(tmp_path / "again.npz", cases)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "reference.npz").read_bytes()


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 4), length=st.integers(1, 9), count=st.integers(1, 50), seed=st.integers(0, 2**32)
)
def test_samples_are_valid_positions_with_their_values(
    batch: int, length: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    output = rng.normal(size=(batch, length, 3)).astype(np.float32)
    valid = rng.random((batch, length)) < 0.5
    valid.flat[rng.integers(valid.size)] = True
    output[~valid] = 1e9  # what stands in the padding must never be seen
    sample = sample_output(output, valid=valid, count=count, seed=seed)
    rows, columns, _ = np.unravel_index(sample.index, output.shape)
    assert valid[rows, columns].all() and 1 <= len(sample.index) <= max(count, 1)
    np.testing.assert_array_equal(sample.values, output.reshape(-1)[sample.index])
    assert sample.scale == np.abs(output[valid]).max() == np.abs(sample.values).max()
    assert (np.diff(sample.index) > 0).all() and sample.index.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.bool_])
def test_every_dtype_can_be_kept(tmp_path: Path, dtype: type) -> None:
    case = ReferenceCase(name="x", inputs={}, outputs={"y": sample_output(np.ones((2, 2)).astype(dtype))})
    save_reference(tmp_path / "x.npz", [case])
    _same(case, load_reference(tmp_path / "x.npz")[0])


def test_a_case_names_its_graph(tmp_path: Path) -> None:
    case = dataclasses.replace(_case(), component="decoder")
    save_reference(tmp_path / "r.npz", [case, _case("other")])
    assert [each.component for each in load_reference(tmp_path / "r.npz")] == ["decoder", "model"]


def test_masks_that_do_not_fit_or_leave_nothing() -> None:
    with pytest.raises(InputError, match="does not fit"):
        sample_output(np.zeros((2, 3)), valid=np.ones((3, 2), np.bool_))
    with pytest.raises(InputError, match="no valid position"):
        sample_output(np.zeros((2, 3)), valid=np.zeros(2, np.bool_))


def test_the_file_stays_under_two_megabytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32)
    large = ReferenceCase(name="four images", inputs={"pixel_values": pixels}, outputs={})
    small = ReferenceCase(name="one image", inputs={"pixel_values": pixels[:1]}, outputs={})
    path = tmp_path / "reference.npz"
    assert save_reference(path, [small, large, _case()]) == ("one image", "left padding")
    assert path.stat().st_size <= 2_000_000
    assert save_reference(tmp_path / "none.npz", [large]) == () and not (tmp_path / "none.npz").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "reference.npz"
    save_reference(path, [_case()])
    data = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)
    try:
        load_reference(path)
    except OnnxkitError as error:
        assert "reference.npz" in str(error)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "damaged"),
        ({"index.json": b'{"schema": 2}'}, "newer"),
        ({"index.json": b"{"}, "damaged"),
        (
            {"index.json": b'{"schema": 1, "cases": [{"name": "x", "inputs": ["a"], "outputs": {}}]}'},
            "damaged",
        ),
    ],
)
def test_foreign_npz_files(tmp_path: Path, arrays: dict[str, bytes], message: str) -> None:
    np.savez(tmp_path / "r.npz", x=np.zeros(1), **{k: np.frombuffer(v, np.uint8) for k, v in arrays.items()})
    with pytest.raises(InputError, match=message):
        load_reference(tmp_path / "r.npz")


def test_positions_outside_the_output_are_refused(tmp_path: Path) -> None:
    index = (
        b'{"schema": 1, "cases": [{"name": "x", "inputs": [], "outputs": {"y": {"shape": [2], "scale": 1}}}]}'
    )
    arrays = {"index.json": np.frombuffer(index, np.uint8), "0.output.0.values": np.ones(1, np.float32)}
    for position in (-1, 2):
        np.savez(tmp_path / "r.npz", **arrays, **{"0.output.0.index": np.array([position])})
        with pytest.raises(InputError, match="outside"):
            load_reference(tmp_path / "r.npz")
