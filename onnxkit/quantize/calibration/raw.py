"""Tensors as samples: a set of a model's inputs, divided along its batch axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxkit.errors import InputError
from onnxkit.inputs import COLUMNS, Located, Sample
from onnxkit.measure.cached_cases import is_cached
from onnxkit.measure.cases import batch_axis

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

    `decoder_input_ids` may stand beside the inputs. A row of arrays that are named like columns (`image`)
    has lost the axis when the file was read.

    Raises:
        InputError: names, dtypes or ranks differ from the model's, or the batch sizes differ.
    """
    expected = {spec.name: spec for spec in specs}
    if set(sample) - {DECODER_IDS} != set(expected):
        raise InputError(
            f"{where}: holds {', '.join(sorted(sample))}; "
            f"the model's inputs are {', '.join(sorted(expected))}"
        )
    if set(sample) <= set(COLUMNS) and all(sample[n].ndim == len(s.shape) - 1 for n, s in expected.items()):
        sample = {name: array[None] for name, array in sample.items()}
    for name, spec in expected.items():
        array = sample[name]
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise InputError(
                f"{where}: {name} is {array.dtype.name} of rank {array.ndim}; the model takes {spec.dtype} of"
                f" rank {len(spec.shape)}"
            )
    axes = _batch_axes(sample, specs)
    sizes = {name: sample[name].shape[axis] for name, axis in axes.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"{where}: the batch sizes differ ({listed})")
    for row in range(max(sizes.values(), default=1)):
        feeds = {
            name: array.take([row], axis=axes[name]) if name in axes else array
            for name, array in sample.items()
        }
        yield Located(feeds, f"{where}, row {row + 1}")


def _batch_axes(sample: Sample, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The axis along which each array is divided: where the graph takes any number of samples, or one.

    An array of one sample for an input of one, beside others of more, belongs to each of them.
    """
    axes = {spec.name: batch_axis(spec, specs) for spec in specs if spec.shape}
    free = [s.name for s in specs if s.shape and not isinstance(s.shape[axes[s.name]], int)]
    ones = [s.name for s in specs if s.shape and s.shape[axes[s.name]] == 1]
    most = max((sample[name].shape[axes[name]] for name in free), default=1)
    kept = [*free, *(name for name in ones if most == 1 or sample[name].shape[axes[name]] != 1)]
    found = {spec.name: axes[spec.name] for spec in specs if spec.name in kept}
    return {**found, DECODER_IDS: 0} if DECODER_IDS in sample else found
