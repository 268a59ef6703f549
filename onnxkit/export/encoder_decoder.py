"""Encoder-decoders as two graphs: an encoder that also projects what every decoder layer will attend to,
and one decoder that does the first step and every further one.

The keys and values of cross-attention depend on the encoder's output alone: computed once, beside it, they
are inputs of the decoder, which then needs neither the encoder's output nor a branch for its first step.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from onnxkit.errors import InputError
from onnxkit.export.attention import HookRefused
from onnxkit.export.cache import GraphCache, GraphLayer
from onnxkit.export.decoder import LOGITS, KeptLogits
from onnxkit.export.hooks import moved, run_either_way
from onnxkit.export.parts import Part, encoder_of
from onnxkit.export.refusals import not_run
from onnxkit.export.signature import (
    BATCH,
    ENCODER_LENGTH,
    ENCODER_MASK,
    KEPT_LOGITS,
    PAST,
    PAST_LENGTH,
    PRESENT,
    SEQUENCE,
    GraphInput,
    Signature,
    graph_inputs,
)

STATES = "last_hidden_state"
_MASK = "attention_mask"
_SEGMENTS = "token_type_ids"
_HALVES = ("key", "value")
_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
_ENCODER_STATES = "encoder_hidden_states"
_PROJECTION = "enc_to_dec_proj"
_SHORTEN = "_get_feature_vector_attention_mask"
"""Method of models whose encoder shortens its input: (length, mask of the input) → mask of the output."""
_STATES_NAMES = ("key_value_states", "encoder_hidden_states")


@dataclass(frozen=True, kw_only=True)
class _Decoder:
    """What one run without values tells of a decoder.

    Attributes:
        cross: its cross-attention modules by layer: path, and the parameter for the encoder's output.
        sizes: per layer (heads, size) of keys and of values, of the decoder's own cache.
        cross_sizes: the same of what it keeps of the encoder's output.
        encoder_length: tokens of the encoder, where its input has one size only.
    """

    cross: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[tuple[int, int], ...], ...]
    cross_sizes: tuple[tuple[tuple[int, int], ...], ...]
    encoder_length: int | None


def encoder_decoder_parts(
    model: PreTrainedModel, processor: Mapping[str, Any], dtype: torch.dtype, *, optimum: bool = False
) -> tuple[Part, ...]:
    """Encoder and decoder. `model` has no weights and is left on meta; `dtype` is the caches'.

    With `optimum` they are three, as its runtime and the browser's expect: the encoder gives its output
    alone, of which a decoder for the first step makes both caches, and a decoder for the others goes on.

    Raises:
        InputError: a model whose decoder does not keep its cross-attention's keys and values in a cache.
    """
    inputs = _encoder_inputs(model, processor, optimum=optimum)
    found = _look(model, inputs)
    cross = () if optimum else found.cross
    mask = next((each for each in inputs if each.name == _MASK), None)
    shortens = mask is not None and ENCODER_LENGTH not in mask.axes
    outputs = (STATES, *([ENCODER_MASK] if shortens else []), *_names(len(cross), "encoder", PRESENT))
    encoder = Part(
        name="encoder",
        file="encoder_model.onnx",
        signature=Signature(inputs=inputs, outputs=outputs),
        run=_Encoder(cross, shortens=shortens),
        entry=encoder_of,
    )
    masked = mask is not None
    name = "decoder_with_past" if optimum else "decoder"
    decoder = Part(
        name=name,
        file=f"{name}_model.onnx",
        signature=_decoder_signature(found, masked, dtype, kept=not optimum),
        run=run_decoder,
        entry=_decoder_of,
    )
    if not optimum:
        return encoder, decoder
    first = Part(
        name="decoder",
        file="decoder_model.onnx",
        signature=_first_signature(found, masked, _encoded_width(model)),
        run=_FirstStep(len(found.sizes)),
        entry=_decoder_of,
    )
    return encoder, first, decoder


def _encoder_inputs(
    model: PreTrainedModel, processor: Mapping[str, Any], *, optimum: bool
) -> tuple[GraphInput, ...]:
    """Of the encoder, whose text is one segment. Optimum's runtime knows no mask that is shorter behind the
    encoder than before it."""
    given = graph_inputs(encoder_of(model), processor)
    return tuple(
        replace(each, axes=tuple(ENCODER_LENGTH if axis == SEQUENCE else axis for axis in each.axes))
        for each in given
        if each.name != _SEGMENTS and not (optimum and each.name == _MASK and SEQUENCE not in each.axes)
    )


def run_decoder(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder part's run: logits of the last `num_logits_to_keep` positions (0: all), and the cache."""
    layers = sum(name.endswith(".decoder.key") for name in inputs)
    own, cross = (_past(inputs, layers, kind) for kind in ("decoder", "encoder"))
    cache = _Caches(own, cross)
    key = cross[0][0]
    # Only the shape of the encoder's output is read: its keys and values are there.
    states = key.new_zeros(key.shape[0], key.shape[2], _encoded_width(model))
    called: Any = model
    with KeptLogits(model, inputs.get(KEPT_LOGITS)), _encoded(model, states, inputs) as encoded:
        output = called(
            decoder_input_ids=inputs["input_ids"], past_key_values=cache, use_cache=True, **encoded
        )
    present = [tensor for layer in range(layers) for tensor in cache.own.present(layer)]
    named = zip(_names(layers, "decoder", PRESENT), present, strict=True)
    return {LOGITS: output.logits, **dict(named)}


class _FirstStep:
    """The run of optimum's decoder for the first step: logits and both caches, from the encoder's output."""

    def __init__(self, layers: int) -> None:
        self._layers = range(layers)

    def __call__(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {kind: [_FirstLayer() for _ in self._layers] for kind in ("decoder", "encoder")}
        own, cross = (Cache(layers=list(layers)) for layers in kept.values())
        called: Any = model
        with _encoded(model, inputs[_ENCODER_STATES], inputs) as encoded:
            output = called(
                decoder_input_ids=inputs["input_ids"],
                past_key_values=EncoderDecoderCache(own, cross),
                use_cache=True,
                **encoded,
            )
        named = {
            f"{PRESENT}{number}.{kind}.{half}": tensor
            for kind, layers in kept.items()
            for number, layer in enumerate(layers)
            for half, tensor in zip(_HALVES, layer.present or (), strict=True)
        }
        return {LOGITS: output.logits, **named}


class _FirstLayer(GraphLayer):  # type: ignore[no-untyped-call]
    """A layer of an empty cache: it keeps what it is given, once."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0), torch.empty(0))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep them."""
        self.present = (key_states, value_states)
        return self.present

    def get_seq_length(self) -> int:
        """Nothing yet."""
        return 0


@dataclass
class _Encoded(BaseModelOutput):
    """An encoder's output; some models look for its mask here."""

    attention_mask: torch.Tensor | None = None


@contextlib.contextmanager
def _encoded(
    model: PreTrainedModel, states: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, Any]]:
    """What a model is called with behind its encoder; within the block it takes the mask for shortened."""
    mask = inputs.get(ENCODER_MASK)
    given: dict[str, Any] = {"encoder_outputs": _Encoded(last_hidden_state=states, attention_mask=mask)}
    shortening = [each for each in model.modules() if hasattr(each, _SHORTEN)] if mask is not None else []
    for module in shortening:
        setattr(module, _SHORTEN, lambda length, mask: mask)
    try:
        yield given if mask is None else {**given, _MASK: mask}
    finally:
        for module in shortening:
            delattr(module, _SHORTEN)


class _Encoder:
    """The encoder part's run.

    Args:
        shortens: the mask of its input is longer than its output, which the decoder wants one for.
    """

    def __init__(self, cross: Sequence[tuple[str, str]], *, shortens: bool) -> None:
        self._cross = tuple(cross)
        self._shortens = shortens

    def __call__(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoder: Any = encoder_of(model)
        output = encoder(**inputs)
        states = output.last_hidden_state
        mask = {}
        if self._shortens:
            own = getattr(output, _MASK, None)
            own = getattr(encoder, _SHORTEN)(states.shape[1], inputs[_MASK]) if own is None else own
            mask = {ENCODER_MASK: own.to(torch.int64)}
        fitting = getattr(model, _PROJECTION, lambda states: states)(states)
        projected = [tensor for module in self._cross for tensor in _projected(model, *module, fitting)]
        names = _names(len(self._cross), "encoder", PRESENT)
        return {STATES: states, **mask, **dict(zip(names, projected, strict=True))}


class _Projected(Exception):
    """Leaves a cross-attention module with the keys and values that it was about to keep."""

    def __init__(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.pair = pair


class _Stop(DynamicCache):
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *other: Any, **named: Any) -> Any:
        raise _Projected((key_states, value_states))


def _projected(
    model: PreTrainedModel, path: str, parameter: str, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that the cross-attention module at `path` makes of the encoder's output."""
    module: Any = model.get_submodule(path)
    queries = states.new_zeros(states.shape[0], 1, _width(_decoder_of(model)))
    caches = EncoderDecoderCache(_Stop(), _Stop())
    required = [name for name, given in list(inspect.signature(module.forward).parameters.items())[1:]
                if given.default is inspect.Parameter.empty and given.kind is _NAMED]  # fmt: skip
    named = {**dict.fromkeys(required), "past_key_values": caches, parameter: states}
    try:  # not `module(…)`: torch's exporter counts on modules that return
        module.forward(queries, **named)
    except _Projected as made:
        return made.pair
    raise InputError(_no_cross_cache(model))


class _Caches(EncoderDecoderCache):
    """Both caches of a graph's decoder, the encoder's side complete."""

    def __init__(self, own: Sequence[Any], cross: Sequence[Any]) -> None:
        self.own = GraphCache(own)
        caches: Any = (self.own, GraphCache(cross))  # transformers' annotation names one kind of cache only
        self.self_attention_cache, self.cross_attention_cache = caches
        self.is_updated = dict.fromkeys(range(len(cross)), True)


def _decoder_signature(found: _Decoder, masked: bool, dtype: torch.dtype, *, kept: bool) -> Signature:
    length = found.encoder_length or ENCODER_LENGTH
    inputs = [GraphInput(name="input_ids", dtype=torch.int64, axes=(BATCH, SEQUENCE))]
    if masked:
        inputs.append(GraphInput(name=ENCODER_MASK, dtype=torch.int64, axes=(BATCH, length)))
    for layer, (own, cross) in enumerate(zip(found.sizes, found.cross_sizes, strict=True)):
        for kind, axis, sizes in (("decoder", PAST_LENGTH, own), ("encoder", length, cross)):
            inputs += [
                GraphInput(name=f"{PAST}{layer}.{kind}.{half}", dtype=dtype, axes=(BATCH, heads, axis, size))
                for half, (heads, size) in zip(_HALVES, sizes, strict=True)
            ]
    if kept:
        inputs.append(GraphInput(name=KEPT_LOGITS, dtype=torch.int64, axes=(), default=0))
    return Signature(inputs=tuple(inputs), outputs=(LOGITS, *_names(len(found.sizes), "decoder", PRESENT)))


def _first_signature(found: _Decoder, masked: bool, width: int) -> Signature:
    length = found.encoder_length or ENCODER_LENGTH
    inputs = [GraphInput(name="input_ids", dtype=torch.int64, axes=(BATCH, SEQUENCE))]
    if masked:
        inputs.append(GraphInput(name=ENCODER_MASK, dtype=torch.int64, axes=(BATCH, length)))
    inputs.append(GraphInput(name=_ENCODER_STATES, dtype=torch.float32, axes=(BATCH, length, width)))
    kept = [
        f"{PRESENT}{layer}.{kind}.{half}"
        for layer in range(len(found.sizes))
        for kind in ("decoder", "encoder")
        for half in _HALVES
    ]
    return Signature(inputs=tuple(inputs), outputs=(LOGITS, *kept))


def _names(layers: int, kind: str, prefix: str) -> list[str]:
    return [f"{prefix}{layer}.{kind}.{half}" for layer in range(layers) for half in _HALVES]


def _past(
    inputs: Mapping[str, torch.Tensor], layers: int, kind: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    names = _names(layers, kind, PAST)
    return [(inputs[key], inputs[value]) for key, value in zip(names[::2], names[1::2], strict=True)]


def _decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    anywhere: Any = model
    decoder: PreTrainedModel = anywhere.get_decoder()
    return decoder


def _width(model: PreTrainedModel) -> int:
    """Features of a token."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.embedding_dim)


def _encoded_width(model: PreTrainedModel) -> int:
    """Features of a token of the encoder's output, which some models project to the decoder's."""
    projection = getattr(model, _PROJECTION, None)
    return _width(model) if projection is None else int(projection.in_features)


def _look(model: PreTrainedModel, inputs: Sequence[GraphInput]) -> _Decoder:
    """Run the model on meta and see which modules attend to the encoder's output, and what is kept."""
    moved(model, "meta")
    try:
        found = run_either_way(model, lambda: _seen(model, inputs))
    except (AttributeError, TypeError, LookupError) as error:
        raise InputError(_no_cross_cache(model)) from error
    except (ValueError, RuntimeError, AssertionError, HookRefused) as error:
        raise InputError(not_run(model, error)) from error
    if not found.cross or len({len(found.cross), len(found.sizes), len(found.cross_sizes)}) != 1:
        raise InputError(_no_cross_cache(model))
    return found


def _seen(model: PreTrainedModel, inputs: Sequence[GraphInput]) -> _Decoder:
    """What two first tokens of the decoder tell."""
    sample = Signature(inputs=tuple(inputs), outputs=()).sample()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.ones(1, 2, dtype=torch.int64, device="meta")
    anywhere: Any = model
    encoder: Any = encoder_of(model)
    with _cross_attention(model) as cross:
        states = encoder(**{name: _as(value, model) for name, value in sample.items()})
        first = _Encoded(last_hidden_state=states.last_hidden_state[:1])
        anywhere(
            encoder_outputs=first, decoder_input_ids=ids, decoder_attention_mask=ids,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
    _check_chunks(model, first, cache)
    free = any(set(each.dynamic().values()) - {BATCH} for each in inputs)
    return _Decoder(
        cross=tuple(cross),
        sizes=_sizes(cache.self_attention_cache),
        cross_sizes=_sizes(cache.cross_attention_cache),
        encoder_length=None if free else int(states.last_hidden_state.shape[1]),
    )


def _check_chunks(model: PreTrainedModel, encoded: _Encoded, cache: EncoderDecoderCache) -> None:
    """Go on by two tokens over a cache of two, on meta.

    Raises:
        InputError: the decoder asserts that it gets one. What else goes wrong a trace will say.
    """
    ids, mask = (torch.ones(1, length, dtype=torch.int64, device="meta") for length in (2, 4))
    anywhere: Any = model
    try:
        anywhere(
            encoder_outputs=encoded, decoder_input_ids=ids, decoder_attention_mask=mask,
            past_key_values=copy.deepcopy(cache), use_cache=True,
        )  # fmt: skip
    except AssertionError as error:
        raise InputError(
            f"{type(model).__name__} goes on by one token at a time over its cache: onnxkit exports decoders "
            "that also take several"
        ) from error
    except Exception:
        return


@contextlib.contextmanager
def _cross_attention(model: PreTrainedModel) -> Iterator[list[tuple[str, str]]]:
    """Within the block, note the attention modules that are called with the encoder's output, and how."""
    found: list[tuple[str, str]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        found.extend((paths[module], name) for name in _STATES_NAMES if bound.arguments.get(name) is not None)

    paths = {
        module: path
        for path, module in model.named_modules()
        if "past_key_values" in inspect.signature(module.forward).parameters and hasattr(module, "layer_idx")
    }
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        outer = [each for each in found if any(path.startswith(f"{each[0]}.") for path, _ in found)]
        found[:] = [each for each in found if each not in outer]  # T5Gemma's layers, which hand it on


def _as(value: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    moved = value.to("meta")
    return moved.to(model.dtype) if moved.is_floating_point() else moved


def _sizes(cache: Any) -> tuple[tuple[tuple[int, int], ...], ...]:
    return tuple(
        tuple((int(half.shape[1]), int(half.shape[3])) for half in (layer.keys, layer.values))
        for layer in cache.layers
    )


def _no_cross_cache(model: PreTrainedModel) -> str:
    return (
        f"{type(model).__name__} does not keep the keys and values of its cross-attention in transformers' "
        "EncoderDecoderCache: onnxkit cannot export it for generation (--task feature-extraction exports its "
        "encoder, where a graph can say that)"
    )
