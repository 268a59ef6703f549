"""Saving and loading: the graph, its regions, its own key/value pairs; weights in the file or beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxkit.errors import ResourceError, UsageError
from onnxkit.graph import files
from onnxkit.runtime import open_session, opset_ceiling
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save_plain(build_encoder(EncoderSpec()), path)
    return path


def test_no_value_info_and_no_exporter_s_notes(saved: Path, tmp_path: Path) -> None:
    model = files.load_model(saved)
    node = next(iter(model.graph))
    node.metadata_props["namespace"] = "secret"
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape([2, 3]), ir.DataType.FLOAT
    model.metadata_props["pkg.torch.export.ExportedProgram.graph_signature"] = "secret"
    model.graph.doc_string = "secret"
    files.save_model(model, tmp_path / "again.onnx")
    written = (tmp_path / "again.onnx").read_bytes()
    assert b"secret" not in written
    assert not onnx.load_from_string(written).graph.value_info


def test_key_value_pairs_of_the_model_stay(saved: Path, tmp_path: Path) -> None:
    """Programs read labels, alphabets, strides and sampling rates from them."""
    model = files.load_model(saved)
    model.metadata_props["names"] = "{0: 'cat'}"
    files.save_model(model, tmp_path / "again.onnx")
    assert open_session(tmp_path / "again.onnx").metadata["names"] == "{0: 'cat'}"


def test_large_weights_stand_beside_the_graph(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1)
    out = tmp_path / "split" / "model.onnx"
    out.parent.mkdir()
    files.save_model(files.load_model(saved), out)
    assert (out.parent / "model.onnx.data").stat().st_size > out.stat().st_size / 4
    given = feeds(2, 5)
    right, got = (open_session(path).run(given) for path in (saved, out))
    for name, values in right.items():
        np.testing.assert_array_equal(got[name], values)
    monkeypatch.undo()
    files.save_model(files.load_model(out), tmp_path / "joined.onnx")  # and inside again
    assert not (tmp_path / "joined.onnx.data").exists()
    assert open_session(tmp_path / "joined.onnx").run(given).keys() == right.keys()


def test_an_opset_past_onnx_runtime_is_refused(saved: Path, tmp_path: Path) -> None:
    model = files.load_model(saved)
    files.set_opset(model, opset_ceiling().opset + 1)
    with pytest.raises(UsageError, match="is past what ONNX Runtime"):
        files.save_model(model, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_set_opset_takes_the_lowest_ir_version(saved: Path) -> None:
    model = files.load_model(saved)
    files.set_opset(model, 18)
    assert (model.opset_imports[""], model.ir_version) == (18, 8)
    files.set_opset(model, 21)
    assert model.ir_version == 10


def test_an_unwritable_place(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"again\.onnx cannot be written"):
        files.save_model(files.load_model(saved), tmp_path / "missing" / "again.onnx")
