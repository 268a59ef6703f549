"""The three ways from a plan to a graph, and the clean-up that they share.

L1 traces with hooks and our own clean-up, L2 with hooks and torch's decompositions, L3 is
transformers' own exporter. Each raises what it raises; the exporter goes on to the next.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from transformers import PreTrainedModel

from onnxkit.errors import InputError
from onnxkit.export.keep import Kept, keep_blocks
from onnxkit.export.packed_sources import PackedParameters, packed_parameters
from onnxkit.export.parts import Part
from onnxkit.export.phases import Phases
from onnxkit.export.plan import Plan
from onnxkit.export.reference import LoadedModel, load_reference_model
from onnxkit.export.report import LevelName
from onnxkit.export.trace import PREFIX, empty_model, trace
from onnxkit.export.trace import LevelRefused as LevelRefused
from onnxkit.export.weights import (
    DerivedWeights,
    LoadedWeights,
    StreamedWeights,
    Weights,
    WrongShape,
    attach,
    tied_names,
)
from onnxkit.graph import portable, regions
from onnxkit.graph.files import save_model, set_opset
from onnxkit.graph.names import name_by_module
from onnxkit.graph.passes import WidenUnsupportedBfloat16, clean_up
from onnxkit.graph.shared_data import SharedData

LEVELS: Mapping[str, tuple[LevelName, ...]] = {
    "auto": ("L1", "L2", "L3"),
    "trace": ("L1", "L2"),
    "native": ("L3",),
}
"""`exporter` option → the levels to try, in order."""

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

_CONVERTIBLE = 25
"""onnxscript's newest target; what exports consist of has not changed since."""

_HEAD_PREFIX = "head."
_CONSTANT = "lifted_tensor_"
"""How torch calls a tensor that a model makes of Python numbers while it runs."""
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph for one part, ready to be written and checked.

    Attributes:
        attentions, attention_calls: see `LevelTrial`; None for L3.
        regions: number of semantic regions by operator.
        parameters: number of weights.
        kept: which weights are read in blocks; None where that was not asked for.
    """

    part: Part
    level: LevelName
    model: ir.Model
    regions: Mapping[str, int]
    attentions: int | None
    attention_calls: int | None
    parameters: int
    kept: Kept | None = None


class Workshop:
    """Makes candidates from one plan; the loaded model is shared with the check.

    Args:
        keep: the products of quantized weights read their blocks (see `keep`).
    """

    def __init__(self, plan: Plan, *, dtype: str, opset: int, phases: Phases, keep: bool = False) -> None:
        self.plan, self.phases = plan, phases
        self._dtype, self._opset, self._keep = TORCH_DTYPES[dtype], opset, keep

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """The checkpoint in PyTorch, loaded when it is first needed."""
        return load_reference_model(self.plan)

    @functools.cached_property
    def packed(self) -> PackedParameters:
        """The checkpoint's quantized weights that the graphs can read as they are."""
        return packed_parameters(self.plan, self.empty(), lambda: self.loaded.model)

    def with_plan(self, plan: Plan) -> Workshop:
        """A workshop for another plan of the same export."""
        dtype = next(name for name, dtype in TORCH_DTYPES.items() if dtype == self._dtype)
        return Workshop(plan, dtype=dtype, opset=self._opset, phases=self.phases, keep=self._keep)

    def empty(self) -> PreTrainedModel:
        """The model without weights."""
        return empty_model(self.plan.build, self.plan.config, dtype=self._dtype)

    def make(self, part: Part, level: LevelName) -> Candidate:
        """One level's graph of one part.

        Raises:
            InputError: the checkpoint lacks weights that the graph needs.
            Exception: the level does not work for this model.
        """
        candidate = self._native(part) if level == "L3" else self._traced(part, level)
        if not self._keep:
            return candidate
        with self.phases("convert"):
            kept = keep_blocks(candidate.model, self.packed.weights)
        kept.floats.update(self.packed.floats)
        return replace(candidate, kept=kept)

    def _traced(self, part: Part, level: LevelName) -> Candidate:
        with self.phases("load"):
            model = self.empty()
            ties = tied_names(model)
        traced = trace(part, model, dtype=self._dtype, decompose=level == "L2", phases=self.phases)
        with self.phases("convert"):
            self._attach(part, traced.model, model, traced.buffers, ties)
            counts = finish(traced.model, opset=self._opset, prefix=PREFIX)
        return Candidate(
            part=part, level=level, model=traced.model, regions=counts, attentions=traced.attentions,
            attention_calls=traced.attention_calls, parameters=_parameters(traced.model),
        )  # fmt: skip

    def _attach(
        self,
        part: Part,
        graph: ir.Model,
        model: PreTrainedModel,
        buffers: Mapping[str, torch.Tensor],
        ties: Mapping[str, list[str]],
    ) -> None:
        weights = self._weights(model)
        try:
            missing = attach(graph.graph, weights, buffers=buffers, ties=ties, prefix=PREFIX)
        except WrongShape as error:
            raise InputError(f"{self.plan.checkpoint.source}: weights and config differ: {error}") from error
        if isinstance(part.run, torch.nn.Module):
            head = LoadedWeights(part.run)
            attach(graph.graph, head, buffers={}, ties={}, prefix=_HEAD_PREFIX, keep_prefix=True)
        if any(_CONSTANT in name for name in missing):
            raise LevelRefused("the model makes a constant in mid-run, and a trace does not have its values")
        if missing:
            raise InputError(missing_weights(self.plan, missing))

    def _weights(self, model: PreTrainedModel) -> Weights:
        files = self.plan.checkpoint.weight_files
        streamed = StreamedWeights(files, model, self.plan.checkpoint.packing) if files else None
        if streamed is not None and streamed.complete:
            return DerivedWeights(streamed, model)
        return LoadedWeights(self.loaded.model, self.loaded.missing)

    def _native(self, part: Part) -> Candidate:
        with self.phases("load"):
            model = self.loaded.model
            if self._dtype != torch.float32:
                model = copy.deepcopy(model)
        from onnxkit.export.native import export_native  # a third of a second that few exports need

        exported = export_native(part, model, dtype=self._dtype, phases=self.phases)
        with self.phases("convert"):
            used = {name for name, value in exported.graph.initializers.items() if value.uses()}
            missing = [name for name in self.loaded.missing if name in used]
            if missing:
                raise InputError(missing_weights(self.plan, missing))
            counts = finish(exported, opset=self._opset, prefix="")
        return Candidate(
            part=part, level="L3", model=exported, regions=counts, attentions=None, attention_calls=None,
            parameters=_parameters(exported),
        )  # fmt: skip


def _parameters(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.size) for tensor in tensors if tensor is not None)


def write_graph(candidate: Candidate, directory: Path, shared: SharedData | None) -> None:
    """Write a part's graph in place of an earlier candidate's; its weights go to `shared` or, over 100 MB,
    beside it."""
    file = directory / candidate.part.file
    for old in (file, directory / f"{file.name}.data"):
        if shared is None or old != shared.path:
            old.unlink(missing_ok=True)
    save_model(candidate.model, file, shared=shared)


def missing_weights(plan: Plan, names: Sequence[str]) -> str:
    """The message for a checkpoint that lacks weights; transformers would make random ones up."""
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return (
        f"{plan.checkpoint.source} lacks weights that {plan.task} needs: {shown}; "
        "was it trained for this task, and is every layer of config.json in it?"
    )


def finish(model: ir.Model, *, opset: int, prefix: str) -> dict[str, int]:
    """Clean a converted graph, write its semantic operators out, name everything, annotate the regions.

    Returns:
        the number of regions by operator.
    """
    if model.functions:  # torchlib leaves some operators as functions
        common.InlinePass()(model)
    clean_up(model)
    found = portable.lower(model, prefix=prefix, opset=opset)
    common.RemoveUnusedNodesPass()(model)
    set_opset(model, 18)
    if opset > 18:
        from onnxscript import version_converter

        version_converter.convert_version(model, min(opset, _CONVERTIBLE), fallback=False)
        set_opset(model, opset)
    WidenUnsupportedBfloat16()(model)
    name_by_module(model, prefix=prefix)
    for region in found:
        regions.annotate(region)
    model.producer_name = "onnxkit"
    model.producer_version = None
    model.graph.name = "main"
    return dict(Counter(region.op for region in regions.find_regions(model)))
