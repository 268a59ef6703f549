"""An encoder graph, run for a batch; its keys and values go to the decoder as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.generate.cache import Array, CacheTensor
from onnxkit.generate.roles import Roles
from onnxkit.runtime import Binding, RuntimeOptions, Session, array_of, open_session

Inputs = Mapping[str, Array]

_STATES = "last_hidden_state"


class Cross:
    """What the encoder made of a batch: every layer's keys and values, and the mask of its input."""

    def __init__(
        self,
        tensors: Sequence[CacheTensor],
        content: Sequence[Any],
        mask: Array | None,
        mask_name: str | None,
    ) -> None:
        """Hold `content`, ONNX Runtime's values or arrays in the order of `tensors`; `mask` is int64
        [rows, length]."""
        self._tensors = tensors
        self._content = list(content)
        self._mask = mask
        self._mask_name = mask_name
        self._bound: Binding | None = None
        first = content[0]
        rows = len(first) if isinstance(first, np.ndarray) else first.shape()[0]
        self._inputs = np.arange(rows)  # which input each row belongs to

    def bind(self, binding: Binding) -> None:
        """Bind all of it, unless this binding has it already."""
        if self._bound is binding:
            return
        for tensor, content in zip(self._tensors, self._content, strict=True):
            if isinstance(content, np.ndarray):
                binding.feed(tensor.past, content)
            else:
                binding.feed_value(tensor.past, content)
        if self._mask_name is not None and self._mask is not None:
            binding.feed(self._mask_name, self._mask)
        self._bound = binding

    def select(self, rows: Array) -> None:
        """Let row i be the former row `rows[i]` (copies through the host).

        Rows of one input are equal: beams that change places move nothing here.
        """
        inputs = self._inputs[rows]
        if np.array_equal(inputs, self._inputs):
            return
        self._content = [
            (content if isinstance(content, np.ndarray) else array_of(content, tensor.dtype))[rows]
            for tensor, content in zip(self._tensors, self._content, strict=True)
        ]
        self._mask = None if self._mask is None else self._mask[rows]
        self._inputs = inputs
        self._bound = None


class Encoder:
    """An encoder graph. Make one with `Encoder.open`.

    In optimum's layout the encoder gives its output only, and a decoder for the first step the keys and
    values of it: that one is run for those alone, with a token that does not matter.
    """

    def __init__(self, session: Session, roles: Roles, first_step: Session | None = None) -> None:
        """Check that what the decoder's `roles` take is given by `session`, or else by `first_step`."""
        self.session = session
        self._roles = roles
        self._first_step = first_step
        self._inputs = {spec.name: spec for spec in session.inputs}
        given = {spec.name for spec in (first_step or session).outputs}
        # Where the encoder shortens its input (audio), it gives the mask of what is left.
        self._shortened = roles.encoder_mask if roles.encoder_mask in given else None
        if missing := [tensor.present for tensor in roles.cross if tensor.present not in given]:
            raise InputError(f"{session.model}: no output {missing[0]}, which the decoder takes")

    @classmethod
    def open(
        cls, file: Path, runtime: RuntimeOptions, roles: Roles, first_step: Path | None = None
    ) -> Encoder:
        """Load the encoder that belongs to a decoder with these roles (optimum: and its first step)."""
        first = open_session(first_step, runtime) if first_step else None
        return cls(open_session(file, runtime), roles, first)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values of one position of one row."""
        return sum(tensor.slot_bytes for tensor in self._roles.cross)

    def run(self, rows: Sequence[Inputs]) -> Cross:
        """Encode a batch of unbatched inputs, padded at their right.

        Where the encoder shortens its input, it hears the padding, too: rows of unequal length are encoded
        one by one, and what came of them is padded.

        Raises:
            InputError: an input is missing, or rows differ in other dimensions than the first.
        """
        if self._shortened is not None and len({_length(row) for row in rows}) > 1:
            return self._joined([self._run([row]) for row in rows])
        content, mask = self._run(rows)
        return Cross(self._roles.cross, content, mask, self._roles.encoder_mask)

    def _run(self, rows: Sequence[Inputs]) -> tuple[list[Any], Array | None]:
        """Return keys and values in the order of the roles, and the mask of their positions."""
        feeds = {name: self._stacked(name, rows) for name in self._inputs}
        binding = self.session.binding()
        for name, array in feeds.items():
            binding.feed(name, array)
        mask = feeds.get("attention_mask")
        if self._first_step is not None:
            binding.fetch_value(_STATES)
            binding.run()
            binding = self._projecting(self._first_step, binding.values()[_STATES], mask, len(rows))
        for tensor in self._roles.cross:
            binding.fetch_value(tensor.present)
        if self._shortened is not None:
            binding.fetch_value(self._shortened)
        binding.run()
        values = binding.values()
        content = [values[tensor.present] for tensor in self._roles.cross]
        if self._shortened is not None:
            mask = np.array(array_of(values[self._shortened], "int64"))
        return content, mask

    def _joined(self, parts: Sequence[tuple[list[Any], Array | None]]) -> Cross:
        masks = [mask[0] for _, mask in parts if mask is not None]
        longest = max(map(len, masks))
        content = [
            np.concatenate([
                _padded(array_of(part[place], tensor.dtype), longest, axis=2) for part, _ in parts
            ])
            for place, tensor in enumerate(self._roles.cross)
        ]  # fmt: skip
        mask = np.stack([_padded(each, longest, axis=0) for each in masks])
        return Cross(self._roles.cross, content, mask, self._roles.encoder_mask)

    def _projecting(self, first_step: Session, states: Any, mask: Array | None, rows: int) -> Binding:
        """Return the first step's binding, fed with the encoder's output."""
        binding = first_step.binding()
        for spec in first_step.inputs:
            if spec.name == "encoder_hidden_states":
                binding.feed_value(spec.name, states)
            elif spec.name == "encoder_attention_mask" and mask is not None:
                binding.feed(spec.name, mask)
            else:
                binding.feed(spec.name, np.zeros((rows, 1), np.int64))
        return binding

    def _stacked(self, name: str, rows: Sequence[Inputs]) -> Array:
        arrays = [_default_mask(row) if name == "attention_mask" else row.get(name) for row in rows]
        present = [array for array in arrays if array is not None]
        if len(present) < len(arrays):
            has = ", ".join(rows[0]) or "none"
            raise InputError(f"{self.session.model}: the encoder takes {name!r}, the request has {has}")
        if len({array.shape[1:] for array in present}) > 1:
            raise InputError(f"{self.session.model}: rows of {name!r} differ in shape")
        longest = max(len(array) for array in present)
        shape = (len(present), longest, *present[0].shape[1:])
        stacked = np.zeros(shape, self._inputs[name].dtype)
        for target, array in zip(stacked, present, strict=True):
            target[: len(array)] = array
        return stacked


def _length(row: Inputs) -> int:
    return max(len(array) for array in row.values())


def _padded(array: Array, length: int, *, axis: int) -> Array:
    """Return `array` with zeros behind what it has along `axis`."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths)


def _default_mask(row: Inputs) -> Array | None:
    if "attention_mask" in row:
        return row["attention_mask"]
    return np.ones(len(row["input_ids"]), np.int64) if "input_ids" in row else None
