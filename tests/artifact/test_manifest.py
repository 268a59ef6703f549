from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.artifact import Component, FileEntry, HistoryEntry, Manifest, Verification, to_in_toto
from onnxkit.errors import InputError, OnnxkitError
from onnxkit.runtime import TensorSpec

_text = st.text(max_size=8)
_float = st.floats(allow_nan=False, allow_infinity=False)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | _float | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=5,
)
_spec = st.builds(
    TensorSpec,
    name=_text,
    dtype=_text,
    shape=st.lists(st.none() | st.integers() | _text, max_size=3).map(tuple),
)
_specs = st.lists(_spec, max_size=3).map(tuple)
_file = st.builds(
    FileEntry,
    sha256=st.text(alphabet="0123456789abcdef", min_size=64, max_size=64),
    size_bytes=st.integers(min_value=0),
)
_verification = st.builds(
    Verification,
    passed=st.booleans(),
    against=_text,
    tolerance=_float,
    worst=_float,
    output=_text,
    cases=st.lists(_text, max_size=3).map(tuple),
)
_history = st.builds(
    HistoryEntry,
    stage=_text,
    argv=st.lists(_text, max_size=3).map(tuple),
    options=st.dictionaries(_text, st.fixed_dictionaries({"value": _plain, "source": _text}), max_size=3),
    versions=st.dictionaries(_text, _text, max_size=3),
    input_digest=_text,
    measured=st.dictionaries(_text, _plain, max_size=3),
    created=_text,
)
_manifests = st.builds(
    Manifest,
    task=_text,
    components=st.dictionaries(
        _text, st.builds(Component, file=_text, inputs=_specs, outputs=_specs), max_size=2
    ),
    files=st.dictionaries(_text, _file, max_size=3),
    verified=st.none() | _verification,
    history=st.lists(_history, max_size=2).map(tuple),
)
_EMPTY = Manifest(task="raw", components={}, files={})


@settings(max_examples=100, deadline=None)
@given(_manifests)
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text


def test_a_newer_schema_is_refused_and_says_so() -> None:
    text = _EMPTY.to_json().replace('"schema": 1', '"schema": 2')
    with pytest.raises(InputError, match=r"x/onnxkit\.json.*newer.*upgrade"):
        Manifest.from_json(text, where="x/onnxkit.json")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "1"},
        {"schema": True},
        {"task": 3},
        {"components": []},
        {"files": {"a": {}}},
        {"files": {"a": {"sha256": "short", "size_bytes": 1}}},
        {"files": {"a": {"sha256": "0" * 64, "size_bytes": -1}}},
        {"verified": {}},
        {"history": 3},
        {"history": [{}]},
        {"components": {"m": {"file": 1, "inputs": [], "outputs": []}}},
        {"components": {"m": {"file": "x", "inputs": [{"name": "a", "dtype": "b", "shape": [1.5]}]}}},
    ],
)
def test_wrong_types_are_input_errors(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="damaged manifest"):
        Manifest.from_json(json.dumps({**json.loads(_EMPTY.to_json()), **change}))


@pytest.mark.parametrize("key", ["schema", "task", "components", "files", "verified", "history"])
def test_what_is_missing_is_an_input_error(key: str) -> None:
    data = json.loads(_EMPTY.to_json())
    del data[key]
    with pytest.raises(InputError, match=key):
        Manifest.from_json(json.dumps(data))


@given(st.text(max_size=30) | _plain.map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        Manifest.from_json(text)
    except OnnxkitError as error:
        assert "onnxkit.json" in str(error)


def test_released_manifests_are_still_read() -> None:
    """A manifest as 0.1.0 writes it; later versions of this test add theirs, and never drop one."""
    text = """{
      "schema": 1, "task": "feature-extraction",
      "components": {"model": {"file": "model.onnx",
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]}],
        "outputs": [{"name": "last_hidden_state", "dtype": "float32", "shape": ["batch_size", null, 384]}]}},
      "files": {"model.onnx": {"sha256": "%s", "size_bytes": 10}},
      "verified": {"passed": true, "against": "PyTorch", "tolerance": 0.0001, "worst": 1, "output": "o",
        "cases": ["a"]},
      "history": [{"stage": "export", "argv": ["onnxkit"],
        "options": {"seed": {"value": 0, "source": "default"}}, "versions": {"onnxkit": "0.1.0"},
        "input_digest": "", "measured": {}, "created": "2026-11-24T00:00:00Z"}]
    }""" % ("ab" * 32)
    manifest = Manifest.from_json(text)
    assert manifest.components["model"].outputs[0].shape == ("batch_size", None, 384)
    assert manifest.verified is not None and manifest.verified.worst == 1.0
    assert manifest.history[0].options["seed"]["source"] == "default"


@given(_manifests)
def test_the_in_toto_statement_is_plain_json(manifest: Manifest) -> None:
    statement = json.loads(json.dumps(to_in_toto(manifest)))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [subject["name"] for subject in statement["subject"]] == sorted(manifest.files)
