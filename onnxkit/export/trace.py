"""Levels L1 and L2: trace a model without weights, one operator per attention, mask and rotation."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from onnxkit.export import convert, fx
from onnxkit.export.handwritten import is_left, say_attention, say_padding
from onnxkit.export.hooks import IMPLEMENTATION, counted_attention, hooked, moved, register
from onnxkit.export.parts import Part, run_part
from onnxkit.export.periods import first_layers, layers_to_trace, shortened
from onnxkit.export.phases import Phases
from onnxkit.export.refusals import asks_for_values
from onnxkit.export.ropes import prepare
from onnxkit.export.signature import (
    ENCODER_LENGTH,
    ENCODER_MASK,
    KEPT_LOGITS,
    PRESENT,
    TOTAL_LENGTH,
    Signature,
)
from onnxkit.graph import semantic
from onnxkit.graph.layers import NotRepeating, clone_layers

POSITIONS = "position_ids"
LOGITS_LENGTH = "num_logits"
"""Axis of `logits`: as long as the input, or `num_logits_to_keep`."""
PREFIX = "model."
"""What stands before every parameter name and module path of a trace: the wrapper's attribute."""


class LevelRefused(Exception):
    """A level that made a graph which must not be taken."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A traced graph, still with semantic operators.

    Attributes:
        buffers: the values of the model's buffers (position ids, rotary frequencies), by name.
        attentions, attention_calls: attention operators in the graph, and calls of attention modules.
    """

    model: ir.Model
    buffers: Mapping[str, torch.Tensor]
    attentions: int
    attention_calls: int


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within the block parameters lose their storage as they are registered; buffers keep theirs."""
    original = torch.nn.Module.register_parameter

    def register(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            empty = torch.empty_like(parameter, device="meta")
            replaced = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            replaced.__dict__.update(parameter.__dict__)
            parameter = replaced
        original(self, name, parameter)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


def empty_model(
    build: Callable[..., PreTrainedModel], config: PretrainedConfig, *, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model with our attention, if it lets us, whose parameters have no storage; buffers are real."""
    register()
    own = {"experts_implementation": IMPLEMENTATION, "dtype": dtype}
    with no_init_weights(), _parameters_on_meta():
        try:
            model: Any = build(copy.deepcopy(config), attn_implementation=IMPLEMENTATION, **own)
        except KeyError as error:
            if error.args != (IMPLEMENTATION,):
                raise
            # A model that looks its attention up in a table of its own: only an adapter can speak for it.
            model = build(copy.deepcopy(config), attn_implementation="eager", **own)
            model.config._attn_implementation = IMPLEMENTATION
    model.tie_weights()
    prepare(model)
    empty: PreTrainedModel = model.eval()
    return empty


class Wrapper(torch.nn.Module):
    """Positional inputs in, a tuple of the part's outputs out; the model computes in `dtype`."""

    def __init__(self, part: Part, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        run = part.run
        self.head = copy.deepcopy(run).to("meta") if isinstance(run, torch.nn.Module) else run
        self._part, self._dtype = part, dtype

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the part."""
        inputs = dict(zip((given.name for given in self._part.signature.inputs), values, strict=True))
        return tuple(run_part(self._part, self.model, inputs, self._dtype, run=self.head).values())


def trace(
    part: Part, model: PreTrainedModel, *, dtype: torch.dtype, decompose: bool, phases: Phases
) -> Traced:
    """Trace one part of `model` (from `empty_model` with `IMPLEMENTATION`) and convert it.

    Attention that the semantic operator does not say is traced as the model computes it.

    Raises:
        Exception: whatever torch raises when the model cannot be traced this way; the caller goes
            on to the next level.
    """
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    moved(model, "meta")
    try:
        return _traced(part, model, buffers, dtype=dtype, decompose=decompose, phases=phases)
    except LevelRefused:
        pass
    except Exception:
        if _speaks(part, model, dtype):
            raise
    model.config._attn_implementation = "eager"
    return _traced(part, model, buffers, dtype=dtype, decompose=decompose, phases=phases)


def _speaks(part: Part, model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether the model's attention takes its masks and its past from the hooks.

    Some compute by hand on what a cache returns: they get the concatenation, and no attention regions.
    """
    sample = {name: value.to("meta") for name, value in part.signature.sample().items()}
    sample.pop(KEPT_LOGITS, None)
    try:
        with torch.no_grad(), hooked(model):
            run_part(part, model, sample, dtype)
    except Exception as error:  # a past that is not there makes models stumble in all kinds of ways
        return asks_for_values(error)  # which it would with its own attention, too
    return True


def _traced(
    part: Part,
    model: PreTrainedModel,
    buffers: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    decompose: bool,
    phases: Phases,
) -> Traced:
    """Trace a few layers and clone the others, or all of them."""
    plan = layers_to_trace(part, model, PREFIX)
    if plan is not None:
        with contextlib.suppress(NotRepeating, LookupError), shortened(model, plan, PREFIX):
            beginning = first_layers(part, plan.traced)
            traced = _all_traced(beginning, model, buffers, dtype=dtype, decompose=decompose, phases=phases)
            with phases("convert"):
                clone_layers(traced.model, plan)
            count = sum(node.op_type in semantic.ATTENTIONS for node in traced.model.graph)
            calls = traced.attention_calls // plan.traced * len(plan.kinds)
            return dataclasses.replace(traced, attentions=count, attention_calls=calls)
    return _all_traced(part, model, buffers, dtype=dtype, decompose=decompose, phases=phases)


def _all_traced(
    part: Part,
    model: PreTrainedModel,
    buffers: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    decompose: bool,
    phases: Phases,
) -> Traced:
    wrapper = Wrapper(part, model, dtype).eval()
    sample = tuple(value.to("meta") for value in part.signature.sample().values())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(hooked(model))
        translations = stack.enter_context(_patched()) if decompose else {}
        calls = stack.enter_context(counted_attention(part.entry(model)))
        with phases("trace"):
            shapes = (dynamic_shapes(part.signature),)
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph that it gives up
                program = torch.export.export(wrapper, sample, dynamic_shapes=shapes, strict=False)
            traced_calls = calls.count
        attentions = _attentions(program)
        by_hand = model.config._attn_implementation == "eager"
        if attentions < traced_calls and not (by_hand and part.signature.cached):
            say_attention(program)
            attentions = _attentions(program)
        # Said before the conversion, which costs most.
        if attentions < traced_calls and not by_hand and is_left(program):
            raise LevelRefused(f"the trace holds {attentions} attention operators for {traced_calls} calls")
        with phases("convert"):
            say_padding(program)
            converted = convert.to_onnx(program, decompose=decompose, translations=translations)
    name_boundary(converted, part.signature)
    return Traced(model=converted, buffers=buffers, attentions=attentions, attention_calls=traced_calls)


def _attentions(program: ExportedProgram) -> int:
    counts = fx.operator_counts(program)
    return counts.get("attention", 0) + counts.get("cached_attention", 0)


def dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """`Dim.DYNAMIC` for every named axis; a named `Dim` would clash with limits that models assert."""
    return tuple(dict.fromkeys(given.dynamic(), Dim.DYNAMIC) for given in signature.inputs)


@contextlib.contextmanager
def _patched() -> Iterator[Mapping[Any, Any]]:
    """Transformers' own patches and translations for torch's exporter."""
    from transformers.exporters import exporter_onnx
    from transformers.exporters.utils import apply_patches

    with apply_patches("dynamo"), apply_patches("onnx"):
        yield exporter_onnx._ONNX_TRANSLATION_TABLE


def name_boundary(model: ir.Model, signature: Signature) -> None:
    """Name inputs, outputs and their dynamic axes as the signature does, everywhere in the graph.

    Inputs with a default become optional. Positions that the model takes and does not read (where a bias
    stands for them) are left out.

    Raises:
        ValueError: the trace fixed an axis that must stay dynamic, or dropped an input.
    """
    graph = model.graph
    if len(graph.inputs) != len(signature.inputs) or len(graph.outputs) != len(signature.outputs):
        raise ValueError("the trace dropped inputs or outputs")
    names: dict[str, str] = {}
    for value, given in zip(graph.inputs, signature.inputs, strict=True):
        value.name = given.name
        for axis, name in given.dynamic().items():
            size = value.shape[axis] if value.shape is not None else None
            if not isinstance(size, ir.SymbolicDim):
                raise ValueError(f"the trace fixed {given.name}'s {name} at {size}")
            names[str(size.value)] = name
    for value, name in zip(graph.outputs, signature.outputs, strict=True):
        value.name = name
        if name.startswith(PRESENT) and value.shape is not None:
            names.setdefault(str(value.shape[2]), ENCODER_LENGTH if ".encoder." in name else TOTAL_LENGTH)
        if name == ENCODER_MASK and value.shape is not None:
            names.setdefault(str(value.shape[1]), ENCODER_LENGTH)
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])
    _settle_optional(graph, signature)


def _settle_optional(graph: ir.Graph, signature: Signature) -> None:
    defaults = {given.name: given.default for given in signature.inputs if given.default is not None}
    for value in [v for v in graph.inputs if v.name in defaults]:
        value.const_value = ir.tensor(np.array(defaults[str(value.name)], dtype=np.int64), name=value.name)
        graph.register_initializer(value)
    for value in [v for v in graph.inputs if v.name == POSITIONS and not v.uses()]:
        graph.inputs.remove(value)
    if KEPT_LOGITS in defaults:
        logits = graph.outputs[0]
        sizes = [*(logits.shape or [])]
        logits.shape = ir.Shape([*sizes[:1], ir.SymbolicDim(LOGITS_LENGTH), *sizes[2:]])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or size.value is None:
        return size
    return ir.SymbolicDim(names.get(str(size.value), str(size.value)))


def _values(graph: ir.Graph) -> Sequence[ir.Value]:
    made = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *made]
