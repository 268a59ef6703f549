from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import read_npy, read_npz


def _npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def _zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    stn.arrays(
        stn.scalar_dtypes().filter(lambda d: d.kind in "biufc"), stn.array_shapes(min_dims=0, min_side=0)
    )
)
def test_reads_what_numpy_writes(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    np.savez(tmp_path / "x.npz", a=array, b=np.array(["text"]))
    np.save(tmp_path / "x.npy", array)
    found = read_npz(tmp_path / "x.npz")
    assert sorted(found) == ["a", "b"] and found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), array)


def test_fortran_order_is_kept_right(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.savez_compressed(tmp_path / "x.npz", a=array)
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["a"], array)


def test_pickles_are_refused_and_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    array = np.array([Bomb()], dtype=object)
    (tmp_path / "x.npy").write_bytes(_npy(array, allow_pickle=True))
    np.savez(tmp_path / "x.npz", a=array)
    with pytest.raises(UnsafeError, match="pickled"):
        read_npz(tmp_path / "x.npz")
    with pytest.raises(UnsafeError, match="pickled"):
        read_npy(tmp_path / "x.npy")
    with pytest.raises(InputError):
        read_npy(_zip(tmp_path / "bare.npz", a=pickle.dumps(Bomb())))
    assert not (tmp_path / "ran").exists()


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    data = _npy(np.zeros(10**6, np.int8)).replace(b"(1000000,)", b"(9999999,)")[:200]
    with pytest.raises(InputError, match="truncated"):
        read_npz(_zip(tmp_path / "x.npz", a=data))


def test_the_cap_counts_all_arrays_before_any_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", **{f"a{i}": np.zeros(10**6, np.int8) for i in range(20)})
    assert (tmp_path / "bomb.npz").stat().st_size < 50_000
    with pytest.raises(InputError, match="more than"):
        read_npz(tmp_path / "bomb.npz", max_bytes=15 * 10**6)
    assert len(read_npz(tmp_path / "bomb.npz", max_bytes=20 * 10**6)) == 20


def test_records_and_doubled_names_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "record.npz", a=np.zeros(2, dtype=[("x", "f4"), ("y", "f4")]))
    with pytest.raises(InputError, match="dtype"):
        read_npz(tmp_path / "record.npz")
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive,
    ):
        for _ in range(2):
            archive.writestr("a.npy", _npy(np.zeros(2)))
    with pytest.raises(InputError, match="two arrays"):
        read_npz(tmp_path / "twice.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    np.savez_compressed(tmp_path / "x.npz", a=np.arange(8), b=np.ones((2, 2), np.float32))
    for name, reader in (("x.npz", read_npz), ("x.npy", read_npy)):
        path = tmp_path / name
        data = bytearray(path.read_bytes() if name == "x.npz" else _npy(np.arange(8)))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.3 else data)
        try:
            reader(path)
        except OnnxkitError as error:
            assert name in str(error)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        read_npz(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"x\.npz"):
        read_npz(tmp_path / "x.npz")
