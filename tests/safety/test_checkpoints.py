from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import Module, check_checkpoint, read_modules
from onnxkit.safety.tensor_files import check_safetensors


def _safetensors() -> bytes:
    numpy_format = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(3, np.int64),
        "none": np.zeros(0),
    }
    data: bytes = numpy_format.save(arrays, metadata={"format": "pt"})
    return data


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "bert"}')
    (root / "model.safetensors").write_bytes(_safetensors())
    return root


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_a_sound_checkpoint_passes(checkpoint: Path) -> None:
    _write_json(checkpoint / "tokenizer.json", {"model": {"vocab": {"auto_map": 1}}})
    _write_json(checkpoint / "added_tokens.json", {"trust_remote_code": 5})
    check_checkpoint(checkpoint)


def test_no_directory_no_config_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        check_checkpoint(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no config\.json"):
        check_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no weights; expected model\.safetensors"):
        check_checkpoint(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"only tf_model\.h5"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "1_Custom/config.json"])
def test_remote_code_in_any_config_is_refused(checkpoint: Path, name: str) -> None:
    _write_json(checkpoint / name, {"auto_map": {"AutoModel": "modeling.Model"}})
    with pytest.raises(UnsafeError, match=name):
        check_checkpoint(checkpoint)
    check_checkpoint(checkpoint, trust_remote_code=True)


def test_pickles_need_a_word(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").write_bytes(b"pickle")
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    check_checkpoint(checkpoint)  # safetensors stand beside: the pickle is not read
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UnsafeError, match="--allow-pickle"):
        check_checkpoint(checkpoint)
    check_checkpoint(checkpoint, allow_pickle=True)
    (checkpoint / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "a\\b", "x\0"]
)
def test_a_weight_map_names_bare_files_only(checkpoint: Path, name: str) -> None:
    (checkpoint.parent / "x.safetensors").write_bytes(_safetensors())
    _write_json(checkpoint / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(UnsafeError, match="only bare names"):
        check_checkpoint(checkpoint)


def test_a_weight_map_names_files_that_exist(checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    _write_json(index, {"weight_map": {"a": "model.safetensors"}})
    check_checkpoint(checkpoint)
    _write_json(index, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    with pytest.raises(InputError, match="although"):
        check_checkpoint(checkpoint)
    _write_json(index, {"weight_map": [1]})
    with pytest.raises(InputError, match="weight_map"):
        check_checkpoint(checkpoint)


def test_every_truncation_of_safetensors_is_refused(tmp_path: Path) -> None:
    data, path = _safetensors(), tmp_path / "model.safetensors"
    path.write_bytes(data)
    check_safetensors(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"model\.safetensors"):
            check_safetensors(path)
    path.write_bytes(data + b"x")
    with pytest.raises(InputError, match="bytes after"):
        check_safetensors(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_we_accept_safetensors_accepts(tmp_path: Path, seed: int) -> None:
    """Independent reference: a header that passes here is read by the library itself."""
    library = pytest.importorskip("safetensors")
    chance = random.Random(seed)
    data = bytearray(_safetensors())
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(min(len(data), 200))] = chance.choice(b'0123456789[]{},:"ax\0\xff')
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        check_safetensors(path)
    except OnnxkitError:
        return
    try:
        with library.safe_open(path, "np") as file:
            assert file.keys()
    except library.SafetensorError as error:
        assert "unknown variant" in str(error) or "dtype" in str(error) or "metadata" in str(error).lower()


def test_modules_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "modules.json"
    entries = [
        ("", "models.Transformer"),
        ("1_Pooling", "models.Pooling"),
        ("2_Dense", "base.modules.dense.Dense"),
    ]
    _write_json(path, [{"idx": 0, "path": p, "type": f"sentence_transformers.{t}"} for p, t in entries])
    assert read_modules(path) == (
        Module(kind="Transformer", path=""),
        Module(kind="Pooling", path="1_Pooling"),
        Module(kind="Dense", path="2_Dense"),
    )


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "modeling.Custom",
        "sentence_transformers.models.Evil",
        "sentence_transformersx.models.Pooling",
        "",
    ],
)
def test_foreign_classes_are_refused(checkpoint: Path, kind: str) -> None:
    """CVE-2026-68770: modules.json names classes that its loader imports."""
    _write_json(checkpoint / "modules.json", [{"type": kind, "path": ""}])
    with pytest.raises(UnsafeError, match="module class"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("modules", [{}, [1], [{"path": ""}], [{"type": 3, "path": ""}]])
def test_damaged_modules(tmp_path: Path, modules: Any) -> None:
    _write_json(tmp_path / "modules.json", modules)
    with pytest.raises(InputError, match=r"modules\.json"):
        read_modules(tmp_path / "modules.json")


def test_a_module_path_must_stay_inside(tmp_path: Path) -> None:
    module = {"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}
    _write_json(tmp_path / "modules.json", [module])
    with pytest.raises(UnsafeError, match="stay inside"):
        read_modules(tmp_path / "modules.json")


def test_gguf_is_known_by_its_first_bytes(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    check_checkpoint(checkpoint)
    (checkpoint / "model.gguf").write_bytes(b"GG")
    with pytest.raises(InputError, match="not GGUF"):
        check_checkpoint(checkpoint)
    (checkpoint / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + (9).to_bytes(8, "little") + bytes(8))
    with pytest.raises(InputError, match="announces 9 tensors"):
        check_checkpoint(checkpoint)
