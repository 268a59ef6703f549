"""Searching for plans: variants are written by the workshop, measured on the bench, and remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from onnxkit.artifact import ModelDir, copy_companions
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.evaluate import is_labelled
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.formats import Format
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.search.bench import Bench
from onnxkit.quantize.search.decide import Decision, Tools, decide, decide_mixed
from onnxkit.quantize.search.journal import Journal, journal_beside, search_key
from onnxkit.quantize.search.quality import Gates, Plans, Quality, SliceDrop, Trial
from onnxkit.quantize.search.units import Layer, Unit, units_of
from onnxkit.quantize.workshop import Workshop
from onnxkit.quantize.yardstick import Yardstick
from onnxkit.runtime import RuntimeOptions

_LIMITS = ("max_drop", "min_cosine", "max_kl", "max_worst_slice")
_NO_MATTER = {*_LIMITS, "bits_per_weight", "overwrite", "measure", "genai_config", "threads"}
"""Options that change neither a variant nor its figures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searcher:
    """What a search of one call works with.

    Attributes:
        out: the directory that is made; the journal lies beside it,
        until: and stays there until this is left.
        scratch: a folder of its own for variants.
    """

    workshop: Workshop
    yardstick: Yardstick
    calibration: DataSet | None
    out: Path
    until: ExitStack
    scratch: Path
    runtime: RuntimeOptions
    progress: Progress

    def decide(self, plans: Plans) -> Decision:
        """The plans that are written in the end: those given, unless the scheme or a limit wants a search."""
        options, units = self.workshop.options, units_of(layers_of(self.workshop, plans))
        limits = gates(options)
        if self.workshop.scheme.family != "mixed" and not limits:
            return Decision(plans=plans)
        if self.workshop.scheme.family != "mixed":
            return decide(units, plans, limits, self.tools())
        candidates = {unit: self._candidates(unit, floats=bool(limits)) for unit in units}
        bits = options.bits_per_weight
        return decide_mixed(units, candidates, limits, self.tools(), bits_per_weight=bits)

    def tools(self) -> Tools:
        """Measure variants in scratch folders; what an interrupted call has measured is known."""
        journal = self.until.enter_context(journal_beside(self.out, self._key()))
        if journal.found:
            self.progress.note(f"going on where a search stopped; variants measured before: {journal.found}")
        return Tools(
            quick=self._trial(journal, quick=True),
            full=self._trial(journal, quick=False),
            error_of=self._error_of,
            progress=self.progress,
        )

    def _trial(self, journal: Journal, *, quick: bool) -> Trial:
        workshop = self.workshop
        self.scratch.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            workshop.model, self.yardstick,
            columns=workshop.options.columns, runtime=self.runtime, quick=quick, scratch=self.scratch,
        )  # fmt: skip

        def measure(plans: Plans) -> Quality:
            folder = self.scratch / "variant"
            first = not folder.exists()
            files = workshop.write(plans, folder, scratch=True)
            if first:
                copy_companions(workshop.model, folder)
            return bench.measure(folder, files)

        return journal.trial(measure, "quick" if quick else "full")

    def _error_of(self, unit: Unit, format: Format) -> float:
        component, name = unit.keys[0]
        return self.workshop.error(component, name, format)

    def _candidates(self, unit: Unit, *, floats: bool) -> Sequence[Format | None]:
        """4 and 8 bits; a limit may ask for float, too."""
        component, name = unit.keys[0]
        planner = self.workshop.planner(component, data=self.workshop.books[component].seen)
        target = next(each for each in self.workshop.targets(component) if each.name == name)
        found: list[Format | None] = list(dict.fromkeys(planner.block_formats(target)))
        return [*found, None] if floats else found

    def _key(self) -> str:
        options = {
            field.name: getattr(self.workshop.options, field.name)
            for field in dataclasses.fields(self.workshop.options)
            if field.name not in _NO_MATTER
        }
        data: dict[str, str] = {"measured on": self.yardstick.name}
        if self.calibration is not None:
            data["calibration"] = self.calibration.digest()
        if self.yardstick.data is not None:
            data["eval"] = self.yardstick.data.digest()
        return search_key(self.workshop.model.digest(), options, data)


def gates(options: QuantizeOptions) -> Gates:
    """The limits that the caller set."""
    return Gates(**{name: getattr(options, name) for name in _LIMITS})


def check_limits(model: ModelDir, yardstick: Yardstick, options: QuantizeOptions) -> None:
    """Refuse a limit on what the samples cannot show, before any work is done for it.

    Raises:
        UsageError: names the limit, and what it needs.
    """
    data = yardstick.data
    text = data is not None and generates(model)
    labelled = data is not None and data.task is not None and is_labelled(data.samples[0])
    worst = SliceDrop(name="", before=0.0, after=0.0, drop=0.0, samples=0) if labelled else None
    drop = 0.0 if labelled or text else None
    gates(options).broken(Quality(cosine=1.0, kl=0.0 if text else None, drop=drop, worst_slice=worst))


def layers_of(workshop: Workshop, plans: Mapping[str, Mapping[str, Format]]) -> list[Layer]:
    """The layers that plans name, in graph order."""
    return [
        Layer(
            component=component, name=target.name, op_type=target.node.op_type,
            weight=str(target.weight.name), parameters=target.parameters, depth=target.depth,
        )
        for component, plan in plans.items()
        for target in workshop.targets(component)
        if target.name in plan
    ]  # fmt: skip
