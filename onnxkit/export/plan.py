"""What will be exported: the task, the model class that serves it, and the graphs that it becomes."""

from __future__ import annotations

import contextlib
import copy
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from onnxkit.artifact import normalize_task, task_of_architecture
from onnxkit.errors import EnvironmentProblem, InputError, UsageError
from onnxkit.export.adapter import merge_adapter
from onnxkit.export.checkpoint import Checkpoint
from onnxkit.export.heads import Head, LastEnd, PickOutputs, sentence_head
from onnxkit.export.hooks import hooked, moved
from onnxkit.export.parts import Part, encoder_of, whole
from onnxkit.export.signature import GraphInput, Signature, graph_inputs

GENERATING = (
    "text-generation", "text2text-generation", "translation", "summarization", "automatic-speech-recognition",
)  # fmt: skip
"""Tasks whose models have a decoder with a cache; speech models with a CTC head have none."""

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "feature-extraction": ("last_hidden_state",),
    "sentence-similarity": ("sentence_embedding", "last_hidden_state"),
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "fill-mask": ("logits",),
    "image-classification": ("logits",),
    "image-feature-extraction": ("last_hidden_state", "pooler_output"),
    "audio-classification": ("logits",),
    **dict.fromkeys(GENERATING, ("logits",)),
}
"""Task → the graph's outputs. `pooler_output` is left out where the model has none; a cache is added."""

_BUILD_ERRORS = (
    ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip
"""What models raise over a configuration that does not fit them."""

_POOLER = (".pooler.", ".head.")
"""Where the weights behind a vision model's `pooler_output` stand."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the levels share.

    Attributes:
        build, load: make the model from a config (no weights) or from the checkpoint's directory.
        parts: the graphs, in the order in which they are made and checked.
    """

    task: str
    checkpoint: Checkpoint
    model_class: str
    config: PretrainedConfig
    build: Callable[..., PreTrainedModel]
    load: Callable[..., PreTrainedModel]
    parts: tuple[Part, ...]

    @property
    def generates(self) -> bool:
        """Whether one of the graphs has a cache."""
        return self.parts[-1].signature.cached


def choose_task(checkpoint: Checkpoint, asked: str) -> str:
    """The exact task name.

    Raises:
        UsageError: no such task, or one that `export` does not cover.
        InputError: `auto`, and the checkpoint does not tell.
    """
    if asked != "auto":
        task = normalize_task(asked)
        if task not in OUTPUTS:
            raise UsageError(f"export does not cover the task {task} yet; it covers {', '.join(OUTPUTS)}")
        return task
    if any(module.kind == "Pooling" for module in checkpoint.modules):
        return "sentence-similarity"
    names = checkpoint.architectures
    found = next((task for task in map(task_of_architecture, names) if task), None)
    if found in OUTPUTS:
        return str(found)
    said = f"is a {names[0]}" if names else "names no architectures in its config.json"
    said += f", whose task {found} export does not cover" if found else ""
    offered = _offered(checkpoint)
    if not offered:
        rest = "it covers no other task of this model" if found else "export covers no task of this model"
        raise InputError(f"{checkpoint.source} {said}; {rest}")
    raise InputError(f"{checkpoint.source} {said}: say with --task what to export: {', '.join(offered)}")


def _offered(checkpoint: Checkpoint) -> list[str]:
    """The tasks that transformers has a class for, of this checkpoint's kind."""
    config, offered = checkpoint.config(), []
    for task in OUTPUTS:
        if task == "sentence-similarity" and not checkpoint.modules:
            continue
        with contextlib.suppress(InputError):
            cls, inner = _model_class(checkpoint, config, task)
            model: Any = getattr(cls, "_model_mapping", {}).get(type(inner), cls)
            images = getattr(model, "main_input_name", "") == "pixel_values"
            if not task.endswith("feature-extraction") or task.startswith("image") == images:
                offered.append(task)
    return offered


def make_plan(
    checkpoint: Checkpoint,
    asked: str,
    build_empty: Callable[..., PreTrainedModel],
    *,
    dtype: torch.dtype = torch.float32,
    optimum: bool = False,
) -> Plan:
    """Plan an export.

    Args:
        build_empty: `build_empty(build, config)` makes the model without weights, to ask it for its inputs.
        dtype: what the graphs will compute in; a cache has this type.
        optimum: write an encoder-decoder as optimum's three graphs.

    Raises:
        UsageError, InputError: as `choose_task`; a model that the task does not fit.
        EnvironmentProblem: the model needs a package that is not there.
    """
    task = choose_task(checkpoint, asked)
    config = checkpoint.config()
    cls, config = _model_class(checkpoint, config, task)
    build, load = _factories(cls, checkpoint)
    try:
        model = build_empty(build, config)
    except ImportError as error:
        raise EnvironmentProblem(f"{checkpoint.source}: {_first_line(error)}") from error
    except _BUILD_ERRORS as error:
        raise InputError(
            f"{checkpoint.source} cannot be built as {cls.__name__} for {task}: {_first_line(error)}"
        ) from error
    task, parts = plan_parts(task, model, checkpoint, dtype, optimum=optimum)
    return Plan(
        task=task, checkpoint=checkpoint, model_class=type(model).__name__, config=config, build=build,
        load=load, parts=parts,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def plan_parts(
    task: str, model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype, *, optimum: bool
) -> tuple[str, tuple[Part, ...]]:
    """The graphs of a model without weights, and the task (the features of images have a name of their own).

    Raises:
        InputError: a model that cannot serve the task in this way.
        UsageError: optimum's layout for what is no encoder-decoder.
    """
    if task in GENERATING and model.config.is_encoder_decoder:
        from onnxkit.export.encoder_decoder import encoder_decoder_parts

        return task, encoder_decoder_parts(model, checkpoint.processor, dtype, optimum=optimum)
    if optimum:
        raise UsageError(
            f"--layout optimum splits encoder-decoders that generate; the one graph of a "
            f"{type(model).__name__} for {task} is what optimum expects"
        )
    if task == "text-generation":
        from onnxkit.export.decoder import decoder_part

        return task, (decoder_part(model, dtype),)
    return _encoder_part(task, model, checkpoint)


def _encoder_part(task: str, model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[str, tuple[Part, ...]]:
    entry = encoder_of if model.config.is_encoder_decoder and task == "feature-extraction" else whole
    inputs = graph_inputs(entry(model), checkpoint.processor)
    if task == "feature-extraction" and inputs[0].name == "pixel_values":
        task = "image-feature-extraction"
    outputs = _outputs(task, model, checkpoint, inputs)
    _check_given(task, entry(model), inputs)
    head: Head = PickOutputs(outputs, entry)
    if task == "sentence-similarity":
        pickles = checkpoint.access.allow_pickle
        head = sentence_head(checkpoint.path, checkpoint.modules, allow_pickle=pickles)
    elif task == "text-classification" and hasattr(model, "classification_head"):
        head = LastEnd()
    signature = Signature(inputs=inputs, outputs=outputs)
    part = Part(name="model", file="model.onnx", signature=signature, run=head, entry=entry)
    return task, (part,)


def _model_class(
    checkpoint: Checkpoint, config: PretrainedConfig, task: str
) -> tuple[type, PretrainedConfig]:
    """Optimum's AutoModel class for the task; one tower of a model that has two."""
    from optimum.exporters.tasks import TasksManager

    pair = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if pair and task.endswith("feature-extraction"):
        part = "Vision" if task.startswith("image") else "Text"
        stem = (checkpoint.architectures or ("?",))[0].removesuffix("Model")
        tower = getattr(transformers, f"{stem}{part}Model", None)
        if tower is None:
            raise InputError(
                f"{checkpoint.source} is a {stem}Model: onnxkit exports one tower of CLIP and its kin"
            )
        return tower, copy.deepcopy(getattr(config, f"{part.lower()}_config"))
    try:
        cls: type = TasksManager.get_model_class_for_task(
            task, framework="pt", model_type=config.model_type, library="transformers"
        )
    except (ValueError, KeyError) as error:  # of the two classes for speech, neither takes this config
        raise InputError(f"transformers has no {config.model_type} model for the task {task}") from error
    known = (
        type(config) in getattr(cls, "_model_mapping", {type(config)}) or checkpoint.access.trust_remote_code
    )
    return cls if known else _named_class(checkpoint, config, task), config


def _named_class(checkpoint: Checkpoint, config: PretrainedConfig, task: str) -> type:
    """The class that config.json names, for configs that no AutoModel knows (SigLIP's text tower)."""
    for name in checkpoint.architectures:
        cls = getattr(transformers, name, None)
        serves = task_of_architecture(name) == task
        if serves and isinstance(cls, type) and getattr(cls, "config_class", None) is type(config):
            return cls
    raise InputError(f"transformers has no {config.model_type} model for the task {task}")


def _factories(cls: Any, checkpoint: Checkpoint) -> tuple[Callable[..., Any], Callable[..., Any]]:
    build = cls.from_config if hasattr(cls, "from_config") else cls._from_config
    remote = {"trust_remote_code": True} if checkpoint.access.trust_remote_code else {}

    def build_from_config(config: PretrainedConfig, **other: Any) -> Any:
        return build(config, **remote, **other)

    def load(**other: Any) -> Any:
        if checkpoint.packing is not None:
            loaded = _load_decoded(build_from_config, checkpoint, **other)
        else:
            loaded = cls.from_pretrained(checkpoint.weights_path, **checkpoint.model_arguments(), **other)
        adapter = checkpoint.access.adapter
        if adapter is None:
            return loaded
        if isinstance(loaded, tuple):  # with what was missing
            return merge_adapter(loaded[0], adapter), *loaded[1:]
        return merge_adapter(loaded, adapter)

    return build_from_config, load


def _load_decoded(
    build: Callable[..., Any], checkpoint: Checkpoint, config: PretrainedConfig | None = None, **other: Any
) -> Any:
    """The weights of an AWQ or GPTQ checkpoint, decoded, in the class that they were made from."""
    from onnxkit.export.weights import StreamedWeights

    config = config if config is not None else checkpoint.config()
    with torch.device("meta"):
        empty = build(copy.deepcopy(config))
    state = StreamedWeights(checkpoint.weight_files, empty, checkpoint.packing).state_dict()
    return type(empty).from_pretrained(None, config=copy.deepcopy(config), state_dict=state, **other)


def _outputs(
    task: str, model: PreTrainedModel, checkpoint: Checkpoint, inputs: tuple[GraphInput, ...]
) -> tuple[str, ...]:
    """The task's outputs; a `pooler_output` that the model or the checkpoint lacks is not exported."""
    if task != "image-feature-extraction":
        return OUTPUTS[task]
    pooled = [name for name, _ in model.named_parameters() if any(part in f".{name}" for part in _POOLER)]
    missing = missing_parameters(model, checkpoint, pooled) if pooled else []
    gives = not missing and _gives(model, Signature(inputs=inputs, outputs=()), "pooler_output")
    return OUTPUTS[task] if gives else OUTPUTS[task][:1]


def _check_given(task: str, model: PreTrainedModel, inputs: tuple[GraphInput, ...]) -> None:
    """Say at once that a model gives something else, where its forward method's annotation tells.

    Raises:
        InputError: it gives no output of the task's.
    """
    given = _annotated(model)
    wanted = "last_hidden_state" if task == "sentence-similarity" else OUTPUTS[task][0]
    if not given or wanted in given:
        return
    try:  # some annotations are wrong
        gives = _gives(model, Signature(inputs=inputs, outputs=()), wanted)
    except Exception:  # of the model: all kinds
        gives = False
    if not gives:
        raise InputError(
            f"{type(model).__name__} gives {', '.join(given)}: no {wanted}, which {task} is made of"
        )


def _annotated(model: PreTrainedModel) -> tuple[str, ...]:
    """Outputs that the annotation of a model's forward method names; none where it is of another kind."""
    with contextlib.suppress(NameError, TypeError, AttributeError):  # an annotation that does not resolve
        returned = typing.get_type_hints(model.forward).get("return")
        kinds: list[Any] = [kind for kind in (returned, *typing.get_args(returned)) if is_dataclass(kind)]
        return tuple(each.name for kind in kinds for each in fields(kind))
    return ()


def _gives(model: PreTrainedModel, signature: Signature, name: str) -> bool:
    """Whether the model fills this output; asked of a copy without storage."""
    sample = {key: value.to("meta") for key, value in signature.sample().items()}
    with torch.no_grad(), hooked(model):
        return isinstance(getattr(moved(model, "meta")(**sample), name, None), torch.Tensor)


def missing_parameters(model: PreTrainedModel, checkpoint: Checkpoint, names: list[str]) -> list[str]:
    """Which of these parameters no safetensors file holds (empty where the weights are pickled)."""
    from onnxkit.export.weights import StreamedWeights

    if not checkpoint.weight_files:
        return []
    weights = StreamedWeights(checkpoint.weight_files, model, checkpoint.packing)
    return [name for name in names if weights.tensor([name]) is None]


__all__ = ["GENERATING", "OUTPUTS", "Plan", "choose_task", "make_plan", "missing_parameters"]
