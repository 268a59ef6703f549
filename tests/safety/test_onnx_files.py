from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import external_files, read_model

Write = Callable[[onnx.ModelProto], Path]
External = Callable[..., None]


def test_a_valid_model_comes_back_as_it_is(linear_model: onnx.ModelProto, write: Write) -> None:
    assert read_model(write(linear_model)) == linear_model


def test_what_onnx_itself_writes_is_accepted(tmp_path: Path, linear_model: onnx.ModelProto) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear_model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    (tmp_path / "model.onnx.data").chmod(0o644)
    model = read_model(path)
    assert external_files(model) == ("model.onnx.data",)
    assert model.graph.initializer[0].raw_data == b""


@pytest.mark.parametrize(
    "data", [b"", b"garbage that is no protobuf at all", b"\x08\x09", b"\x3a\x00", b"{}"]
)
def test_files_that_are_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.onnx"):
        read_model(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such ONNX file"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="directory"):
        read_model(tmp_path)


def test_a_file_over_the_protobuf_limit_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no disk
    with pytest.raises(InputError, match="external data"):
        read_model(path)


def test_every_truncation_is_refused_or_whole(
    tmp_path: Path, linear_model: onnx.ModelProto, write: Write
) -> None:
    data = write(linear_model).read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.onnx"):
            read_model(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_mutated_bytes_never_crash(
    tmp_path: Path, linear_model: onnx.ModelProto, seed: int, count: int
) -> None:
    """Any mutation is read or refused with one of our errors; nothing else comes out."""
    chance = random.Random(seed)
    data = bytearray(linear_model.SerializeToString())
    for _ in range(count):
        position = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                data[position] = chance.randrange(256)
            case 1:
                data[position] ^= 1 << chance.randrange(8)
            case _:
                data[position : position + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(9))
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        assert isinstance(read_model(path), onnx.ModelProto)
    except OnnxkitError as error:
        assert "model.onnx" in str(error)


def _typed_places(model: onnx.ModelProto) -> list[onnx.TypeProto]:
    return [
        model.graph.input[0].type,
        model.graph.output[0].type,
        model.graph.value_info.add(name="v").type,
        model.graph.node[2].attribute[0].g.output[0].type,
        model.functions[0].value_info.add(name="f").type,
    ]


def test_negative_dimensions_are_refused_everywhere(linear_model: onnx.ModelProto, write: Write) -> None:
    """onnx's shape inference aborts the process on negative dimensions."""
    places = _typed_places(linear_model)
    original = linear_model.SerializeToString()
    for place in places:
        place.tensor_type.elem_type = TensorProto.FLOAT
        place.tensor_type.shape.dim.add(dim_value=-2)
        with pytest.raises(InputError, match="negative dimension"):
            read_model(write(linear_model))
        del place.tensor_type.shape.dim[-1]
    assert read_model(write(onnx.ModelProto.FromString(original)))


def test_minus_one_is_a_free_dimension_everywhere(linear_model: onnx.ModelProto, write: Write) -> None:
    """So Paddle writes it, and ONNX Runtime reads it; left as it is, shape inference aborts the process."""
    for place in _typed_places(linear_model):
        place.tensor_type.elem_type = TensorProto.FLOAT
        place.tensor_type.shape.dim.add(dim_value=-1)
    for place in _typed_places(read_model(write(linear_model)))[:2]:
        assert place.tensor_type.shape.dim[-1].WhichOneof("value") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": [3, 5]}, "needs 60 bytes"),
        ({"dims": [-3, -4]}, "negative dimension"),
        ({"dims": [2**31, 2**31]}, "declares"),
        ({"data_type": 0}, "unknown data type"),
        ({"data_type": 99}, "unknown data type"),
        ({"data_type": TensorProto.DOUBLE}, "needs 96 bytes"),
        ({"data_type": TensorProto.STRING}, "texts"),
        ({"raw_data": b""}, "needs 12"),
        ({"raw_data": b"\0" * 47}, "the file has 47"),
    ],
)
def test_type_shape_and_bytes_must_fit(
    linear_model: onnx.ModelProto, write: Write, change: dict[str, object], message: str
) -> None:
    tensor = linear_model.graph.initializer[0]
    for field, value in change.items():
        tensor.ClearField(field)  # type: ignore[arg-type]
        tensor.MergeFrom(TensorProto(**{field: value}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        read_model(write(linear_model))


@pytest.mark.parametrize("name", sorted(set(TensorProto.DataType.keys()) - {"UNDEFINED"}))
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_that_onnx_writes_is_accepted(
    linear_model: onnx.ModelProto, write: Write, name: str, raw: bool
) -> None:
    """Independent reference: onnx.helper decides where each type's values go."""
    kind = TensorProto.DataType.Value(name)
    if name == "STRING":
        tensor = helper.make_tensor("t", kind, [3], [b"a", b"b", b"c"])
    else:
        values = np.array([1, 0, 1], dtype=helper.tensor_dtype_to_np_dtype(kind))
        tensor = numpy_helper.from_array(values, "t")
        if not raw:
            tensor = helper.make_tensor("t", kind, [3], values)
        assert tensor.data_type == kind
    linear_model.graph.initializer.append(tensor)
    assert read_model(write(linear_model))


def test_empty_tensors_need_no_bytes(linear_model: onnx.ModelProto, write: Write) -> None:
    linear_model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"))
    assert read_model(write(linear_model))


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"location": "w.data"}, None, ""),
        ({"location": "w.data", "offset": "16", "length": "48"}, None, ""),
        ({"location": "w.data", "offset": "17", "length": "48"}, InputError, "has only 64"),
        ({"location": "w.data", "offset": "64"}, InputError, "has only 64"),
        ({"location": "w.data", "length": "12"}, InputError, "needs 48"),
        ({"location": "w.data", "length": "-1"}, InputError, "no number"),
        ({"location": "w.data", "offset": "1_6"}, InputError, "no number"),
        ({"location": "w.data", "offset": "9" * 30}, InputError, "no number"),
        ({"location": "gone.data"}, InputError, "no such external data file"),
        ({"location": "folder"}, InputError, "directory"),
        ({}, UnsafeError, "empty"),
        ({"location": "w.data\0"}, UnsafeError, "NUL"),
        ({"location": "/etc/passwd"}, UnsafeError, "relative"),
        ({"location": "../w.data"}, UnsafeError, "relative"),
    ],
)
def test_external_data(
    tmp_path: Path,
    linear_model: onnx.ModelProto,
    write: Write,
    external: External,
    entries: dict[str, str],
    error: type[OnnxkitError] | None,
    message: str,
) -> None:
    (tmp_path / "w.data").write_bytes(bytes(64))
    (tmp_path / "folder").mkdir()
    external(linear_model.graph.initializer[0], **entries)
    path = write(linear_model)
    if error is None:
        assert external_files(read_model(path)) == ("w.data",)
    else:
        with pytest.raises(error, match=message):
            read_model(path)


def test_external_data_given_twice(
    tmp_path: Path, linear_model: onnx.ModelProto, write: Write, external: External
) -> None:
    (tmp_path / "w.data").write_bytes(bytes(48))
    tensor = linear_model.graph.initializer[0]
    external(tensor, location="w.data")
    tensor.external_data.add(key="location", value="w.data")
    with pytest.raises(InputError, match="twice"):
        read_model(write(linear_model))


def test_the_model_file_must_stay_in_its_directory(tmp_path: Path, linear_model: onnx.ModelProto) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "elsewhere.onnx").write_bytes(linear_model.SerializeToString())
    (root / "model.onnx").symlink_to("../elsewhere.onnx")
    assert read_model(root / "model.onnx")  # a link that the user named
    with pytest.raises(UnsafeError, match="leads out"):
        read_model(root / "model.onnx", root=root)
