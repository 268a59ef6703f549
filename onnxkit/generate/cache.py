"""Keys and values of the tokens so far, in the two ways in which graphs keep them.

Both caches hold rows of equal length `used`; a shorter row is padded at its left (which slots are
padding, the batch knows). Slots hold [kv_heads, head_dim] vectors per layer, for keys and for values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxkit.runtime import Binding, Buffer, Session, TensorSpec, array_of, bits_dtype

Array = np.ndarray[Any, Any]

# Slots that a shared buffer has at least: growing below costs more than it saves.
_FIRST_SLOTS = 256
_STEP_SLOTS = 64


@dataclass(frozen=True, kw_only=True)
class CacheTensor:
    """One cache tensor of a graph, [rows, heads, slots, width].

    Attributes:
        past, present: names of the input and of the output.
        heads, width: key/value heads and size of a head.
        dtype: as in TensorSpec.
    """

    past: str
    present: str
    heads: int
    width: int
    dtype: str

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of one row."""
        return self.heads * self.width * np.dtype(bits_dtype(self.dtype)).itemsize

    def zeros(self, rows: int, slots: int) -> Array:
        """Return zeroed host memory (bfloat16: uint16 bits)."""
        return np.zeros((rows, self.heads, slots, self.width), bits_dtype(self.dtype))


def cache_tensor(spec: TensorSpec, present: str) -> CacheTensor | None:
    """Describe the input `spec`; None unless it is [rows, heads, slots, width], heads and width fixed."""
    if len(spec.shape) != 4:
        return None
    heads, width = spec.shape[1], spec.shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    return CacheTensor(past=spec.name, present=present, heads=heads, width=width, dtype=spec.dtype)


class Cache(ABC):
    """Keys and values of `rows` rows, `used` slots each.

    Row operations (`select`, `trim`, `join`) move memory on the host; from and to a device it is
    copied for that. They happen when the batch changes, not in a step.
    """

    def __init__(self, tensors: Sequence[CacheTensor], rows: int) -> None:
        self.tensors = tuple(tensors)
        self.rows = rows
        self.used = 0

    @abstractmethod
    def bind(self, binding: Binding, new: int) -> None:
        """Bind past and present for a run that adds `new` slots to every row."""

    def ran(self, binding: Binding, new: int) -> None:
        """Take note of the run: what it wrote counts from now on (a run that failed leaves all as it was)."""
        self.used += new

    @abstractmethod
    def truncate(self, used: int) -> None:
        """Forget all slots from `used` on."""

    @abstractmethod
    def select(self, rows: Array) -> None:
        """Let row i be the former row `rows[i]`: drops, repeats and reorders rows."""

    @abstractmethod
    def trim(self, slots: int) -> None:
        """Forget the first `slots` slots."""

    @abstractmethod
    def join(self, other: Cache) -> None:
        """Append the rows of `other`; the shorter of the two is padded at its left with zeros."""

    @abstractmethod
    def arrays(self) -> list[Array]:
        """Return every tensor [rows, heads, used, width] on the host (on a CPU, views)."""


class GrowingCache(Cache):
    """For graphs whose `present` is a new tensor: last run's outputs are the next one's inputs, uncopied."""

    def __init__(self, tensors: Sequence[CacheTensor], rows: int) -> None:
        super().__init__(tensors, rows)
        # Arrays (after row operations) or ONNX Runtime's values (after a run).
        self._content: list[Any] = [tensor.zeros(rows, 0) for tensor in self.tensors]

    def bind(self, binding: Binding, new: int) -> None:
        """Bind the last present as past, and let ONNX Runtime allocate the next."""
        for tensor, content in zip(self.tensors, self._content, strict=True):
            if isinstance(content, np.ndarray):
                binding.feed(tensor.past, content)
            else:
                binding.feed_value(tensor.past, content)
            binding.fetch_value(tensor.present)

    def ran(self, binding: Binding, new: int) -> None:
        """Keep the presents."""
        values = binding.values()
        self._content = [values[tensor.present] for tensor in self.tensors]
        self.used += new

    def truncate(self, used: int) -> None:
        """Forget all slots from `used` on (copies what stays)."""
        if used < self.used:
            self._content = [np.ascontiguousarray(array[:, :, :used]) for array in self.arrays()]
            self.used = used

    def select(self, rows: Array) -> None:
        """Gather rows."""
        self._content = [array[rows] for array in self.arrays()]
        self.rows = len(rows)

    def trim(self, slots: int) -> None:
        """Forget the first `slots` slots."""
        self._content = [np.ascontiguousarray(array[:, :, slots:]) for array in self.arrays()]
        self.used -= slots

    def join(self, other: Cache) -> None:
        """Append the rows of `other`, right-aligned."""
        used = max(self.used, other.used)
        joined = []
        for tensor, mine, theirs in zip(self.tensors, self.arrays(), other.arrays(), strict=True):
            both = tensor.zeros(self.rows + other.rows, used)
            both[: self.rows, :, used - self.used :] = mine
            both[self.rows :, :, used - other.used :] = theirs
            joined.append(both)
        self._content = joined
        self.rows, self.used = self.rows + other.rows, used

    def arrays(self) -> list[Array]:
        """Return every tensor on the host."""
        return [
            content if isinstance(content, np.ndarray) else array_of(content, tensor.dtype)
            for tensor, content in zip(self.tensors, self._content, strict=True)
        ]


class SharedCache(Cache):
    """One buffer a tensor, [row room, heads, slot room, width], that is past *and* present.

    For graphs whose attention appends in place (metadata `onnxkit.cache` = `shared`). The first `rows`
    rows are bound; slots from `used` on are not read. Room doubles up to what was announced.
    """

    def __init__(
        self, session: Session, tensors: Sequence[CacheTensor], rows: int, *, announced: tuple[int, int]
    ) -> None:
        """Allocate nothing yet; `announced` is the most rows and slots that will probably be needed."""
        super().__init__(tensors, rows)
        self._session = session
        self._announced = announced
        self._room = (0, 0)
        self._buffers: list[Buffer] = []
        self._bound: tuple[int, tuple[int, int]] | None = None

    def bind(self, binding: Binding, new: int) -> None:
        """Bind the buffers, where rows or room changed since the last time."""
        self._reserve(self.rows, self.used + new)
        if self._bound == (self.rows, self._room):
            return
        for tensor, buffer in zip(self.tensors, self._buffers, strict=True):
            shape = (self.rows, *buffer.shape[1:])
            binding.feed_buffer(tensor.past, buffer, shape)
            binding.fetch_buffer(tensor.present, buffer, shape)
        self._bound = (self.rows, self._room)

    def truncate(self, used: int) -> None:
        """Forget all slots from `used` on: nothing moves."""
        self.used = min(used, self.used)

    def select(self, rows: Array) -> None:
        """Gather rows in place; only those that change are copied."""
        self._reserve(len(rows), self.used)
        changed = np.flatnonzero(rows != np.arange(len(rows)))
        if len(changed):
            for buffer in self._buffers:
                content = buffer.host()
                content[changed, :, : self.used] = content[rows[changed], :, : self.used]
                buffer.put(content)
        self.rows = len(rows)

    def trim(self, slots: int) -> None:
        """Move all rows to the left by `slots`."""
        self._move(0, self.rows, source=slots, target=0, length=self.used - slots)
        self.used -= slots

    def join(self, other: Cache) -> None:
        """Append the rows of `other`, right-aligned."""
        used, rows = max(self.used, other.used), self.rows + other.rows
        self._reserve(rows, used)
        if used > self.used:
            self._move(0, self.rows, source=0, target=used - self.used, length=self.used)
        for buffer, theirs in zip(self._buffers, other.arrays(), strict=True):
            content = buffer.host()
            content[: self.rows, :, : used - self.used] = 0
            content[self.rows : rows, :, : used - other.used] = 0
            content[self.rows : rows, :, used - other.used : used] = theirs
            buffer.put(content)
        self.rows, self.used = rows, used

    def arrays(self) -> list[Array]:
        """Return every tensor's used part on the host."""
        return [buffer.host()[: self.rows, :, : self.used] for buffer in self._buffers]

    def _move(self, first: int, last: int, *, source: int, target: int, length: int) -> None:
        for buffer in self._buffers:
            content = buffer.host()
            # numpy copies overlapping memory as if through a temporary.
            content[first:last, :, target : target + length] = content[
                first:last, :, source : source + length
            ]
            buffer.put(content)

    def _reserve(self, rows: int, slots: int) -> None:
        """Make room for `rows` rows of `slots` slots, tensor by tensor, so that only one exists twice."""
        if rows <= self._room[0] and slots <= self._room[1]:
            return
        most_rows, most_slots = self._announced
        wanted = self._room[1]
        if slots > wanted:
            doubled = max(2 * wanted, _FIRST_SLOTS)
            wanted = max(slots, min(doubled, most_slots) if slots <= most_slots else doubled)
            wanted = _STEP_SLOTS * math.ceil(wanted / _STEP_SLOTS)
        room = (max(rows, self._room[0], most_rows), wanted)
        for position, tensor in enumerate(self.tensors):
            buffer = Buffer(self._session, (room[0], tensor.heads, room[1], tensor.width), tensor.dtype)
            if self._buffers and self.used:
                content = buffer.host()
                old = self._buffers[position].host()
                content[: self.rows, :, : self.used] = old[: self.rows, :, : self.used]
                buffer.put(content)
            if position < len(self._buffers):
                self._buffers[position] = buffer
            else:
                self._buffers.append(buffer)
        self._room, self._bound = room, None
