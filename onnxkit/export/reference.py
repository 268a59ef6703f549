"""PyTorch's side of the check: the same inputs through eager PyTorch, its answers kept as reference data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from onnxkit.artifact import ReferenceCase, Verification, sample_output, save_reference
from onnxkit.artifact.specs import input_specs
from onnxkit.errors import InputError
from onnxkit.export.parts import Part, run_part
from onnxkit.export.plan import Plan
from onnxkit.measure import TOLERANCES, CaseAgreement, compare, valid_positions, worst
from onnxkit.measure.agreement import fed
from onnxkit.measure.cached_cases import Step, cached_feeds, is_cached
from onnxkit.measure.cases import cases_of
from onnxkit.measure.geometry import geometry
from onnxkit.progress import Progress
from onnxkit.runtime import Session
from onnxkit.safety import read_json, read_model

Feeds = Mapping[str, NDArray[Any]]

_SAMPLED = 1024
"""Values of an output that a reference case keeps, of four outputs at most."""

CHUNK = "chunk of three rows"
"""Several tokens over a padded past: exports take it, what `optimize` makes of them for a provider may not.
It is no reference case, as those travel on."""
_CHUNK = Step(batch=3, sequence=4, past=5, padded=True)


class RandomModel(InputError):
    """A model whose outputs no graph can be compared with."""


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
        # Transformers' eager Falcon adds its ALiBi twice; its SDPA is right.
        attention = "sdpa" if getattr(plan.config, "alibi", False) else "eager"
        result: Any = plan.load(dtype=torch.float32, attn_implementation=attention, output_loading_info=True)
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
    """Runs one part of the loaded model; tensors become named arrays."""

    def __init__(self, part: Part, model: PreTrainedModel) -> None:
        self._part, self._model = part, model

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Outputs by name, float32."""
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        with torch.no_grad():
            named = run_part(self._part, self._model, given, torch.float32)
        return {name: value.numpy() for name, value in named.items()}


def check(
    reference: TorchReference,
    session: Session,
    cases: list[tuple[str, Feeds]],
    *,
    part: str = "model",
    tolerance: float,
    progress: Progress,
) -> Check:
    """Run every case of one part on both sides.

    Tolerance: largest difference over the largest reference value, padded positions left out.

    Raises:
        RandomModel: the outputs differ, and so do PyTorch's own when it is asked again.
    """
    found: list[CaseAgreement] = []
    kept: list[ReferenceCase] = []
    for name, feeds in progress.track(cases, total=len(cases), text="check against PyTorch"):
        expected, actual = reference.run(feeds), session.run(fed(session, feeds))
        samples = {}
        for output, right in expected.items():
            valid = valid_positions(feeds, right, name=output)
            agreement = compare(right, actual[output], valid)
            found.append(CaseAgreement(component=part, case=name, output=output, agreement=agreement))
            samples[output] = sample_output(right, valid=valid, count=_sampled(len(expected)))
        if name != CHUNK:
            kept.append(ReferenceCase(component=part, name=name, inputs=dict(feeds), outputs=samples))
    result = _judge(found, kept, tolerance)
    if not result.verification.passed:
        _ask_again(reference, dict(cases)[result.worst.case], tolerance)
    return result


def _ask_again(reference: TorchReference, feeds: Feeds, tolerance: float) -> None:
    first, second = reference.run(feeds), reference.run(feeds)
    if any(compare(first[name], second[name]).relative > tolerance for name in first):
        raise RandomModel("the model draws random numbers: PyTorch's own outputs differ from run to run")


def _sampled(outputs: int) -> int:
    """Values that a case keeps of each output: less where every layer's cache is one."""
    return max(_SAMPLED // 16, min(_SAMPLED, 4 * _SAMPLED // outputs))


def joined(checks: Mapping[str, Check]) -> Check:
    """The checks of all graphs of a model as one; case names then say which graph they are of."""
    if len(checks) == 1:
        return next(iter(checks.values()))
    every = list(checks.items())
    _, most = max(every, key=lambda item: (not item[1].worst.agreement.finite, item[1].verification.worst))
    verification = replace(
        most.verification,
        passed=all(check.verification.passed for _, check in every),
        cases=tuple(f"{part}: {case}" for part, check in every for case in check.verification.cases),
    )
    return Check(
        verification=verification,
        worst=most.worst,
        cases=tuple(row for _, check in every for row in check.cases),
        reference=_in_turn([check.reference for _, check in every]),
    )


def _in_turn(references: Sequence[tuple[ReferenceCase, ...]]) -> tuple[ReferenceCase, ...]:
    """A case of each graph, then the next: the file keeps the first ones that fit."""
    rows = itertools.zip_longest(*references)
    return tuple(case for row in rows for case in row if case is not None)


def _judge(found: list[CaseAgreement], kept: list[ReferenceCase], tolerance: float) -> Check:
    most = worst(found)
    verification = Verification(
        passed=most.agreement.finite and most.agreement.relative <= tolerance,
        against=f"PyTorch {torch.__version__.partition('+')[0]} eager",
        tolerance=tolerance,
        worst=most.agreement.relative,
        output=most.output,
        cases=tuple(dict.fromkeys(row.case for row in found)),
    )
    return Check(verification=verification, worst=most, cases=tuple(found), reference=tuple(kept))


def cases_for(directory: Path, part: Part, *, seed: int) -> list[tuple[str, Feeds]]:
    """At least five new shapes for a part's graph in `directory`, padded right and left where it takes a
    mask."""
    specs = input_specs(read_model(directory / part.file))
    settings = settings_of(directory)
    cases: list[tuple[str, Feeds]] = [*cases_of(specs, settings, seed=seed)]
    if is_cached(specs):
        feeds = cached_feeds(specs, geometry(settings), _CHUNK, np.random.default_rng([seed, len(cases)]))
        cases.append((CHUNK, feeds))
    return cases


def settings_of(directory: Path) -> Mapping[str, Any]:
    """The config.json of a directory, empty where there is none."""
    config = directory / "config.json"
    return read_json(config, trust_remote_code=True) if config.is_file() else {}


def write_reference(path: Path, result: Check) -> None:
    """Write `reference.npz` (at most 2 MB)."""
    save_reference(path, result.reference)


def tolerance_of(dtype: str) -> float:
    """The design's tolerance for a graph of this dtype."""
    return TOLERANCES[dtype]
