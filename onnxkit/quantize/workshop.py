"""The float graphs of one call, and any quantized variant of them.

Graphs are loaded anew for each variant: weights stay on disk (`onnx_ir.ExternalTensor`), and rewriting
consumes the graph that it works on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxkit.artifact import ModelDir
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.shared_data import SharedData
from onnxkit.graph.unpacking import divide
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.expose import copy_weights
from onnxkit.quantize.codes.codebook import CodeBook
from onnxkit.quantize.codes.layer_error import decoded, layer_error, weight_rows
from onnxkit.quantize.formats import Format, IntegerFormat, Plan
from onnxkit.quantize.hardware import Hardware, hardware_for
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.operators import OPERATORS, Target
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.planning import Planner, wants_rows
from onnxkit.quantize.rewrite import prepare, rewrite
from onnxkit.quantize.schemes import Scheme
from onnxkit.quantize.select import Selection, refuse_unsuitable, select_all
from onnxkit.quantize.smoothing.bias_correction import bias_shift, correct_biases
from onnxkit.quantize.smoothing.smooth import Smoothing, repeat

FILE = "model.onnx"
SHARED = "model.onnx.data"
"""The weights of all graphs, where there are several: what two of them read stands once."""
SCRATCH = "variant.data"
"""The new weights of a scratch variant, beside those of the source."""

Change = Callable[[str, ir.Model, Sequence[Target]], None]
"""Changes the float graph of a component to an equivalent one, in place: smoothing, for instance."""


@dataclasses.dataclass(kw_only=True)
class FloatGraph:
    """A loaded graph, and its quantizable nodes in graph order."""

    model: ir.Model
    targets: tuple[Target, ...]


class Workshop:
    """Writes variants of one model.

    Attributes:
        selections: what is quantized and what is kept, by component. The nodes of its targets belong to
            graphs of their own: for names and sizes.
        changes: float-equivalent changes that every variant begins with.
        ranges: component -> value name -> range, for static formats.
        books: component -> what finds and remembers the codes of blocks.
    """

    def __init__(self, model: ModelDir, scheme: Scheme, options: QuantizeOptions) -> None:
        self.model, self.scheme, self.options = model, scheme, options
        self.hardware: Hardware = hardware_for(options.target)
        self.changes: list[Change] = []
        self._unwritten: dict[str, dict[str, Target]] = {}  # what `error` looks at: hundreds of times
        self.ranges: dict[str, Mapping[str, Range]] = {}
        self.books = {name: CodeBook() for name in self.files}
        graphs = {name: self._load(name) for name in self.files}
        self.selections: dict[str, Selection] = (
            dict.fromkeys(graphs, Selection(targets=(), kept=()))
            if scheme.way is None
            else select_all(graphs, scheme, options)
        )
        self.rows = {name: wants_rows(graph, self.selections[name].targets) for name, graph in graphs.items()}

    @property
    def files(self) -> dict[str, str]:
        """The file of each result: one graph is called model.onnx; several keep their names."""
        if len(self.model.components) == 1:
            return dict.fromkeys(self.model.components, FILE)
        return {name: Path(component.file).name for name, component in self.model.components.items()}

    def source(self, component: str) -> Path:
        """The file of an input graph."""
        return self.model.path / self.model.components[component].file

    def targets(self, component: str) -> tuple[Target, ...]:
        """The selected targets of a component."""
        return self.selections[component].targets

    def planner(self, component: str, *, data: bool) -> Planner:
        """What gives the targets of a component their formats."""
        return Planner(
            scheme=self.scheme, options=self.options, hardware=self.hardware,
            rows=self.rows[component], data=data,
        )  # fmt: skip

    def plans(self, *, data: bool) -> dict[str, Plan]:
        """The plan that the scheme begins with, for each component."""
        return {name: self.planner(name, data=data).plan(self.targets(name)) for name in self.files}

    def formats(self, *, data: bool) -> set[Format]:
        """Every format that some layer may get before the end: of a mixed scheme more than it begins with."""
        mixed = self.scheme.family == "mixed"
        planners = {name: self.planner(name, data=data) for name in self.files}
        return {
            format
            for name, planner in planners.items()
            for target in self.targets(name)
            for format in (planner.block_formats(target) if mixed else (planner.format_of(target),))
        }

    def graph(self, component: str) -> FloatGraph:
        """Load the float graph anew, with the changes made."""
        return self._changed(component, self._load(component), {t.name for t in self.targets(component)})

    def _changed(self, component: str, model: ir.Model, names: set[str]) -> FloatGraph:
        for change in self.changes:
            change(component, model, recognized(model, names))
        return FloatGraph(model=model, targets=recognized(model, names))

    def _planned(self, component: str, plan: Plan) -> tuple[FloatGraph, Plan]:
        """The float graph for a plan: parts of a packed product that get one format stay one product."""
        if not self.divides:
            return self.graph(component), plan
        model = self._opened(component)
        joined = divide(model, lambda one, other: plan.get(one) == plan.get(other))
        self.books[component].know(joined)
        plan = {**plan, **{name: plan[part] for name, part in joined.items() if part in plan}}
        names = {target.name for target in self.targets(component)} | set(joined)
        return self._changed(component, model, names), plan

    def write(self, plans: Mapping[str, Plan], folder: Path, *, scratch: bool = False) -> dict[str, Path]:
        """Write the variant of these plans into a folder; return its files by component.

        Args:
            scratch: for measuring only: the source's weights stand in the folder as they are, copied there by
                the first variant, and only what is new is written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        beside = SCRATCH if scratch else SHARED if len(self.files) > 1 else None
        shared = SharedData(folder / beside) if beside is not None else None
        written = {}
        for name, file in self.files.items():
            found, plan = self._planned(name, plans.get(name, {}))
            if self.options.bias_correction:
                self._correct(name, found, plan)
            rewrite(
                found.model, found.targets,
                plan,
                ranges=self.ranges.get(name), book=self.books[name],
            )  # fmt: skip
            path = folder / file
            if scratch:
                copy_weights(found.model, self.source(name), folder)
            save_model(found.model, path, shared=shared, linked=scratch)
            written[name] = path
        return written

    def take_statistics(self, component: str, found: Mapping[str, InputStatistics]) -> None:
        """Let codes be found by what the layers see; by the name of the value that they read, unsmoothed."""
        self.books[component] = CodeBook(
            {t.name: found[name] for t in self.targets(component) if (name := reads(t)) in found}
        )

    def smooth(self, component: str, done: Mapping[str, Smoothing]) -> None:
        """Smooth every graph of a component that is loaded from now on."""
        book = self.books[component]
        seen = {name: done[name].of(each) if name in done else each for name, each in book.statistics.items()}
        self.books[component] = CodeBook(seen)

        def change(one: str, model: ir.Model, targets: Sequence[Target]) -> None:
            if one == component:
                repeat(model, targets, done)

        self.changes.append(change)
        self._unwritten.pop(component, None)

    def _correct(self, component: str, found: FloatGraph, plan: Plan) -> None:
        """Add the mean of what integer weights do to a layer's output to its bias (Nagel et al. 2019)."""
        book, shifts = self.books[component], {}
        for target in found.targets:
            format, seen = plan.get(target.name), book.statistics.get(target.name)
            if isinstance(format, IntegerFormat) and target.kind == "linear" and seen is not None:
                weight = decoded(target, format, book)
                shifts[target.name] = bias_shift(weight_rows(target), weight, seen.mean)
        correct_biases(found.model, found.targets, shifts)

    def error(self, component: str, name: str, format: Format) -> float:
        """The error that a format makes in a layer's output: tr(ΔW H ΔWᵀ), H the mean of x xᵀ.

        Without a Hessian its diagonal, without any statistics the identity. ΔW is what is stored, decoded,
        less the weight; the codes come from the same book as those that are written.

        Args:
            component, name: of a target.
            format: any; a layer in an integer format counts its weight only.
        """
        if component not in self._unwritten:
            self._unwritten[component] = {each.name: each for each in self.graph(component).targets}
        return layer_error(self._unwritten[component][name], format, self.books[component])

    @property
    def divides(self) -> bool:
        """Whether the parts of packed products are layers of their own."""
        return self.scheme.family == "mixed"

    def _load(self, component: str) -> ir.Model:
        model = self._opened(component)
        if self.divides:
            divide(model, lambda one, other: False)
        return model

    def _opened(self, component: str) -> ir.Model:
        where = self.source(component)
        model = load_model(where)
        refuse_unsuitable(model, str(where))
        return prepare(model, str(where))


def recognized(model: ir.Model, names: set[str]) -> tuple[Target, ...]:
    """The targets of a graph that have these names, in graph order."""
    found = []
    for node in model.graph:
        operator = OPERATORS.get((node.domain, node.op_type))
        if operator is not None and node.name in names:
            target = operator.recognize(node)
            if isinstance(target, Target):
                found.append(target)
    return tuple(found)


def reads(target: Target) -> str:
    """The name of the value that a target computes with; empty for a lookup."""
    return "" if target.activation is None else str(target.activation.name)
