"""The task of a model that another tool exported, from its outputs and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxkit.artifact.task_names import RAW, task_of_architecture
from onnxkit.runtime import TensorSpec

_AUDIO_INPUTS = frozenset({"input_values", "input_features"})
# Outputs that tell the task whatever the config says: exporters cut heads off.
_TELLING = (
    ({"sentence_embedding"}, "sentence-similarity"),
    ({"start_logits", "end_logits"}, "question-answering"),
    ({"logits_per_image"}, "zero-shot-image-classification"),
    ({"pred_boxes"}, "object-detection"),
    ({"predicted_depth"}, "depth-estimation"),
)


def infer_task(config: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return the task that a graph with these inputs and outputs serves, or "raw".

    `config` is the parsed config.json, possibly empty. Outputs decide before `architectures`,
    because exporters write a BertForMaskedLM without its head, too.
    """
    fed = {spec.name for spec in inputs}
    given = {spec.name: spec for spec in outputs}
    for names, task in _TELLING:
        if names <= given.keys():
            return task
    if "logits" in given:
        return _of_logits(config, fed, given["logits"])
    if given.keys() & {
        "last_hidden_state",
        "token_embeddings",
        "image_embeds",
        "text_embeds",
        "pooler_output",
    }:
        return _of_features(fed)
    return RAW


def _of_features(fed: set[str]) -> str:
    if fed == {"pixel_values"}:
        return "image-feature-extraction"
    return "feature-extraction" if fed & {"input_ids", "inputs_embeds", *_AUDIO_INPUTS} else RAW


def _of_logits(config: Mapping[str, Any], fed: set[str], logits: TensorSpec) -> str:
    for architecture in _architectures(config):
        task = task_of_architecture(architecture)
        if task is not None and task not in ("feature-extraction", "image-feature-extraction"):
            return task
    rank = len(logits.shape)
    if "pixel_values" in fed:
        return {2: "image-classification", 4: "image-segmentation"}.get(rank, RAW)
    if fed & _AUDIO_INPUTS and "input_ids" not in fed:
        return {2: "audio-classification", 3: "automatic-speech-recognition"}.get(rank, RAW)
    if "input_ids" not in fed:
        return RAW
    if rank == 3 and "encoder_hidden_states" in fed and fed & _AUDIO_INPUTS:
        return "automatic-speech-recognition"
    if rank == 3:
        return _of_token_logits(config, fed, logits)
    return "text-classification" if rank == 2 else RAW


def _of_token_logits(config: Mapping[str, Any], fed: set[str], logits: TensorSpec) -> str:
    if "decoder_input_ids" in fed or "encoder_hidden_states" in fed or "encoder_attention_mask" in fed:
        return "text2text-generation"
    if config.get("is_decoder") or any(name.startswith("past_key_values") for name in fed):
        return "text-generation"
    if logits.shape[-1] == config.get("vocab_size", 0):
        return "fill-mask"
    return "token-classification"


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
