"""Levels L1 and L2: trace a model without weights, one operator per attention, mask and rotation."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from onnxkit.export import convert, fx
from onnxkit.export.heads import Head
from onnxkit.export.hooks import IMPLEMENTATION, counted_attention, hooked, moved, register
from onnxkit.export.phases import Phases
from onnxkit.export.plan import Plan
from onnxkit.export.signature import Signature

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
    with no_init_weights(), _parameters_on_meta():
        try:
            model: Any = build(copy.deepcopy(config), attn_implementation=IMPLEMENTATION, dtype=dtype)
        except KeyError as error:
            if error.args != (IMPLEMENTATION,):
                raise
            # A model that looks its attention up in a table of its own: the hooks will not be called.
            model = build(copy.deepcopy(config), attn_implementation="eager", dtype=dtype)
    model.tie_weights()
    empty: PreTrainedModel = model.eval()
    return empty


class Wrapper(torch.nn.Module):
    """Positional inputs in, a tuple of float32 (or integer) outputs out; the model computes in `dtype`."""

    def __init__(self, plan: Plan, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.head = (
            copy.deepcopy(plan.head).to("meta") if isinstance(plan.head, torch.nn.Module) else plan.head
        )
        self._plan = plan
        self._dtype = dtype

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model and pick the signature's outputs."""
        signature = self._plan.signature
        inputs = dict(zip((given.name for given in signature.inputs), values, strict=True))
        named = run_head(self.head, self._plan.entry(self.model), inputs, self._dtype)
        return tuple(named[name] for name in signature.outputs)


def run_head(
    head: Head, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Outputs by name; float inputs are cast to `dtype`, float outputs to float32."""
    cast = {name: v.to(dtype) if v.dtype.is_floating_point else v for name, v in inputs.items()}
    named = head(model(**cast), inputs)
    return {name: v.float() if v.dtype.is_floating_point else v for name, v in named.items()}


def trace(
    plan: Plan, model: PreTrainedModel, *, dtype: torch.dtype, decompose: bool, phases: Phases
) -> Traced:
    """Trace `model` (from `empty_model` with `IMPLEMENTATION`) and convert it.

    Raises:
        LevelRefused: attention modules that do not speak in the semantic operator.
        Exception: whatever torch raises when the model cannot be traced this way; the caller goes
            on to the next level.
    """
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    moved(model, "meta")
    wrapper = Wrapper(plan, model, dtype).eval()
    sample = tuple(value.to("meta") for value in plan.signature.sample().values())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(hooked(model))
        translations = stack.enter_context(_patched()) if decompose else {}
        calls = stack.enter_context(counted_attention(plan.entry(model)))
        with phases("trace"):
            shapes = (dynamic_shapes(plan.signature),)
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph that it gives up
                program = torch.export.export(wrapper, sample, dynamic_shapes=shapes, strict=False)
            traced_calls = calls.count
        attentions = fx.operator_counts(program).get("attention", 0)
        if attentions != traced_calls:  # said before the conversion, which costs most
            raise LevelRefused(f"the trace holds {attentions} attention operators for {traced_calls} calls")
        with phases("convert"):
            converted = convert.to_onnx(program, decompose=decompose, translations=translations)
    name_boundary(converted, plan.signature)
    return Traced(model=converted, buffers=buffers, attentions=attentions, attention_calls=traced_calls)


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
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or size.value is None:
        return size
    return ir.SymbolicDim(names.get(str(size.value), str(size.value)))


def _values(graph: ir.Graph) -> Sequence[ir.Value]:
    made = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *made]
