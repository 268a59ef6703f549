"""The quantized weights of a checkpoint under the names of the model's parameters, whatever their format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from onnxkit.errors import InputError
from onnxkit.export.packed import PackedWeight
from onnxkit.export.plan import Plan
from onnxkit.export.weights import StreamedWeights, tied_names


@dataclass(frozen=True, kw_only=True)
class PackedParameters:
    """What a checkpoint holds in blocks.

    Attributes:
        weights: by parameter; a tied one stands under each of its names.
        floats: quantized parameters that have to be dequantized, and why.
    """

    weights: Mapping[str, PackedWeight]
    floats: Mapping[str, str]


def packed_parameters(
    plan: Plan, model: PreTrainedModel, loaded: Callable[[], PreTrainedModel]
) -> PackedParameters:
    """Find the weights that MatMulNBits can store without another rounding.

    Args:
        model: without weights.
        loaded: the checkpoint as transformers loads it; needed with GGUF only.

    Raises:
        InputError: the checkpoint is not quantized in a format that is read.
    """
    checkpoint = plan.checkpoint
    if checkpoint.gguf is not None:
        found = _of_gguf(plan, model, loaded())
    else:
        streamed = StreamedWeights(checkpoint.weight_files, model, checkpoint.packing)
        merged = dict.fromkeys(streamed.merged, "transformers merges it with others")
        found = PackedParameters(weights=streamed.packed, floats=merged)
    if not found.weights:
        raise InputError(_nothing_to_keep(plan))
    ties = tied_names(model)
    every = {alias: weight for name, weight in found.weights.items() for alias in ties.get(name, [name])}
    return PackedParameters(weights=every, floats=found.floats)


def _nothing_to_keep(plan: Plan) -> str:
    from onnxkit.export.packed_gguf import REPACKED

    return (
        f"{plan.checkpoint.source} holds no quantized weights that can be kept (AWQ of 4 bits, GPTQ of 4 or "
        f"8, GGUF's {', '.join(REPACKED)}): leave --keep-quantization out"
    )


def _of_gguf(plan: Plan, model: PreTrainedModel, loaded: PreTrainedModel) -> PackedParameters:
    from onnxkit.export.packed_gguf import packed_tensors, same_as

    assert plan.checkpoint.gguf is not None
    weights, formats = packed_tensors(plan.checkpoint.gguf, model)
    floats = {name: f"{kind} has no form in blocks of 4 or 8 bits" for name, kind in formats.items()}
    config, state = model.config.get_text_config(), loaded.state_dict()
    counts = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    heads = tuple(dict.fromkeys(count for count in counts if count))
    exact: dict[str, PackedWeight] = {}
    for name, weight in weights.items():
        same = same_as(weight, state[name], heads) if name in state else None
        if same is None:
            floats[name] = "transformers changes it while it loads the file"
        else:
            exact[name] = same
    return PackedParameters(weights=exact, floats=floats)


__all__ = ["PackedParameters", "packed_parameters"]
