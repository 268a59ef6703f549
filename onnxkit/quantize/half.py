"""The whole graph in float16 or bfloat16, but for what the samples show to need float32.

Three reasons keep a node in float32: its values leave float16's range, a stored value of it does, or the
outputs lose more than `LIMIT`. The last is searched for: layers first, then nodes. float16 is judged as if
every kernel rounded its result (`graph.upcast`): ONNX Runtime's CPU computes it in float32 between casts and
would show less. bfloat16 is judged by its weights, as `export` and `optimize` do; to round each result
to its 8 bits moves the outputs of a deep model by half their size on random inputs, whatever stays float32.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.graph.files import save_model
from onnxkit.graph.half_precision import LARGEST, overflowing, search_kept, stages, to_half
from onnxkit.graph.upcast import half_to_fp32
from onnxkit.measure.agreement import TOLERANCES, CaseAgreement, compare_sessions, run_case, worst
from onnxkit.progress import Progress
from onnxkit.quantize.report import KeptLayer
from onnxkit.runtime import RuntimeOptions, Session, open_session

HalfName = Literal["fp16", "bf16"]
Cases = Sequence[tuple[str, Mapping[str, np.ndarray[Any, Any]]]]

LIMIT = TOLERANCES["bf16"]
"""The largest difference over the largest output that half precision may make. SmolLM2 in float16, each
result rounded, makes 0.012 on text and 0.038 on random inputs; what overflows or cancels makes far more."""

MOST_CASES = 16
"""Inputs that a trial runs at most: a search takes up to a dozen trials."""

_TYPES: Mapping[HalfName, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_FULL: Mapping[HalfName, str] = {"fp16": "float16", "bf16": "bfloat16"}
_ON_A_CPU: Mapping[HalfName, str] = {
    "fp16": "float16 on a CPU is computed in float32 between casts: half the file, but no faster",
    "bf16": "no CPU kernel takes bfloat16: the result runs on a GPU only; here it is checked as float32,"
    " which it is cast to, and its speed is not measured",
}
_ON_A_GPU: Mapping[HalfName, str] = {
    "fp16": "checked and timed on this CPU, in float32 between casts; `onnxkit profile --ep cuda` times it on"
    " the GPU",
    "bf16": "checked on this CPU as float32, which it is cast to; `onnxkit profile --ep cuda` times it on the"
    " GPU",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfOutcome:
    """One graph, converted.

    Attributes:
        model: in half precision; its weights are converted while it is saved.
        converted: number of nodes that compute in half precision.
        kept: nodes that stay float32 although their operator takes half precision, and those whose weights
            do as it does not, and why, in graph order.
        lost: the largest difference over the largest output, judged as this file says.
        output: where that is.
    """

    model: ir.Model
    converted: int
    kept: tuple[KeptLayer, ...]
    lost: float
    output: str


def announce(dtype: HalfName, target: str | None, progress: Progress) -> None:
    """Warn of what half precision is on a CPU; of a GPU say what of it can be seen on this machine."""
    if target == "cuda":
        progress.note(_ON_A_GPU[dtype])
    else:
        progress.warn(_ON_A_CPU[dtype])


def convert(
    load: Callable[[], ir.Model],
    reference: Session,
    dtype: HalfName,
    cases: Cases,
    scratch: Path,
    *,
    keep: Mapping[str, str],
    component: str = "model",
    runtime: RuntimeOptions,
    progress: Progress,
) -> HalfOutcome:
    """Convert one graph, whose outputs keep within `LIMIT`.

    Args:
        load: gives the float32 graph, prepared; called once a trial.
        reference: the float32 graph, loaded.
        cases: named inputs to judge on, float32; the first `MOST_CASES`.
        scratch: a directory for trial files.
        keep: names of nodes that stay float32 -> why.
        component: for the report.
        runtime: of the trials.

    Raises:
        InputError: a weight is NaN or infinite, or ONNX Runtime does not take the graph or the inputs; it
            names the sample.
    """
    model, cases = load(), cases[:MOST_CASES]
    refuse_unusable(model)
    reasons = dict(keep)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        trials = _Trials(load, reference, dtype, cases, Path(folder), runtime)
        if dtype == "fp16":
            found = overflowing(model, [feeds for _, feeds in cases], scratch)
            limit = f"{LARGEST[ir.DataType.FLOAT16]:.0f}"
            reasons = dict.fromkeys(found, f"its values come near float16's largest, {limit}") | reasons
        trials.always = frozenset(reasons)
        parts = stages(model)
        del model
        progress.note(f"looking for what {_FULL[dtype]} does not hold")
        searched = _search(parts, trials)
    loss = _loss(trials.seen[frozenset()], dtype)
    reasons = dict.fromkeys(searched or (), loss) | reasons
    if searched is None:
        progress.warn(f"{component}: {loss}, and no less with everything in float32")
    return _outcome(load(), dtype, reasons, component, trials.seen[frozenset(searched or ())])


def refuse_unusable(model: ir.Model) -> None:
    """Raise InputError for a weight that is NaN or infinite; a mask is 0 or 1 beside -inf, or looked up."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < 2:
            continue
        array = tensor.numpy()
        finite = np.isfinite(array)
        looked_up = all(use.node.op_type == "Gather" for use in value.uses())
        mask = not np.isnan(array).any() and (looked_up or np.isin(array[finite], (0.0, 1.0)).all())
        if finite.all() or mask:
            continue
        readers = sorted({str(use.node.name) for use in value.uses()})
        raise InputError(
            f"cannot convert layer '{readers[0] if readers else 'unknown'}': a weight is NaN or infinite "
            f"(tensor '{value.name}')"
        )


class _Trials:
    """Writes variants with some nodes kept in float32, and says whether the outputs are near enough.

    Attributes:
        always: nodes that stay float32 in every variant.
        seen: the worst output of each variant, by what else it keeps.
    """

    def __init__(
        self,
        load: Callable[[], ir.Model],
        reference: Session,
        dtype: HalfName,
        cases: Cases,
        folder: Path,
        runtime: RuntimeOptions,
    ) -> None:
        """Run the reference on the cases: one that it does not take is the sample's fault."""
        for case, feeds in cases:
            run_case(reference, case, feeds)
        self._load, self._reference, self._dtype, self._cases = load, reference, dtype, cases
        self._path, self._runtime = folder / "trial.onnx", runtime
        self.always: frozenset[str] = frozenset()
        self.seen: dict[frozenset[str], CaseAgreement] = {}

    def passes(self, keep: Collection[str]) -> bool:
        """Whether the outputs keep the tolerance with these nodes in float32; `seen` knows by how much."""
        names = frozenset(keep)
        if names not in self.seen:
            model = self._load()
            to_half(model, _TYPES[self._dtype], keep=self.always | names)
            half_to_fp32(model, _TYPES[self._dtype], rounded=self._dtype == "fp16")
            save_model(model, self._path)
            session = open_session(self._path, self._runtime)
            self.seen[names] = worst(compare_sessions(self._reference, session, self._cases))
        found = self.seen[names].agreement
        return found.finite and found.relative <= LIMIT


def _search(parts: Sequence[Sequence[str]], trials: _Trials) -> tuple[str, ...] | None:
    """Few layers that must stay float32, then few nodes of them; None where that does not suffice."""
    found = search_kept(parts, trials.passes)
    if not found:
        return found
    return search_kept([[name] for name in found], trials.passes)


def _loss(found: CaseAgreement, dtype: HalfName) -> str:
    agreement = found.agreement
    much = f"{agreement.relative:.1e} of its largest value" if agreement.finite else "its finiteness"
    what = f"all in {_FULL[dtype]}, {found.output} loses {much} ({found.case})"
    return f"{what}, more than {LIMIT:.0e}"


def _outcome(
    model: ir.Model,
    dtype: HalfName,
    reasons: Mapping[str, str],
    component: str,
    found: CaseAgreement,
) -> HalfOutcome:
    kinds = {str(node.name): node.op_type for node in model.graph}
    result = to_half(model, _TYPES[dtype], keep=frozenset(reasons))
    unable = f"takes no {_FULL[dtype]} in opset {model.opset_imports.get('', 1)}"
    why = {name: f"{kinds[name]} {unable}" for name in result.unable}
    why |= dict.fromkeys(result.kept, f"{_FULL[dtype]} does not hold a value stored for it")
    why |= dict.fromkeys(result.turned, "ONNX Runtime would fuse a product with its Transpose, and crash")
    why |= reasons
    names = {*result.kept, *result.unable}
    kept = tuple(
        KeptLayer(name=name, op_type=kind, reason=why[name], component=component)
        for name, kind in kinds.items()
        if name in names
    )
    return HalfOutcome(
        model=model, converted=result.converted, kept=kept,
        lost=found.agreement.relative, output=found.output,
    )  # fmt: skip


__all__ = [
    "LIMIT", "Cases", "HalfName", "HalfOutcome", "announce", "convert", "refuse_unusable",
]  # fmt: skip
