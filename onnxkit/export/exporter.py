"""`export_model`: a checkpoint becomes a verified model directory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxkit.artifact import Invocation, Manifest, check_target, normalize_task, publish, seal
from onnxkit.artifact.genai import check_genai
from onnxkit.errors import EnvironmentProblem, GateFailed, InputError, UsageError
from onnxkit.export.attempts import SHARED_DATA, Attempts, each_once
from onnxkit.export.checkpoint import Access, Checkpoint, open_checkpoint, quiet_hub
from onnxkit.export.phases import Phases
from onnxkit.export.quiet import no_compiler_cache, quiet_libraries
from onnxkit.export.report import (
    CHECKPOINT,
    CheckedOutput,
    ExportedGraph,
    ExportOptions,
    ExportReport,
    GenerationCheck,
    KeptQuantization,
    LevelTrial,
    OutputFile,
)
from onnxkit.progress import Progress
from onnxkit.runtime import opset_ceiling

if TYPE_CHECKING:
    from onnxkit.export.checking import Checker
    from onnxkit.export.levels import Candidate, Workshop
    from onnxkit.export.parts import Part
    from onnxkit.export.plan import Plan
    from onnxkit.export.reference import Check

REFERENCE_FILE = "reference.npz"
MIN_OPSET = 18


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
    if options.layout not in ("onnxkit", "optimum"):
        raise UsageError(f"no layout {options.layout!r}: onnxkit or optimum")
    if options.opset < MIN_OPSET:
        raise UsageError(f"opset {options.opset}: exports start at opset {MIN_OPSET}")
    _check_keep(options)
    ceiling = opset_ceiling()
    if options.opset > ceiling.opset:
        raise UsageError(
            f"opset {options.opset}: ONNX Runtime {ceiling.onnxruntime} takes at most {ceiling.opset}"
        )


def _check_keep(options: ExportOptions) -> None:
    if not options.keep_quantization:
        if options.accuracy_level is not None:
            raise UsageError("--accuracy-level does not apply without --keep-quantization")
        return
    if options.dtype != "fp32":
        raise UsageError(f"--keep-quantization does not apply to --dtype {options.dtype}, only to fp32")
    if options.adapter is not None:
        raise UsageError("--keep-quantization does not apply to --adapter: it is merged into float weights")
    if options.accuracy_level not in (None, 0, 1, 4):
        raise UsageError(f"--accuracy-level {options.accuracy_level}: 0, 1 (float32) or 4 (int8)")


def _access(options: ExportOptions) -> Access:
    return Access(
        revision=options.revision,
        subfolder=options.subfolder,
        token=options.token,
        offline=options.offline,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        adapter=options.adapter,
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


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What the check found; nothing where there was none."""

    check: Check | None = None
    greedy: GenerationCheck | None = None
    checked: str = CHECKPOINT


@dataclass(kw_only=True)
class _Job:
    """One export."""

    checkpoint: Checkpoint
    out: Path
    options: ExportOptions
    progress: Progress
    phases: Phases

    def run(self, invocation: Invocation) -> ExportReport:
        from onnxkit.export.checking import Checker
        from onnxkit.export.companions import write_companions

        shop = self._workshop()
        plan, options = shop.plan, self.options
        config = plan.config.to_dict()
        check_genai(plan.task, config, wanted=options.genai_config, progress=self.progress)
        self.progress.note(f"task {plan.task}, {options.dtype}, opset {options.opset}")
        if self.checkpoint.sparse:
            whole = (5 + 2 * plan.config.num_random_blocks) * plan.config.block_size
            self.progress.warn(
                f"exported with full attention, which PyTorch gives texts of up to {whole} tokens; to longer "
                "ones it gives blocks of it: their outputs differ"
            )
        weight = sum(file.stat().st_size for file in self.checkpoint.weight_files)
        with publish(self.out, overwrite=options.overwrite, need_bytes=weight) as staging:
            with self.phases("write"):
                write_companions(plan, staging, progress=self.progress)
            with Checker(shop, staging, options, self.progress) as checker:
                attempts = Attempts(shop, staging, checker, verify=options.verify, phases=self.phases)
                candidates = self._first_that_hold(attempts, plan)
                result = self._verified(attempts, checker, plan, staging)
            self._set_accuracy_level(plan, staging)
            with self.phases("write"):
                manifest = self._seal(staging, plan, attempts, result, candidates, invocation)
            return self._report(plan, attempts, result, candidates, manifest)

    def _workshop(self) -> Workshop:
        from functools import partial

        from onnxkit.export.levels import TORCH_DTYPES, Workshop
        from onnxkit.export.plan import make_plan
        from onnxkit.export.trace import empty_model

        with self.phases("load"):
            build = partial(empty_model, dtype=TORCH_DTYPES["fp32"])
            dtype = TORCH_DTYPES[self.options.dtype]
            optimum = self.options.layout == "optimum"
            plan = make_plan(self.checkpoint, self.options.task, build, dtype=dtype, optimum=optimum)
        options = self.options
        return Workshop(
            plan, dtype=options.dtype, opset=options.opset, phases=self.phases, keep=options.keep_quantization
        )

    def _first_that_hold(self, attempts: Attempts, plan: Plan) -> list[Candidate]:
        from onnxkit.export.levels import LEVELS

        candidates: list[Candidate] = []
        for part in plan.parts:
            candidate = attempts.make(part, LEVELS[self.options.exporter])
            if candidate is None:
                raise self._refusal(attempts, plan, part, candidates)
            candidates.append(candidate)
        return candidates

    def _refusal(
        self, attempts: Attempts, plan: Plan, part: Part, candidates: list[Candidate]
    ) -> GateFailed | InputError:
        """Why nothing is published: the last graph differs from PyTorch, or none could be made."""
        said = each_once([trial for trial in attempts.trials if trial.part == part.name])
        which = f" ({part.name})" if len(plan.parts) > 1 else ""
        check = attempts.checks.get(part.name)
        if check is None:
            kind = type(plan.config).__name__.removesuffix("Config")
            return InputError(f"{self.checkpoint.source} ({kind}) cannot be exported{which}: {said}")
        return self._difference(plan, attempts, _Result(check=check), f"{which} ({said})")

    def _difference(self, plan: Plan, attempts: Attempts, result: _Result, said: str) -> GateFailed:
        assert result.check is not None
        worst = result.check.worst
        return GateFailed(
            f"{self.checkpoint.source} is not exported: ONNX Runtime and PyTorch differ, worst in "
            f"output {worst.output} of case {worst.case!r} by {worst.agreement.relative:.1e} of its "
            f"scale{said}",
            self._report(plan, attempts, result, [], None),
        )

    def _verified(self, attempts: Attempts, checker: Checker, plan: Plan, staging: Path) -> _Result:
        """The comparisons of all graphs as one, and of all together; their reference data are written."""
        if not self.options.verify:
            self.progress.warn("not verified: the export was not compared with PyTorch (--no-verify)")
            return _Result()
        from onnxkit.export.reference import joined, write_reference

        with self.phases("verify"):
            check, greedy = checker.together(joined(attempts.checks))
            result = _Result(check=check, greedy=greedy, checked=checker.subject)
            if not check.verification.passed:
                raise self._difference(plan, attempts, result, "")
            if checker.subject == CHECKPOINT:
                write_reference(staging / REFERENCE_FILE, check)
        return result

    @property
    def _accuracy_level(self) -> int:
        given = self.options.accuracy_level
        return given if given is not None else 4 if self.options.keep_quantization else 0

    def _set_accuracy_level(self, plan: Plan, staging: Path) -> None:
        """The graphs were compared with PyTorch at level 0, which computes as PyTorch does."""
        from onnxkit.export.keep import set_accuracy_level

        if self._accuracy_level:
            for part in plan.parts:
                set_accuracy_level(staging / part.file, self._accuracy_level)

    def _kept(self, candidates: Sequence[Candidate]) -> KeptQuantization | None:
        from onnxkit.export.keep import describe

        kept = [each.kept for each in candidates if each.kept is not None]
        packing = self.checkpoint.packing
        form = packing.describe() if packing is not None else "GGUF"
        return describe(kept, form, self._accuracy_level) if kept else None

    def _seal(
        self,
        staging: Path,
        plan: Plan,
        attempts: Attempts,
        result: _Result,
        candidates: Sequence[Candidate],
        invocation: Invocation,
    ) -> Manifest:
        from onnxkit.export.interchange import write_export_json
        from onnxkit.export.levels import TORCH_DTYPES

        verification = result.check.verification if result.check is not None else None
        kept = self._kept(candidates)
        if not plan.generates:
            write_export_json(staging, plan, plan.parts[0], dtype=TORCH_DTYPES[self.options.dtype])
        return seal(
            staging,
            task=plan.task,
            components={part.name: part.file for part in plan.parts},
            invocation=invocation,
            parent=None,
            verified=verification if self._accuracy_level < 4 else None,
            measured={
                "level": _taken(attempts.trials).level, "trials": attempts.trials,
                "seconds": self.phases.seconds,
                **({"kept": kept, "verification": verification} if kept is not None else {}),
            },
            input_digest=self.checkpoint.digest(),
            genai_config=self.options.genai_config,
        )  # fmt: skip

    def _report(
        self,
        plan: Plan,
        attempts: Attempts,
        result: _Result,
        candidates: Sequence[Candidate],
        manifest: Manifest | None,
    ) -> ExportReport:
        files = sorted(manifest.files.items()) if manifest is not None else []
        weights = (*(part.file for part in plan.parts), *(f"{part.file}.data" for part in plan.parts))
        sizes = [entry.size_bytes for name, entry in files if name in (*weights, SHARED_DATA)]
        trial = _taken(attempts.trials) if candidates else attempts.trials[-1]
        return ExportReport(
            source=self.checkpoint.source,
            commit=self.checkpoint.commit,
            out=str(self.out),
            task=plan.task,
            model_class=plan.model_class,
            dtype=self.options.dtype,
            opset=self.options.opset,
            level=trial.level if candidates else None,
            level_reason=trial.reason,
            trials=tuple(attempts.trials),
            graphs=tuple(_graph(each, manifest) for each in candidates) if manifest is not None else (),
            files=tuple(OutputFile(name=name, size_bytes=entry.size_bytes) for name, entry in files),
            size_bytes=sum(sizes),
            seconds={name: round(value, 3) for name, value in self.phases.seconds.items()},
            total_s=round(self.phases.total(without="verify"), 3),
            verification=result.check.verification if result.check is not None else None,
            checks=_rows(result.check),
            checked=result.checked,
            generation=result.greedy,
            kept=self._kept(candidates),
        )


def _taken(trials: Sequence[LevelTrial]) -> LevelTrial:
    """Of the levels that were taken, one for each graph, the highest."""
    return max((trial for trial in trials if trial.accepted), key=lambda trial: trial.level)


def _graph(candidate: Candidate, manifest: Manifest) -> ExportedGraph:
    component = manifest.components[candidate.part.name]
    return ExportedGraph(
        part=candidate.part.name,
        file=component.file,
        level=candidate.level,
        inputs=component.inputs,
        outputs=component.outputs,
        regions=candidate.regions,
        nodes=len(candidate.model.graph),
        parameters=candidate.parameters,
    )


def _rows(check: Check | None) -> tuple[CheckedOutput, ...]:
    return tuple(
        CheckedOutput(
            part=each.component,
            case=each.case,
            output=each.output,
            max_abs=each.agreement.max_abs,
            relative=each.agreement.relative,
            cosine=each.agreement.cosine,
            finite=each.agreement.finite,
        )
        for each in (check.cases if check is not None else ())
    )
