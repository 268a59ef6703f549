"""Level L3: transformers' own exporter, for models that our trace does not serve."""

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
from onnxkit.export.parts import Part, run_part
from onnxkit.export.phases import Phases
from onnxkit.export.trace import LevelRefused, dynamic_shapes, name_boundary


def export_native(part: Part, model: PreTrainedModel, *, dtype: torch.dtype, phases: Phases) -> ir.Model:
    """Export one part of a loaded model; its weights come with it. Torch prints its progress: that is
    swallowed.

    Raises:
        LevelRefused: a decoder with a cache: what hooks cannot trace is traced by hand (`trace`).
        Exception: whatever torch or transformers raise when the model cannot be exported.
    """
    if part.signature.cached:
        raise LevelRefused("transformers' exporter makes no one graph with an empty or a growing cache")
    subject = part.entry(moved(model, dtype))
    names = [given.name for given in part.signature.inputs]
    shapes = dict(zip(names, dynamic_shapes(part.signature), strict=True))
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=TRACE_OPSET, optimize=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(phases("trace"))
        stack.enter_context(_running(part, model, subject, dtype))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        exporter: Any = OnnxExporter  # its constructor is not annotated
        exported, _ = exporter().export_program(subject, dict(part.signature.sample()), config)
    graph: ir.Model = exported
    _order_inputs(graph, names)
    name_boundary(graph, part.signature)
    return graph


@contextlib.contextmanager
def _running(
    part: Part, model: PreTrainedModel, subject: PreTrainedModel, dtype: torch.dtype
) -> Iterator[None]:
    """Within the block `subject`, which the part's `run` calls, returns the graph's outputs by name."""
    original: Any = subject.forward

    @functools.wraps(original)
    def forward(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        given = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        flags = {key: value for key, value in inputs.items() if key not in given}
        subject.forward = functools.partial(original, **flags)
        try:
            return run_part(part, model, given, dtype)
        finally:
            subject.forward = forward

    subject.forward = forward
    try:
        yield
    finally:
        subject.forward = original


def _order_inputs(model: ir.Model, names: list[str]) -> None:
    by_name = {value.name: value for value in model.graph.inputs}
    if set(by_name) == set(names):
        model.graph.inputs[:] = [by_name[name] for name in names]
