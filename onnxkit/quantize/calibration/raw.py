"""Tensors as samples: a set of a model's inputs, divided along its batch axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxkit.errors import InputError
from onnxkit.inputs import Located, Sample
from onnxkit.measure.cached_cases import is_cached

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.runtime import TensorSpec

DECODER_IDS = "decoder_input_ids"
"""int64 [B, n]: what the decoder of an encoder-decoder is run on; without it, what it generates."""

_OF_A_STEP = ("past_key_values.", "position_ids")


def input_specs(model: ModelDir) -> tuple[TensorSpec, ...]:
    """What is fed from outside: an encoder's inputs where there are several graphs; no cache."""
    component = model.components.get("encoder") or next(iter(model.components.values()))
    specs: tuple[TensorSpec, ...] = component.inputs
    if not is_cached(specs):
        return specs
    return tuple(spec for spec in specs if not spec.name.startswith(_OF_A_STEP))


def is_raw(sample: Sample, model: ModelDir) -> bool:
    """Whether a sample holds the model's inputs themselves."""
    names = {spec.name for spec in input_specs(model)}
    return bool(names & set(sample)) and all(isinstance(value, np.ndarray) for value in sample.values())


def single_rows(sample: Sample, specs: Sequence[TensorSpec], where: str) -> Iterator[Located]:
    """Divide a set of tensors along its batch axis; tensors without one go into every row.

    `decoder_input_ids` may stand beside the inputs.

    Raises:
        InputError: names, dtypes or ranks differ from the model's, or the batch sizes differ.
    """
    expected = {spec.name: spec for spec in specs}
    if set(sample) - {DECODER_IDS} != set(expected):
        raise InputError(
            f"{where}: holds {', '.join(sorted(sample))}; "
            f"the model's inputs are {', '.join(sorted(expected))}"
        )
    for name, spec in expected.items():
        array = sample[name]
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise InputError(
                f"{where}: {name} is {array.dtype.name} of rank {array.ndim}; the model takes {spec.dtype} of"
                f" rank {len(spec.shape)}"
            )
    batched = [
        name
        for name, spec in expected.items()
        if spec.shape and (spec.shape[0] == 1 or not isinstance(spec.shape[0], int))
    ]
    batched += [DECODER_IDS] if DECODER_IDS in sample else []
    sizes = {len(sample[name]) for name in batched}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {len(sample[name])}" for name in batched)
        raise InputError(f"{where}: the batch sizes differ ({listed})")
    for row in range(sizes.pop() if sizes else 1):
        feeds = {name: array[row : row + 1] if name in batched else array for name, array in sample.items()}
        yield Located(feeds, f"{where}, row {row + 1}")
