from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import read_json, read_json_value

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.dictionaries(st.text(), _VALUES, max_size=5))
def test_reads_what_json_writes(tmp_path: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_json(path, trust_remote_code=True) == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    try:
        assert isinstance(read_json(path), dict)
    except OnnxkitError as error:
        assert str(path) in str(error)


def test_a_syntax_error_names_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "a": 1,\n  oops\n}')
    with pytest.raises(InputError, match=r"config\.json.*line 3 column 3"):
        read_json(path)


@pytest.mark.parametrize("text", ["[1]", "null", "3", '"x"', "", "[" * 200_000, "9" * 10_000])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_json(path)


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{" + " " * (4 * 1024 * 1024) + "}")
    with pytest.raises(InputError, match="at most 4194304"):
        read_json(path)
    assert read_json_value(path, max_bytes=5_000_000) == {}


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(path) == {}


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"trust_remote_code": True},
        {"text_config": {"deep": [{"auto_map": {"AutoModel": "x.Y"}}]}},
        {"custom_pipelines": {"x": {"impl": "pipeline.Pipe"}}},
    ],
)
def test_remote_code_is_refused_unless_asked_for(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UnsafeError, match="--trust-remote-code"):
        read_json(path)
    assert read_json(path, trust_remote_code=True) == config


@pytest.mark.parametrize("config", [{"trust_remote_code": False}, {"auto_map": None}, {"auto_map": {}}])
def test_entries_that_ask_for_nothing_pass(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert read_json(path) == config
