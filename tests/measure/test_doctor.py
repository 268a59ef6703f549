"""The doctor."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnxkit.errors import EnvironmentProblem
from onnxkit.measure import doctor, examine
from onnxkit.runtime import opset_ceiling


def test_doctor_tells_what_really_works() -> None:
    report = examine()
    usable = {each.name: each.usable for each in report.providers}
    assert usable["CPUExecutionProvider"]
    assert all(each.usable or each.reason for each in report.providers)
    assert report.opset == opset_ceiling().opset
    assert report.cores >= 1 and report.memory_total_bytes > 0
    assert report.telemetry.startswith("off")
    assert {each.name for each in report.packages} >= {"onnx", "numpy", "torch"}
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_missing_onnxruntime_is_reported_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise EnvironmentProblem("onnxruntime is not installed: pip install onnxruntime-gpu")

    monkeypatch.setattr(doctor, "import_onnxruntime", missing)
    report = examine()
    assert report.onnxruntime is None and report.providers == () and report.opset is None
    assert "pip install onnxruntime-gpu" in report.advice[0]


def test_two_wheels_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(doctor, "installed_wheels", lambda: wheels)
    monkeypatch.setattr("onnxkit.runtime.cuda.installed_wheels", lambda: wheels)
    assert any("overwrite each other" in line for line in examine().advice)


def test_a_missing_package_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", {"onnxkit-no-such-package": "export"})
    assert any('pip install "onnxkit[export]"' in line for line in examine().advice)
