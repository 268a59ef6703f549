"""Seeded inputs for a model of which only the input specs, and perhaps the config, are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxkit.errors import InputError
from onnxkit.machine import memory
from onnxkit.measure.cached_cases import cached_feeds, is_cached, steps
from onnxkit.measure.geometry import Geometry, geometry, random_ids
from onnxkit.runtime import TensorSpec

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

Array = np.ndarray[Any, Any]
Padding = Literal["none", "right", "left"]

LONGEST = 2048
# A foreign graph without config.json may have a table of any number of positions.
_UNKNOWN_LONGEST = 128
_PAST = 8
_IMAGE_SIDE = 224
# Of an image that is known by its channels only: graphs pool by 32 or 64, and some take no height above 64.
_UNKNOWN_SIDE = 64
_WAVE = 256
_FRAMES = 400
# A wav2vec-type front end needs 400 samples for its first frame and 320 for each further one; Moonshine's 895
# and 384.
_WAVE_FIRST, _WAVE_STEP = 960, 384
_SEQUENCE_WORDS = ("sequence", "seq", "length", "tokens", "query", "len")
_MASK_NAMES = frozenset({"attention_mask", "decoder_attention_mask", "encoder_attention_mask", "input_mask"})
_ID_NAMES = frozenset({"input_ids", "decoder_input_ids", "ids", "tokens"})
_IMAGES = frozenset({"pixel_values", "images", "image", "pixel_mask"})
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a batch should be like.

    Attributes:
        batch: number of samples.
        sequence: tokens of the longest sample, padding included.
        padding: where the shorter samples of the batch are padded; "none" makes all equally long.
        image: height and width; None takes the config's.
    """

    batch: int = 1
    sequence: int = 16
    padding: Padding = "none"
    image: tuple[int, int] | None = None


_TEN_SECONDS = {"input_values": (160_000 - _WAVE_FIRST) // _WAVE_STEP, "input_features": 1_000}
"""Positions of audio inputs of any length."""


def ten_seconds(specs: Iterable[TensorSpec]) -> int | None:
    """Return the sequence of a `Shape` that makes (about) 10 s of sound; None where no input is audio."""
    return next((_TEN_SECONDS[spec.name] for spec in specs if spec.name in _TEN_SECONDS), None)


def takes_sequence(specs: Iterable[TensorSpec]) -> bool:
    """Tell whether the model reads token sequences, so that a sequence length applies to it."""
    return any(spec.name in _MASK_NAMES | _ID_NAMES for spec in specs)


def batch_axis(spec: TensorSpec, specs: Iterable[TensorSpec]) -> int:
    """Which axis holds the samples: the first, or the second of a recurrent state [layers, batch, width]."""
    if len(spec.shape) < 2 or not isinstance(spec.shape[0], int):
        return 0
    named = isinstance(spec.shape[1], str) and "batch" in spec.shape[1].lower()
    free = any(each.shape and not isinstance(each.shape[0], int) for each in specs)
    layered = len(spec.shape) == 3 and spec.shape[0] != 1 and spec.dtype.startswith(("float", "bfloat"))
    return int(named or (free and layered))


def random_cases(
    model: ModelDir, *, seed: int = 0, longest: int = LONGEST, component: str = "model"
) -> list[tuple[str, dict[str, Array]]]:
    """Return named feeds that cover the shapes which break exported graphs.

    Token models: batch 1, batch 4, right padding, left padding, length 1, and the longest input
    that positions and memory allow (at most `longest`). Others: three batch sizes, blank input,
    and a larger image where height and width are free. Graphs with a cache: `cached_cases.steps`. Cases
    that the model's fixed dimensions rule out are left out; ids come from the vocabulary, special ones
    excepted.
    """
    return cases_of(specs_of(model, component), model.config, seed=seed, longest=longest)


def cases_of(
    specs: Sequence[TensorSpec], config: Mapping[str, Any], *, seed: int = 0, longest: int = LONGEST
) -> list[tuple[str, dict[str, Array]]]:
    """`random_cases` for a graph of which only the inputs and the model's configuration are known."""
    known = geometry(config)
    if is_cached(specs):
        return [
            (name, cached_feeds(specs, known, step, np.random.default_rng([seed, index])))
            for index, (name, step) in enumerate(steps(specs, known, longest))
        ]
    shapes = _token_shapes(specs, known, longest) if takes_sequence(specs) else _other_shapes(specs, known)
    cases: list[tuple[str, dict[str, Array]]] = []
    for index, (name, shape) in enumerate(shapes):
        try:
            feeds = make_feeds(specs, known, shape, np.random.default_rng([seed, index]))
        except InputError:  # a dimension that the graph fixes
            continue
        if name == "blank":
            feeds = {
                key: np.zeros_like(value) if value.dtype.kind == "f" else value
                for key, value in feeds.items()
            }
        cases.append((name, feeds))
    return cases or [
        ("fixed shape", make_feeds(specs, known, fixed_shape(specs), np.random.default_rng(seed)))
    ]


def make_feeds(
    specs: Sequence[TensorSpec], known: Geometry, shape: Shape, rng: np.random.Generator
) -> dict[str, Array]:
    """Make an array for every input.

    Raises:
        InputError: the model fixes a dimension to another size than the one asked for, or takes
            something that is no tensor.
    """
    sizes = {spec.name: _sizes(spec, known, shape, batch_axis(spec, specs)) for spec in specs}
    lengths = _lengths(shape, rng)
    grid = np.arange(shape.sequence)
    tokens = grid >= shape.sequence - lengths[:, None] if shape.padding == "left" else grid < lengths[:, None]
    feeds = {spec.name: _fill(spec, sizes[spec.name], known, tokens, rng) for spec in specs}
    return _mask_waveform(feeds)


def _mask_waveform(feeds: dict[str, Array]) -> dict[str, Array]:
    """A waveform's mask counts samples, not tokens: stretch it, and silence what it masks."""
    wave, mask = feeds.get("input_values"), feeds.get("attention_mask")
    if wave is None or mask is None or wave.ndim != mask.ndim or wave.shape == mask.shape:
        return feeds
    columns = np.arange(wave.shape[1]) * mask.shape[1] // wave.shape[1]
    stretched = np.ascontiguousarray(mask[:, columns])
    return {**feeds, "attention_mask": stretched, "input_values": wave * stretched.astype(wave.dtype)}


def longest_sequence(known: Geometry, limit: int = LONGEST) -> int:
    """Return the longest sequence that positions and a quarter of the free memory allow."""
    unknown = limit if known.configured else min(limit, _UNKNOWN_LONGEST)
    bound = min(limit, known.positions or unknown)
    # About four float32 copies of the attention scores [heads, S, S] live at a time.
    room = memory().available_bytes // 4 // (16 * known.heads)
    return max(1, min(bound, math.isqrt(room)))


def check_shape(specs: Sequence[TensorSpec], known: Geometry, shape: Shape) -> None:
    """Raise InputError where the graph, or the table of positions, does not take `shape`."""
    for spec in specs:
        _sizes(spec, known, shape, batch_axis(spec, specs))
        if spec.name in _ID_NAMES and known.positions is not None and shape.sequence > known.positions:
            raise InputError(
                f"the model has {known.positions} positions: {shape.sequence} tokens cannot be fed"
            )


def specs_of(model: ModelDir, component: str = "model") -> tuple[TensorSpec, ...]:
    """Return the inputs of a component; InputError when the directory has no such graph."""
    if component not in model.components:
        raise InputError(f"{model.path}: no component {component!r}; it has {', '.join(model.components)}")
    specs: tuple[TensorSpec, ...] = model.components[component].inputs
    return specs


def _token_shapes(specs: Sequence[TensorSpec], known: Geometry, longest: int) -> list[tuple[str, Shape]]:
    most = longest_sequence(known, longest)
    usual = min(16, most)
    shapes = [
        ("batch 1", Shape(batch=1, sequence=min(11, most))),
        ("batch 4", Shape(batch=4, sequence=usual)),
    ]
    if most > 1 and any(spec.name in _MASK_NAMES for spec in specs):
        shapes += [
            ("right padding", Shape(batch=3, sequence=usual, padding="right")),
            ("left padding", Shape(batch=3, sequence=usual, padding="left")),
        ]
    shapes += [("length 1", Shape(batch=2, sequence=1)), (f"length {most}", Shape(batch=1, sequence=most))]
    fixed = fixed_shape(specs)
    if fixed.sequence != 16:  # the graph fixes the length: the other cases keep it
        shapes = [(name, Shape(batch=each.batch, sequence=fixed.sequence, padding=each.padding))
                  for name, each in shapes[:-2]]  # fmt: skip
    return shapes


def _other_shapes(specs: Sequence[TensorSpec], known: Geometry) -> list[tuple[str, Shape]]:
    shapes = [(f"batch {batch}", Shape(batch=batch)) for batch in (1, 4, 3)] + [("blank", Shape(batch=2))]
    for spec in specs:
        axes = _image_axes(spec)
        if axes and not any(isinstance(spec.shape[axis], int) for axis in axes):
            height, width = _image_size(spec, known)
            shape = Shape(batch=1, image=(2 * height, width))
            return [*shapes, (f"image {2 * height} x {width}", shape)]
    return shapes


def _image_axes(spec: TensorSpec) -> tuple[int, int] | None:
    """The axes of height and width, in an input that is an image by its name or by its channels."""
    rank = len(spec.shape)
    if spec.name in _IMAGES and rank >= 3:
        return (-3, -2) if rank == 4 and spec.shape[3] in _CHANNELS else (-2, -1)
    if rank != 4 or not spec.dtype.startswith(("float", "uint8")):
        return None
    return (-2, -1) if spec.shape[1] in _CHANNELS else (-3, -2) if spec.shape[3] in _CHANNELS else None


def _image_size(spec: TensorSpec, known: Geometry) -> tuple[int, int]:
    side = _IMAGE_SIDE if spec.name in _IMAGES else _UNKNOWN_SIDE
    return known.image_size or (side, side)


def fixed_shape(specs: Sequence[TensorSpec], *, batch: int = 1, sequence: int = 16) -> Shape:
    """Return a shape with the batch and sequence sizes that the graph fixes, else the given ones."""
    for spec in specs:
        samples = spec.shape[batch_axis(spec, specs)] if spec.shape else None
        if isinstance(samples, int):
            batch = samples
        if spec.name in _MASK_NAMES | _ID_NAMES and len(spec.shape) > 1 and isinstance(spec.shape[1], int):
            sequence = spec.shape[1]
    return Shape(batch=batch, sequence=sequence)


def _lengths(shape: Shape, rng: np.random.Generator) -> Array:
    """Return the number of real tokens of each sample; the first is the longest."""
    lengths = np.full(shape.batch, shape.sequence)
    if shape.padding != "none" and shape.batch > 1:
        lengths[1:] = rng.integers(1, max(2, shape.sequence), shape.batch - 1)
    return lengths


def _sizes(spec: TensorSpec, known: Geometry, shape: Shape, samples: int) -> tuple[int, ...]:
    """Choose every dimension: the graph's where it is fixed, the asked-for one elsewhere."""
    if "(" in spec.dtype or spec.dtype == "str":
        raise InputError(f"input {spec.name!r} is a {spec.dtype}: onnxkit cannot make one")
    wanted = _wanted(spec, known, shape, samples)
    checked = [(samples, "batch", shape.batch)]
    checked += [(1, "sequence", shape.sequence)] if spec.name in _MASK_NAMES | _ID_NAMES else []
    for axis, label, asked in checked:
        have = spec.shape[axis] if axis < len(spec.shape) else None
        if isinstance(have, int) and have != asked and len(spec.shape) > 1:
            raise InputError(f"input {spec.name!r} has its {label} fixed to {have}: {asked} cannot be fed")
    return tuple(
        have if isinstance(have, int) else want for have, want in zip(spec.shape, wanted, strict=True)
    )


def _wanted(spec: TensorSpec, known: Geometry, shape: Shape, samples: int) -> list[int]:
    rank = len(spec.shape)
    if axes := _image_axes(spec):
        wanted = [shape.batch, *[known.channels] * (rank - 1)]
        for axis, side in zip(axes, shape.image or _image_size(spec, known), strict=True):
            wanted[axis] = side
        return wanted
    if spec.name == "input_features" and rank == 3:
        if isinstance(spec.shape[2], int) and not isinstance(spec.shape[1], int):  # frames, then features
            return [shape.batch, shape.sequence, spec.shape[2]]
        return [shape.batch, known.mel_bins or 80, known.frames or _FRAMES]
    if spec.name == "input_values":
        return (
            [shape.batch, _samples(known, shape)]
            if rank == 2
            else [shape.batch, known.frames or _FRAMES, known.mel_bins or 128]
        )
    heard = rank == 2 and spec.dtype.startswith("float") and "mask" not in spec.name
    told = known.shortest_wave > 1
    wave = (_samples(known, shape) if told else _WAVE) if heard else None
    return [_free(axis, size, shape, samples, wave=wave) for axis, size in enumerate(spec.shape)]


def _samples(known: Geometry, shape: Shape) -> int:
    return max(_WAVE_FIRST, known.shortest_wave) + _WAVE_STEP * shape.sequence


def _free(axis: int, dim: int | str | None, shape: Shape, samples: int, *, wave: int | None) -> int:
    """Guess a free dimension by its name, else by its place: the batch's, else sequence.

    Floats of free number in a row without a second axis are a waveform of `wave` samples rather than features
    of tokens.
    """
    name = dim.lower() if isinstance(dim, str) else ""
    if "past" in name:
        return shape.sequence + _PAST if "+" in name or "total" in name else _PAST
    if "batch" in name:
        return shape.batch
    sequence = axis != samples or any(word in name for word in _SEQUENCE_WORDS)
    return shape.batch if not sequence else wave if wave and axis == 1 else shape.sequence


def _fill(
    spec: TensorSpec, sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator
) -> Array:
    maker = _MAKERS.get(spec.name)
    if maker is None and spec.name in _ID_NAMES:
        maker = _ids
    elif maker is None and spec.name in _MASK_NAMES:
        maker = _mask
    values = maker(sizes, known, tokens, rng) if maker else _any(spec, sizes, rng)
    return values.astype(_dtype(spec.dtype))


def _dtype(name: str) -> np.dtype[Any]:
    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _ids(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    ids = random_ids(known, sizes, rng)
    if ids.shape == tokens.shape:
        ids = np.where(tokens, ids, min(known.pad_id, (known.vocab_size or 100) - 1))
    return ids


def _mask(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    """1 for real tokens; a mask longer than the input (over a past) sees the whole past."""
    mask = np.ones(sizes, dtype=np.int64)
    if len(sizes) == 2 and sizes[0] == tokens.shape[0] and sizes[1] >= tokens.shape[1]:
        mask[:, sizes[1] - tokens.shape[1] :] = tokens
    return mask


def _segments(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    segments = np.zeros(sizes, dtype=np.int64)
    if known.segments > 1 and len(sizes) > 1:
        segments[:, (sizes[1] + 1) // 2 :] = 1
    return segments


def _position_ids(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    if sizes == tokens.shape:
        positions: Array = np.maximum(tokens.cumsum(axis=-1) - 1, 0)
        return positions
    return np.broadcast_to(np.arange(sizes[-1]), sizes)


def _boxes(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    """Layout boxes [x0, y0, x1, y1] on the 0..1000 grid, with x0 <= x1 and y0 <= y1."""
    low = rng.integers(0, 500, (*sizes[:-1], 2))
    high = low + rng.integers(0, 500, low.shape)
    boxes: Array = np.concatenate([low, high], axis=-1)
    return boxes


def _ones(sizes: tuple[int, ...], known: Geometry, tokens: Array, rng: np.random.Generator) -> Array:
    return np.ones(sizes)


def _any(spec: TensorSpec, sizes: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype == "bool" or "mask" in spec.name:
        return np.ones(sizes)
    if spec.dtype.startswith(("int", "uint")):
        return rng.integers(0, 2, sizes)
    return rng.standard_normal(sizes, dtype=np.float32)


_Maker = Callable[[tuple[int, ...], Geometry, Array, np.random.Generator], Array]
_MAKERS: Mapping[str, _Maker] = {
    "token_type_ids": _segments,
    "position_ids": _position_ids,
    "decoder_position_ids": _position_ids,
    "bbox": _boxes,
    "pixel_mask": _ones,
    "use_cache_branch": _ones,
}
