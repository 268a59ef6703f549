"""`export_model`: a checkpoint becomes a verified model directory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.artifact import Invocation, Manifest, Verification, check_target, normalize_task, publish, seal
from onnxkit.errors import EnvironmentProblem, GateFailed, InputError, OnnxkitError, ResourceError, UsageError
from onnxkit.export.checkpoint import Access, Checkpoint, open_checkpoint, quiet_hub
from onnxkit.export.phases import Phases
from onnxkit.export.quiet import no_compiler_cache, quiet_libraries
from onnxkit.export.report import (
    CheckedOutput,
    ExportOptions,
    ExportReport,
    LevelName,
    LevelTrial,
    OutputFile,
)
from onnxkit.measure.widened import open_for_check
from onnxkit.progress import Progress
from onnxkit.runtime import opset_ceiling
from onnxkit.safety import printable

if TYPE_CHECKING:
    from onnxkit.export.levels import Candidate, Workshop
    from onnxkit.export.plan import Plan
    from onnxkit.export.reference import Check

MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.npz"
MIN_OPSET = 18
_REASON = 300


def export_model(
    model: str | Path,
    out: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
    invocation: Invocation | None = None,
) -> ExportReport:
    """Export a checkpoint to ONNX and check it against PyTorch before it is published at `out`.

    Args:
        model: a local directory, or an id on the Hugging Face Hub.
        out: the directory to make.
        invocation: how the command line called, for the history.

    Raises:
        UsageError: an option that does not apply, an output that exists.
        InputError: a checkpoint that cannot be exported: no such, damaged, weights missing for the
            task, an architecture that no level can trace.
        UnsafeError: remote code, pickles, or paths that lead out of the checkpoint.
        EnvironmentProblem: a package is missing, the Hub cannot be reached.
        GateFailed: ONNX Runtime and PyTorch differ; the report lists every output.
    """
    progress = progress or Progress()
    invocation = invocation or Invocation(stage="export", options=asdict(options))
    out = Path(out)
    _check_options(options)
    check_target(out, overwrite=options.overwrite)
    phases = Phases()
    with phases("load"):
        checkpoint = open_checkpoint(str(model), _access(options))
    # The checkpoint is here: only its own code, if that was asked for, may still come from the Hub.
    local = checkpoint.commit is None or options.offline or not options.trust_remote_code
    with no_compiler_cache(), contextlib.ExitStack() as quiet:
        with phases("import"):
            _import_libraries()
        quiet.enter_context(quiet_hub(offline=local))
        quiet.enter_context(quiet_libraries())
        job = _Job(checkpoint=checkpoint, out=out, options=options, progress=progress, phases=phases)
        return job.run(invocation)


def _check_options(options: ExportOptions) -> None:
    if options.task != "auto":
        normalize_task(options.task)
    if options.exporter not in ("auto", "trace", "native"):
        raise UsageError(f"no exporter {options.exporter!r}: auto, trace or native")
    if options.dtype not in ("fp32", "fp16", "bf16"):
        raise UsageError(f"no dtype {options.dtype!r}: fp32, fp16 or bf16")
    if options.opset < MIN_OPSET:
        raise UsageError(f"opset {options.opset}: exports start at opset {MIN_OPSET}")
    ceiling = opset_ceiling()
    if options.opset > ceiling.opset:
        raise UsageError(
            f"opset {options.opset}: ONNX Runtime {ceiling.onnxruntime} takes at most {ceiling.opset}"
        )


def _access(options: ExportOptions) -> Access:
    return Access(
        revision=options.revision,
        subfolder=options.subfolder,
        token=options.token,
        offline=options.offline,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )


def _import_libraries() -> None:
    """Torch, transformers and what traces with them: seconds, so only when the input is known to be good.

    The garbage collector rests meanwhile, and never looks at the modules again: they live to the end, and
    walking through them took a fifth of an export's time.
    """
    gc.disable()
    try:
        from onnxkit.export import levels  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"export needs the package {error.name}: pip install 'onnxkit[export]'"
        ) from error
    finally:
        gc.freeze()
        gc.enable()


@dataclass(kw_only=True)
class _Job:
    """One export: what is known so far."""

    checkpoint: Checkpoint
    out: Path
    options: ExportOptions
    progress: Progress
    phases: Phases
    trials: list[LevelTrial] = field(default_factory=list)
    check: Check | None = None
    refused: bool = False

    def run(self, invocation: Invocation) -> ExportReport:
        from onnxkit.export.companions import write_companions
        from onnxkit.export.levels import LEVELS

        shop = self._workshop()
        plan, options = shop.plan, self.options
        self.progress.note(f"task {plan.task}, {options.dtype}, opset {options.opset}")
        weight = sum(file.stat().st_size for file in self.checkpoint.weight_files)
        with publish(self.out, overwrite=options.overwrite, need_bytes=weight) as staging:
            with self.phases("write"):
                text = any(given.name == "input_ids" for given in plan.signature.inputs)
                write_companions(self.checkpoint, staging, task=plan.task, text=text, progress=self.progress)
            candidate = self._first_that_holds(shop, LEVELS[options.exporter], staging)
            with self.phases("write"):
                manifest = self._seal(staging, plan, candidate, invocation)
            return self._report(shop, candidate, manifest)

    def _workshop(self) -> Workshop:
        from functools import partial

        from onnxkit.export.levels import TORCH_DTYPES, Workshop
        from onnxkit.export.plan import make_plan
        from onnxkit.export.trace import empty_model

        with self.phases("load"):
            build = partial(empty_model, dtype=TORCH_DTYPES["fp32"])
            plan = make_plan(self.checkpoint, self.options.task, build)
        return Workshop(plan, dtype=self.options.dtype, opset=self.options.opset, phases=self.phases)

    def _first_that_holds(self, shop: Workshop, levels: Sequence[LevelName], staging: Path) -> Candidate:
        for level in levels:
            if self.refused and level == "L2":
                continue  # decompositions bring no hook to a model that computes its attention by hand
            candidate = self._attempt(shop, level, staging)
            if candidate is not None:
                return candidate
        said = _each_once(self.trials)
        if self.check is not None:
            worst = self.check.worst
            raise GateFailed(
                f"{self.checkpoint.source} is not exported: ONNX Runtime and PyTorch differ, worst in "
                f"output {worst.output} of case {worst.case!r} by {worst.agreement.relative:.1e} of its "
                f"scale ({said})",
                self._report(shop, None, None),
            )
        kind = type(shop.plan.config).__name__.removesuffix("Config")
        raise InputError(f"{self.checkpoint.source} ({kind}) cannot be exported: {said}")

    def _attempt(self, shop: Workshop, level: LevelName, staging: Path) -> Candidate | None:
        """The level's graph, written to `staging` and checked, or None."""
        from onnxkit.export.levels import LevelRefused

        candidate = None
        try:
            candidate = shop.make(level)
            with self.phases("write"):
                write_graph(candidate, staging)
            reason = self._judge(shop, candidate, staging)
        except OnnxkitError as error:
            # Before there is a graph the checkpoint is at fault, afterwards (ONNX Runtime refuses) the level.
            if candidate is None or isinstance(error, ResourceError):
                raise
            self._give_up(level, error)
            return None
        except Exception as error:  # torch and its kin raise all kinds: the next level decides
            self.refused |= isinstance(error, LevelRefused)
            self._give_up(level, error)
            return None
        accepted = self.check is None or self.check.verification.passed
        self.trials.append(
            LevelTrial(
                level=level, accepted=accepted, reason=reason, attentions=candidate.attentions,
                attention_calls=candidate.attention_calls,
            )
        )  # fmt: skip
        return candidate if accepted else None

    def _give_up(self, level: LevelName, error: Exception) -> None:
        self.trials.append(LevelTrial(level=level, accepted=False, reason=_first_line(error)))

    def _judge(self, shop: Workshop, candidate: Candidate, staging: Path) -> str:
        """Check the written graph, and say how it went; `self.check` holds the figures."""
        count = candidate.attentions
        hooks = (
            f"{count} attention operators, as many as calls"
            if count is not None
            else "transformers' exporter"
        )
        if not self.options.verify:
            with self.phases("verify"):
                open_for_check(staging / MODEL_FILE, widen=self.options.dtype == "bf16")
            self.progress.warn("not verified: the export was not compared with PyTorch (--no-verify)")
            return f"{hooks}; not verified"
        with self.phases("verify"):
            self.check = self._compare(shop, candidate, staging)
        result = self.check.verification
        word = "within" if result.passed else "not within"
        return (
            f"{hooks}; worst difference {result.worst:.1e} ({result.output}), {word} {result.tolerance:.0e}"
        )

    def _compare(self, shop: Workshop, candidate: Candidate, staging: Path) -> Check:
        from onnxkit.export.reference import (
            TorchReference,
            cases_for,
            check,
            tolerance_of,
            write_reference,
        )

        session = open_for_check(staging / MODEL_FILE, widen=self.options.dtype == "bf16")
        reference = TorchReference(shop.plan, shop.loaded.model)
        cases = cases_for(staging, seed=self.options.seed)
        tolerance = tolerance_of(self.options.dtype)
        result = check(reference, session, cases, tolerance=tolerance, progress=self.progress)
        if result.verification.passed:
            write_reference(staging / REFERENCE_FILE, result)
        return result

    def _seal(self, staging: Path, plan: Plan, candidate: Candidate, invocation: Invocation) -> Manifest:
        from onnxkit.export.interchange import write_export_json
        from onnxkit.export.levels import TORCH_DTYPES

        write_export_json(staging, plan, graph_file=MODEL_FILE, dtype=TORCH_DTYPES[self.options.dtype])
        return seal(
            staging,
            task=plan.task,
            components={"model": MODEL_FILE},
            invocation=invocation,
            parent=None,
            verified=self.check.verification if self.check is not None else None,
            measured={"level": candidate.level, "trials": self.trials, "seconds": self.phases.seconds},
            input_digest=self.checkpoint.digest(),
        )

    def _report(self, shop: Workshop, candidate: Candidate | None, manifest: Manifest | None) -> ExportReport:
        component = manifest.components["model"] if manifest is not None else None
        files = sorted(manifest.files.items()) if manifest is not None else []
        sizes = [entry.size_bytes for name, entry in files if name.startswith(MODEL_FILE)]
        return ExportReport(
            source=self.checkpoint.source,
            commit=self.checkpoint.commit,
            out=str(self.out),
            task=shop.plan.task,
            model_class=shop.plan.model_class,
            dtype=self.options.dtype,
            opset=self.options.opset,
            level=candidate.level if candidate is not None else None,
            level_reason=self.trials[-1].reason,
            trials=tuple(self.trials),
            inputs=component.inputs if component is not None else (),
            outputs=component.outputs if component is not None else (),
            regions=candidate.regions if candidate is not None else {},
            nodes=len(candidate.model.graph) if candidate is not None else 0,
            parameters=_parameters(candidate) if candidate is not None else 0,
            files=tuple(OutputFile(name=name, size_bytes=entry.size_bytes) for name, entry in files),
            size_bytes=sum(sizes),
            seconds={name: round(value, 3) for name, value in self.phases.seconds.items()},
            total_s=round(self.phases.total(without="verify"), 3),
            verification=self._verification(),
            checks=_rows(self.check),
        )

    def _verification(self) -> Verification | None:
        return self.check.verification if self.check is not None else None


def write_graph(candidate: Candidate, staging: Path) -> None:
    """Write the graph (and, over 100 MB, its weights beside it), in place of an earlier candidate's."""
    from onnxkit.graph.files import save_model

    for old in staging.glob(f"{MODEL_FILE}*"):
        old.unlink()
    save_model(candidate.model, staging / MODEL_FILE)


def _parameters(candidate: Candidate) -> int:
    tensors: list[Any] = [value.const_value for value in candidate.model.graph.initializers.values()]
    return sum(int(tensor.size) for tensor in tensors if tensor is not None)


def _rows(check: Check | None) -> tuple[CheckedOutput, ...]:
    return tuple(
        CheckedOutput(
            case=each.case,
            output=each.output,
            max_abs=each.agreement.max_abs,
            relative=each.agreement.relative,
            cosine=each.agreement.cosine,
            finite=each.agreement.finite,
        )
        for each in (check.cases if check is not None else ())
    )


def _each_once(trials: Sequence[LevelTrial]) -> str:
    """Every reason with the levels that gave it: "L1, L2: no; L3: not either"."""
    levels: dict[str, list[str]] = {}
    for trial in trials:
        levels.setdefault(trial.reason, []).append(trial.level)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in levels.items())


def _first_line(error: BaseException) -> str:
    """The innermost cause, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    plain = kind in ("LevelRefused", "HookRefused", "NeedsDecomposition") or isinstance(error, OnnxkitError)
    said = (lines[0] if plain else f"{kind}: {lines[0]}") if lines else kind
    return printable(said, limit=_REASON)
