"""Seeded random samples, for those who ask for them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.inputs import Sample
from onnxkit.measure.cached_cases import is_cached
from onnxkit.measure.cases import Shape, fixed_shape, longest_sequence, make_feeds
from onnxkit.measure.geometry import geometry, random_ids
from onnxkit.quantize.calibration.raw import DECODER_IDS, input_specs

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

Array = np.ndarray[Any, Any]

SHORTEST, LONGEST = 8, 128
"""Tokens of a random text, where the model and `--max-length` allow them."""


def random_samples(model: ModelDir, count: int, seed: int, max_length: int | None) -> tuple[Sample, ...]:
    """Return `count` samples, which are no more than what `random_feeds` makes its arrays from."""
    longest = longest_sequence(geometry(model.config), min(LONGEST, max_length or LONGEST))
    rng = np.random.default_rng(seed)
    lengths = rng.integers(min(SHORTEST, longest), longest + 1, count)
    return tuple({"seed": [seed, number], "length": int(length)} for number, length in enumerate(lengths))


def random_feeds(model: ModelDir, sample: Sample) -> Mapping[str, Array]:
    """Return what a model is fed for one sample: tokens from its vocabulary, normal numbers, no padding.

    Of a model that generates: a row of token ids (with an encoder its inputs and `decoder_input_ids`).
    """
    rng, known, length = np.random.default_rng(sample["seed"]), geometry(model.config), sample["length"]
    specs = input_specs(model)
    fixed = fixed_shape(specs, sequence=length)
    feeds = make_feeds(specs, known, Shape(batch=fixed.batch, sequence=fixed.sequence), rng)
    cached = [name for name, component in model.components.items() if is_cached(component.inputs)]
    if cached and "encoder" in model.components:
        feeds[DECODER_IDS] = random_ids(known, (1, min(length, known.decoder_positions or length)), rng)
    return feeds
