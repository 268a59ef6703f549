"""Compares written graphs with PyTorch, one at a time and then together."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxkit.export.generation import check_greedy, check_steps, make_prompt
from onnxkit.export.levels import TORCH_DTYPES, Candidate, Workshop, write_graph
from onnxkit.export.parts import Part
from onnxkit.export.reduced import can_be_checked, layers_of, with_fewer_layers
from onnxkit.export.reference import Check, TorchReference, cases_for, check, settings_of, tolerance_of
from onnxkit.export.report import CHECKPOINT, ExportOptions, GenerationCheck
from onnxkit.export.trace import empty_model
from onnxkit.measure import CaseAgreement, worst
from onnxkit.measure.geometry import geometry
from onnxkit.measure.widened import open_for_check
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, Session

if TYPE_CHECKING:
    from types import TracebackType


class Checker:
    """The check of one export. A context manager: it may keep graphs of its own in a scratch directory.

    Attributes:
        subject: what is compared: `CHECKPOINT`, or its first layers where memory does not hold all of it in
            PyTorch and ONNX Runtime.
    """

    def __init__(self, shop: Workshop, staging: Path, options: ExportOptions, progress: Progress) -> None:
        self.subject = CHECKPOINT
        self._shop, self._directory, self._options, self._progress = shop, staging, options, progress
        self._sessions: dict[str, Session] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if options.verify and not can_be_checked(shop.empty()):
            self._reduce(staging)

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sessions.clear()
        if self._scratch is not None:
            self._scratch.cleanup()

    def loads(self, candidate: Candidate) -> None:
        """See whether ONNX Runtime takes the written graph at all.

        Raises:
            InputError: it does not.
        """
        path = self._directory / candidate.part.file
        open_for_check(path, RuntimeOptions(graph_optimization="none"), widen=self._widen)

    def compare(self, candidate: Candidate) -> Check:
        """The written graph against PyTorch, on new shapes."""
        part = candidate.part
        if self._scratch is not None:
            part = next(each for each in self._shop.plan.parts if each.name == part.name)
            write_graph(self._shop.make(part, candidate.level), self._directory, None)
        self._sessions.pop(part.name, None)
        session = open_for_check(self._directory / part.file, widen=self._widen)
        cases = cases_for(self._directory, part, seed=self._options.seed)
        reference = TorchReference(part, self._shop.loaded.model)
        tolerance = tolerance_of(self._options.dtype)
        result = check(
            reference, session, cases, part=part.name, tolerance=tolerance, progress=self._progress
        )
        if self._shop.plan.generates:
            self._sessions[part.name] = session
        return result

    def together(self, joint: Check) -> tuple[Check, GenerationCheck | None]:
        """All graphs of a generating model in turn: `joint` with their rows, and greedy generation (float32).

        Raises:
            GateFailed: the generated tokens differ from transformers'.
        """
        if self.subject != CHECKPOINT:
            against = f"{joint.verification.against}, {self.subject}"
            joint = replace(joint, verification=replace(joint.verification, against=against))
        if not self._shop.plan.generates:
            return joint, None
        config = settings_of(self._directory)
        known, tolerance = geometry(config), tolerance_of(self._options.dtype)
        prompt = make_prompt(self._shop.plan, self._sessions, config, seed=self._options.seed)
        part: Part = self._shop.plan.parts[-1]
        rows = check_steps(self._sessions, prompt, known, part.name)
        if self._options.dtype != "fp32":
            return _with_rows(joint, rows, tolerance), None
        greedy = check_greedy(self._sessions, prompt, self._shop.loaded.model, known, tolerance)
        return _with_rows(joint, rows, tolerance), greedy

    @property
    def _widen(self) -> bool:
        return self._options.dtype == "bf16"

    def _reduce(self, staging: Path) -> None:
        plan, dtype = self._shop.plan, TORCH_DTYPES[self._options.dtype]
        build = partial(empty_model, dtype=TORCH_DTYPES["fp32"])
        small = with_fewer_layers(plan, build, dtype)
        self._shop = self._shop.with_plan(small)
        self.subject = f"the first {layers_of(small.config)} of its {layers_of(plan.config)} layers"
        self._scratch = tempfile.TemporaryDirectory(prefix="onnxkit-")
        self._directory = Path(self._scratch.name)
        small.config.to_json_file(self._directory / "config.json", use_diff=False)
        self._progress.warn(
            f"the memory does not hold the model twice, in PyTorch and ONNX Runtime: {self.subject} are "
            "compared"
        )


def _with_rows(joint: Check, rows: list[CaseAgreement], tolerance: float) -> Check:
    most = worst([joint.worst, *rows])
    relative = most.agreement.relative
    verification = replace(
        joint.verification,
        passed=joint.verification.passed and most.agreement.finite and relative <= tolerance,
        worst=relative,
        output=most.output,
        cases=(*joint.verification.cases, *(row.case for row in rows)),
    )
    return replace(joint, verification=verification, worst=most, cases=(*joint.cases, *rows))
