"""Verification of published directories."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxkit.artifact import Invocation, ReferenceCase, Verification, sample_output, save_reference, seal
from onnxkit.errors import GateFailed, InputError
from onnxkit.measure import verify_model

CASES = ("batch 2", "padding")


def publish(folder: Path, *, error: float = 0.0, tolerance: float | None = 1e-4) -> Path:
    """Seal `folder` with reference data that is off by `error`."""
    cases = []
    for name in CASES:
        ids = np.arange(1, 9).reshape(2, 4)
        mask = np.ones_like(ids)
        if name == "padding":
            mask[1, 2:] = 0
        truth = (ids[..., None] + error).astype(np.float32)
        outputs = {"last_hidden_state": sample_output(truth, valid=mask.astype(bool))}
        cases.append(
            ReferenceCase(name=name, inputs={"input_ids": ids, "attention_mask": mask}, outputs=outputs)
        )
    save_reference(folder / "reference.npz", cases)
    verified = None
    if tolerance is not None:
        verified = Verification(
            passed=True,
            against="PyTorch",
            tolerance=tolerance,
            worst=0.0,
            output="last_hidden_state",
            cases=CASES,
        )
    seal(folder, task="feature-extraction", components={"model": "model.onnx"}, parent=None,
         invocation=Invocation(stage="export"), verified=verified, measured={})  # fmt: skip
    return folder


def test_a_good_directory(text_dir: Path) -> None:
    report = verify_model(publish(text_dir))
    assert report.passed and report.files == 3
    assert "PyTorch" in report.against and report.tolerance == 1e-4
    assert [row.case for row in report.outputs] == list(CASES)
    assert report.worst.relative == 0.0
    assert report.session.provider == "CPUExecutionProvider"
    json.dumps(report.to_dict(), allow_nan=False)


def test_numbers_out_of_tolerance(text_dir: Path) -> None:
    with pytest.raises(GateFailed, match=r"'last_hidden_state' of case '.*' differs by 1.*e-01") as caught:
        verify_model(publish(text_dir, error=1.0))
    report = caught.value.report
    assert not report.passed
    assert dataclasses.asdict(report.worst)["max_abs"] == pytest.approx(1.0)


def test_without_a_tolerance_nothing_is_judged(text_dir: Path) -> None:
    report = verify_model(publish(text_dir, error=1.0, tolerance=None))
    assert report.passed and report.tolerance is None
    assert report.worst.relative > 0.1


def test_a_changed_byte_is_found(text_dir: Path) -> None:
    publish(text_dir)
    config = (text_dir / "config.json").read_text()
    (text_dir / "config.json").write_text(config.replace("50", "51"))
    with pytest.raises(InputError, match=r"config\.json"):
        verify_model(text_dir)


def test_nan_is_never_within_tolerance(text_dir: Path) -> None:
    model = onnx.load(text_dir / "model.onnx")
    shift = next(each for each in model.graph.initializer if each.name == "shift")
    shift.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "shift"))
    onnx.save(model, text_dir / "model.onnx")
    with pytest.raises(GateFailed, match="NaN"):
        verify_model(publish(text_dir, tolerance=None))


def test_another_tools_directory_has_nothing_to_verify(text_dir: Path) -> None:
    with pytest.raises(InputError, match="no reference data"):
        verify_model(text_dir)
