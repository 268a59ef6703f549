"""PyTorch's side of the check: the same inputs through eager PyTorch, its answers kept as reference data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from onnxkit.artifact import ModelDir, ReferenceCase, Verification, sample_output, save_reference
from onnxkit.errors import InputError
from onnxkit.export.plan import Plan
from onnxkit.export.trace import run_head
from onnxkit.measure import TOLERANCES, CaseAgreement, compare, random_cases, valid_positions, worst
from onnxkit.progress import Progress
from onnxkit.runtime import Session

Feeds = Mapping[str, NDArray[Any]]

_SAMPLED = 1024
"""Values of an output that a reference case keeps."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint in eager float32 PyTorch, and the parameters that transformers had to make up."""

    model: PreTrainedModel
    missing: tuple[str, ...]


def load_reference_model(plan: Plan) -> LoadedModel:
    """The checkpoint in eager float32 PyTorch.

    Raises:
        InputError: transformers cannot load it; missing weights are no error yet.
    """
    try:
        result: Any = plan.load(dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{plan.checkpoint.source} cannot be loaded: {reason[0] if reason else error}"
        ) from error
    model, info = result
    return LoadedModel(model=model.eval(), missing=tuple(sorted(info["missing_keys"])))


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of comparing a graph with PyTorch.

    Attributes:
        cases: agreement of every output on every case.
        reference: what PyTorch gave, sampled.
    """

    verification: Verification
    worst: CaseAgreement
    cases: tuple[CaseAgreement, ...]
    reference: tuple[ReferenceCase, ...]


class TorchReference:
    """Runs the exported part of the loaded model; a Hugging Face output object becomes named arrays."""

    def __init__(self, plan: Plan, model: PreTrainedModel) -> None:
        self._plan, self._model = plan, model

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Outputs by name, float32."""
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        with torch.no_grad():
            named = run_head(self._plan.head, self._plan.entry(self._model), given, torch.float32)
        return {name: named[name].numpy() for name in self._plan.signature.outputs}


def check(
    reference: TorchReference,
    session: Session,
    cases: list[tuple[str, Feeds]],
    *,
    tolerance: float,
    progress: Progress,
) -> Check:
    """Run every case on both sides.

    Tolerance: largest difference over the largest reference value, padded positions left out.
    """
    found: list[CaseAgreement] = []
    kept: list[ReferenceCase] = []
    for name, feeds in progress.track(cases, total=len(cases), text="check against PyTorch"):
        expected, actual = reference.run(feeds), session.run(feeds)
        samples = {}
        for output, right in expected.items():
            valid = valid_positions(feeds, right)
            found.append(
                CaseAgreement(case=name, output=output, agreement=compare(right, actual[output], valid))
            )
            samples[output] = sample_output(right, valid=valid, count=_SAMPLED)
        kept.append(ReferenceCase(name=name, inputs=dict(feeds), outputs=samples))
    return _judge(found, kept, tolerance)


def _judge(found: list[CaseAgreement], kept: list[ReferenceCase], tolerance: float) -> Check:
    most = worst(found)
    verification = Verification(
        passed=most.agreement.finite and most.agreement.relative <= tolerance,
        against=f"PyTorch {torch.__version__.partition('+')[0]} eager",
        tolerance=tolerance,
        worst=most.agreement.relative,
        output=most.output,
        cases=tuple(case.name for case in kept),
    )
    return Check(verification=verification, worst=most, cases=tuple(found), reference=tuple(kept))


def cases_for(directory: Path, *, seed: int) -> list[tuple[str, Feeds]]:
    """At least five new shapes for the graph in `directory`, padded right and left where it takes a mask."""
    return [(name, feeds) for name, feeds in random_cases(ModelDir.open(directory), seed=seed)]


def write_reference(path: Path, result: Check) -> None:
    """Write `reference.npz` (at most 2 MB)."""
    save_reference(path, result.reference)


def tolerance_of(dtype: str) -> float:
    """The design's tolerance for a graph of this dtype."""
    return TOLERANCES[dtype]
