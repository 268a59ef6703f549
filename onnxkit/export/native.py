"""Level L3: transformers' own exporter, for models that compute their attention by hand."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from transformers import PreTrainedModel
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from onnxkit.export.convert import TRACE_OPSET
from onnxkit.export.hooks import moved
from onnxkit.export.phases import Phases
from onnxkit.export.plan import Plan
from onnxkit.export.trace import dynamic_shapes, name_boundary, run_head


def export_native(plan: Plan, model: PreTrainedModel, *, dtype: torch.dtype, phases: Phases) -> ir.Model:
    """Export a loaded model; its weights come with it. Torch prints its progress: that is swallowed.

    Raises:
        Exception: whatever torch or transformers raise when the model cannot be exported.
    """
    subject = plan.entry(moved(model, dtype))
    names = [given.name for given in plan.signature.inputs]
    shapes = dict(zip(names, dynamic_shapes(plan.signature), strict=True))
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=TRACE_OPSET, optimize=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(phases("trace"))
        stack.enter_context(_with_head(plan, subject, dtype))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        exporter: Any = OnnxExporter  # its constructor is not annotated
        exported, _ = exporter().export_program(subject, dict(plan.signature.sample()), config)
    graph: ir.Model = exported
    _order_inputs(graph, names)
    name_boundary(graph, plan.signature)
    return graph


@contextlib.contextmanager
def _with_head(plan: Plan, model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Within the block the model returns the graph's outputs by name."""
    original: Any = model.forward
    names = plan.signature.outputs

    @functools.wraps(original)
    def forward(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        given = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        flags = {key: value for key, value in inputs.items() if key not in given}

        def call(**cast: torch.Tensor) -> Any:
            return original(**cast, **flags)

        named = run_head(plan.head, call, given, dtype)
        return {name: named[name] for name in names}

    model.forward = forward
    try:
        yield
    finally:
        model.forward = original


def _order_inputs(model: ir.Model, names: list[str]) -> None:
    by_name = {value.name: value for value in model.graph.inputs}
    if set(by_name) == set(names):
        model.graph.inputs[:] = [by_name[name] for name in names]
