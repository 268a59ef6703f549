"""The graphs that one model becomes: what each takes and gives, and the function that it computes.

An encoder is one part, "model"; so is a decoder-only model with its cache. An encoder-decoder is two:
"encoder" and "decoder". The same `run` is traced and called in eager PyTorch, so that a graph and its
reference cannot differ in what they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from onnxkit.export.signature import PRESENT, Signature

Run = Callable[[PreTrainedModel, Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""(whole model, graph inputs by name) → graph outputs by name. A `torch.nn.Module` where the outputs need
weights that are not the model's: a trace then holds it as its own child."""


def whole(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself: what most parts run."""
    return model


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """An encoder-decoder's encoder."""
    encoder: PreTrainedModel = model.get_encoder()
    return encoder


@dataclass(frozen=True, kw_only=True)
class Part:
    """One graph.

    Attributes:
        name: the manifest's component: "model", "encoder" or "decoder".
        file: its ONNX file.
        signature: inputs and output names, in the graph's order.
        run: what the graph computes.
        entry: the module that `run` calls: attention calls are counted below it, and transformers' own
            exporter is given it.
    """

    name: str
    file: str
    signature: Signature
    run: Run
    entry: Callable[[PreTrainedModel], PreTrainedModel] = whole


def run_part(
    part: Part,
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    *,
    run: Run | None = None,
) -> dict[str, torch.Tensor]:
    """Outputs by name, in the signature's order; the model computes in `dtype`.

    Float inputs are cast to `dtype`, float outputs to float32. Keys and values stay `dtype`: a cast of the
    cache in every step would cost more than the step.

    Args:
        run: stands in for `part.run` (a copy of it on another device).
    """
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    named = (run or part.run)(model, cast)
    return {
        name: named[name].float()
        if named[name].is_floating_point() and not name.startswith(PRESENT)
        else named[name]
        for name in part.signature.outputs
    }
