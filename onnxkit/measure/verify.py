"""Repeats, here and now, the check that a model directory was published with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.errors import GateFailed, InputError
from onnxkit.measure.agreement import Agreement, compare, fed
from onnxkit.measure.settings import MachineFacts, SessionFacts, describe, machine_facts, session_facts
from onnxkit.measure.widened import holds_bfloat16, open_widened
from onnxkit.progress import Progress
from onnxkit.report import Report
from onnxkit.runtime import RuntimeOptions, Session, open_session

if TYPE_CHECKING:
    from onnxkit.artifact import ReferenceCase

# Export samples these; the later stages copy them along, whatever they themselves compared with.
_REFERENCE = "PyTorch's outputs (reference.npz)"


@dataclass(frozen=True, kw_only=True)
class VerifiedOutput:
    """One output of one reference case."""

    component: str
    case: str
    output: str
    max_abs: float
    relative: float
    cosine: float
    sqnr_db: float
    finite: bool


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """What `verify` found.

    Attributes:
        files: number of files whose size and sha256 are the manifest's; 0 without a manifest.
        against: what the outputs were compared with.
        tolerance: the largest relative difference allowed; None where the manifest sets none
            (a quantized model is reported, not judged).
        passed: digests match and every output is within the tolerance (finite, where there is none).
        outputs: every output of every reference case; `worst` is the one farthest off.
        wall_s: seconds that it took.
    """

    path: str
    task: str
    passed: bool
    files: int
    against: str
    tolerance: float | None
    worst: VerifiedOutput
    outputs: tuple[VerifiedOutput, ...]
    session: SessionFacts
    machine: MachineFacts
    wall_s: float


def verify_model(
    path: str | Path, *, runtime: RuntimeOptions | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Check digests, then this ONNX Runtime's outputs against the stored reference data.

    Raises:
        InputError: no model directory, a file is missing or differs from its digest, or there is
            no reference data (another tool made the directory).
        GateFailed: an output is out of tolerance or not finite; its `report` is the whole report.
    """
    progress = progress or Progress()
    began = time.perf_counter()
    model = ModelDir.open(Path(path))
    files = _check_files(model, progress)
    reference = model.reference()
    if not reference:
        raise InputError(
            f"{path}: no reference data to verify against: `onnxkit export` writes it (reference.npz), and "
            "the other stages copy it along"
        )
    sessions = _Sessions(model, runtime or RuntimeOptions(), progress)
    facts = session_facts(sessions.of(reference[0].component))
    progress.note(describe(facts))
    outputs: list[VerifiedOutput] = []
    for case in progress.track(reference, total=len(reference), text="verify"):
        outputs += _check_case(sessions.of(case.component), case)
    verified = model.manifest.verified if model.manifest else None
    tolerance = verified.tolerance if verified else None
    worst = max(outputs, key=lambda each: (not each.finite, each.relative))
    report = VerifyReport(
        path=str(path),
        task=model.task,
        passed=worst.finite and (tolerance is None or worst.relative <= tolerance),
        files=files,
        against=_REFERENCE,
        tolerance=tolerance,
        worst=worst,
        outputs=tuple(outputs),
        session=facts,
        machine=machine_facts(),
        wall_s=time.perf_counter() - began,
    )
    return _judged(report, progress)


class _Sessions:
    """The graphs of a model, each opened when the first case asks for it."""

    def __init__(self, model: ModelDir, runtime: RuntimeOptions, progress: Progress) -> None:
        self._model, self._runtime, self._progress = model, runtime, progress
        self._open: dict[str, Session] = {}

    def of(self, component: str) -> Session:
        """The session of a component; InputError when the directory has none of that name."""
        if component not in self._open:
            # A directory of one graph may be another tool's, made from a graph that was called differently.
            known = self._model.components
            file = self._model.path / known[component].file if component in known else self._model.model_file
            self._open[component] = _open(file, self._runtime, self._progress)
        return self._open[component]


def _open(path: Path, runtime: RuntimeOptions, progress: Progress) -> Session:
    """Open the graph; a bfloat16 one that the provider has no kernels for as float32, as export did."""
    try:
        return open_session(path, runtime)
    except InputError:
        if not holds_bfloat16(path):
            raise
        progress.warn(f"{runtime.ep} cannot run bfloat16 here: checked with its values cast to float32")
        return open_widened(path, runtime)


def _check_files(model: ModelDir, progress: Progress) -> int:
    if model.manifest is None:
        progress.warn(f"{model.path}: no onnxkit.json, so its files cannot be checked against digests")
        return 0
    model.verify_digests()
    return len(model.manifest.files)


def _judged(report: VerifyReport, progress: Progress) -> VerifyReport:
    worst = report.worst
    where = f"{report.path}: output {worst.output!r} of case {worst.case!r}"
    if not worst.finite:
        raise GateFailed(f"{where} has NaN or infinite values that its reference has not", report)
    if not report.passed:
        raise GateFailed(
            f"{where} differs by {worst.relative:.2e}, allowed are {report.tolerance:.0e} "
            f"(onnxruntime {report.machine.onnxruntime}, {report.session.provider})",
            report,
        )
    if report.tolerance is None:
        progress.warn(f"{report.path}: its manifest sets no tolerance; differences are reported, not judged")
    return report


def _check_case(session: Session, case: ReferenceCase) -> list[VerifiedOutput]:
    """Run one case and compare the values that were sampled from PyTorch's outputs."""
    has = {spec.name for spec in session.outputs}
    names = [name for name in case.outputs if name in has]
    if not names:
        raise InputError(f"{session.model}: has none of the reference outputs {', '.join(case.outputs)}")
    got = session.run(fed(session, case.inputs), names)
    found = []
    for name in names:
        expected = case.outputs[name]
        if tuple(got[name].shape) != tuple(expected.shape):
            raise GateFailed(
                f"{session.model}: output {name!r} of case {case.name!r} has shape {got[name].shape}, "
                f"the reference {tuple(expected.shape)}"
            )
        sampled = got[name].reshape(-1)[expected.index]
        found.append(_row(case, name, compare(np.asarray(expected.values), sampled, scale=expected.scale)))
    return found


def _row(case: ReferenceCase, output: str, agreement: Agreement) -> VerifiedOutput:
    return VerifiedOutput(
        component=case.component,
        case=case.name,
        output=output,
        max_abs=agreement.max_abs,
        relative=agreement.relative,
        cosine=agreement.cosine,
        sqnr_db=agreement.sqnr_db,
        finite=agreement.finite,
    )
