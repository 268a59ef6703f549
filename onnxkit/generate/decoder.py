"""A decoder graph behind an interface: prefill, step, continue, forget, and move rows.

Law of a batch: its rows are contiguous and right-aligned. Row i's tokens fill the slots from `pads[i]`
to `used`; the slots before are padding, never a hole. This is right for every operator, also
for those that know a window or an offset by slots.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.artifact.configuration import attention_heads, turning_length
from onnxkit.errors import InputError
from onnxkit.generate.budget import check_text
from onnxkit.generate.cache import Array, Cache, GrowingCache, SharedCache
from onnxkit.generate.encoder import Cross
from onnxkit.generate.huge_pages import HugePages
from onnxkit.generate.roles import roles_of
from onnxkit.machine import allocate_side_by_side, cpu
from onnxkit.runtime import RuntimeOptions, Session, array_of, bits_dtype, open_session

# Tokens of one run of a long prompt: of more, attention computes scores that the causal mask drops, and its
# matrix, chunk x total a head, leaves the caches; of fewer, the linears slow down (docs/benchmarks.md).
CHUNK = 256
# Bytes that one run's attention matrix of one layer may take.
_SCORE_BYTES = 1 << 28


class Decoder:
    """A loaded decoder graph. Make one with `Decoder.open`.

    Attributes:
        session: the loaded graph.
        roles: what its inputs mean.
        vocabulary: size of the logits' last axis.
        stepwise: whether it takes one token a run only.
        pages: moves the weights into huge pages when that pays.
    """

    def __init__(self, session: Session, config: Mapping[str, Any], *, stepwise: bool = False) -> None:
        """Read the roles; config.json tells the heads, and the vocabulary where the graph does not."""
        self.session = session
        self.stepwise = stepwise
        self.roles = roles_of(session)
        vocabulary = self.roles.vocabulary or config.get("vocab_size")
        if not isinstance(vocabulary, int):
            raise InputError(
                f"{session.model}: neither the graph nor config.json tells the vocabulary's size"
            )
        self.vocabulary = vocabulary
        self.pages = HugePages()
        self._turning = turning_length(config)
        self._heads = attention_heads(config) or max(tensor.heads for tensor in self.roles.cache)

    @classmethod
    def open(
        cls, file: Path, runtime: RuntimeOptions, config: Mapping[str, Any], *, stepwise: bool = False
    ) -> Decoder:
        """Load a decoder; `stepwise` where it was made for one new token (optimum's decoder with past).

        Raises:
            InputError: no decoder with a cache, or an input whose meaning is unknown.
            EnvironmentProblem, ResourceError: as `open_session`.
        """
        whole_scores = cpu().x86 and turning_length(config) is None  # which long prompts would need at once
        options = dataclasses.replace(runtime, whole_scores=whole_scores)
        allocate_side_by_side()
        return cls(open_session(file, options), config, stepwise=stepwise)

    @property
    def slot_bytes(self) -> int:
        """Bytes that one token of one row takes: its slot, and the copy that a growing cache makes."""
        bytes_ = sum(tensor.slot_bytes for tensor in self.roles.cache)
        return bytes_ if self.roles.shared else 2 * bytes_

    def chunk(self, held: int) -> int:
        """Return how many tokens one run adds to a row that holds `held`: fewer where scores get large."""
        return max(1, min(CHUNK, _SCORE_BYTES // (4 * self._heads * (held + CHUNK))))

    def runs_whole(self, total: int, *, logits: int = 1) -> bool:
        """Whether a text of so many tokens is run at once: its rotations depend on how long it is.

        Raises:
            ResourceError: its scores, where attention keeps them, or its logits do not fit into memory.
        """
        if self._turning is None or total <= self._turning:
            return False
        scores = 0 if self.roles.shared else self._heads * total**2
        needed = 2 * 4 * (scores + logits * self.vocabulary)
        check_text(needed, f"the scores of {total} tokens, which this model must run at once,")
        return True

    def batch(self, rows: int, *, announced: tuple[int, int], cross: Cross | None = None) -> Batch:
        """Return `rows` empty rows; `announced` is the most rows and slots that will probably be needed."""
        cache: Cache
        if self.roles.shared:
            cache = SharedCache(self.session, self.roles.cache, rows, announced=announced)
        else:
            cache = GrowingCache(self.roles.cache, rows)
        return Batch(self, cache, cross)

    def prefill(
        self, prompts: Sequence[Array], *, announced: tuple[int, int], cross: Cross | None = None
    ) -> tuple[Batch, Array]:
        """Compute the prompts (int64 [n] each) as a new batch.

        Returns:
            the batch, and the logits after each prompt: float32 [rows, vocabulary].
        """
        batch = self.batch(len(prompts), announced=announced, cross=cross)
        if len(prompts) == 1:
            return batch, batch.extend(prompts[0])
        return batch, batch.fill(prompts)


class Batch:
    """Rows that are decoded together. Made by `Decoder.batch` or `Decoder.prefill`.

    Logits are views on memory that the next run overwrites.

    Attributes:
        pads: int64 [rows], the first slot of each row.
    """

    def __init__(self, decoder: Decoder, cache: Cache, cross: Cross | None) -> None:
        """Bind nothing yet."""
        self._decoder = decoder
        self._roles = decoder.roles
        self._cache = cache
        self._cross = cross
        self._binding = decoder.session.binding()
        self._in_place = decoder.session.device == "cpu"
        self._fed: dict[str, Array] = {}
        self._mask_memory = np.zeros(0, np.int64)
        self.pads = np.zeros(cache.rows, np.int64)
        self._ids = self._positions = np.zeros((0, 0), np.int64)
        self._logits = np.zeros((0, 0, 0), np.float32)
        self._keep = np.zeros((), np.int64)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._cache.rows

    @property
    def used(self) -> int:
        """Slots of every row, padding included."""
        return self._cache.used

    def step(self, tokens: Array) -> Array:
        """Append one token to every row (int64 [rows]); return float32 [rows, vocabulary]."""
        return self._run(tokens[:, None], keep=1)[:, -1]

    def extend(self, ids: Array, *, keep: int = 1) -> Array:
        """Append int64 [n] to the only row; return the last `keep` logits, float32 [keep, vocabulary].

        With `keep=1` long inputs are run in chunks, where that changes nothing. (Several rows cannot be
        continued by more than one token: the fused attention of ONNX Runtime refuses it.)
        """
        if self._decoder.stepwise:
            rows = [self._run(ids[None, place : place + 1], keep=1)[0, 0].copy() for place in range(len(ids))]
            return np.stack(rows[-keep:])
        first = 0
        cuts = keep == 1 and not self._decoder.runs_whole(self.used + len(ids))
        while cuts and len(ids) - first > (size := self._decoder.chunk(self.used)):
            self._run(ids[None, first : first + size], keep=1)
            first += size
        last: Array = self._run(ids[None, first:], keep=keep)[0]
        return last

    def fill(self, prompts: Sequence[Array]) -> Array:
        """Compute one prompt a row, from empty; return float32 [rows, vocabulary] after the last tokens."""
        longest = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
        self.pads = np.array([longest - len(prompt) for prompt in prompts], np.int64)
        if self._decoder.stepwise:
            for place in range(longest - 1):
                self.step(ids[:, place])
            return self.step(ids[:, -1])
        return self._run(ids, keep=1)[:, -1]

    def truncate(self, length: int) -> None:
        """Let the only row have its first `length` tokens."""
        self._cache.truncate(int(self.pads[0]) + length)

    def select(self, rows: Array) -> None:
        """Let row i be the former row `rows[i]`: drops, repeats, reorders. A large common padding goes."""
        self._cache.select(rows)
        if self._cross is not None:
            self._cross.select(rows)
        self.pads = self.pads[rows]
        if len(rows) and (unused := int(self.pads.min())) > self.used // 4:
            self._cache.trim(unused)
            self.pads = self.pads - unused

    def join(self, other: Batch) -> None:
        """Append the rows of `other` (without an encoder), right-aligned."""
        used = max(self.used, other.used)
        self.pads = np.concatenate([self.pads + used - self.used, other.pads + used - other.used])
        self._cache.join(other._cache)

    def _run(self, ids: Array, *, keep: int) -> Array:
        """Run int64 [rows, new]; return the logits of the last `keep` positions, float32 [rows, keep, V]."""
        new = ids.shape[1]
        self._prepare(ids, keep)
        self._cache.bind(self._binding, new)
        if self._cross is not None:
            self._cross.bind(self._binding)
        started = time.perf_counter()
        self._binding.run()
        if self._in_place:
            self._decoder.pages.spent(time.perf_counter() - started)
        self._cache.ran(self._binding, new)
        logits = self._logits
        if not logits.size:  # the graph decided how many positions it gives
            logits = array_of(self._binding.values()[self._roles.logits], self._roles.logits_dtype)
            if logits.shape[1] < keep:
                raise InputError(
                    f"{self._decoder.session.model}: it gives the last logits only, {keep} are "
                    "needed: export it anew with onnxkit"
                )
        return as_float32(logits[:, -keep:], self._roles.logits_dtype)

    def _prepare(self, ids: Array, keep: int) -> None:
        """Write the small inputs into their buffers; bind those that changed."""
        roles, (rows, new) = self._roles, ids.shape
        if self._ids.shape != ids.shape:
            self._ids, self._positions = np.empty((rows, new), np.int64), np.empty((rows, new), np.int64)
        self._ids[...] = ids
        self._put(roles.ids, self._ids)
        if roles.positions:
            np.subtract(self.used + np.arange(new), self.pads[:, None], out=self._positions)
            np.maximum(self._positions, 0, out=self._positions)
            self._put(roles.positions, self._positions)
        if roles.mask:
            self._put(roles.mask, self._mask(self.used + new))
        if roles.keep:
            self._keep[...] = keep
            self._put(roles.keep, self._keep)
        self._bind_logits((rows, keep if roles.keep else new, self._decoder.vocabulary))

    def _bind_logits(self, shape: tuple[int, int, int]) -> None:
        if not self._roles.keep and shape[1] > 1:
            # All positions, or (foreign graphs with a pruned head) the last: ONNX Runtime allocates.
            self._logits = np.zeros((0, 0, 0), np.float32)
            self._binding.fetch_value(self._roles.logits)
        elif self._logits.shape != shape:
            self._logits = np.empty(shape, bits_dtype(self._roles.logits_dtype))
            self._binding.fetch(self._roles.logits, self._logits)

    def _put(self, name: str, array: Array) -> None:
        if not self._in_place or self._fed.get(name) is not array:
            self._binding.feed(name, array)
            self._fed[name] = array

    def _mask(self, total: int) -> Array:
        size = self.rows * total
        if len(self._mask_memory) < size:
            self._mask_memory = np.empty(max(size, 2 * len(self._mask_memory)), np.int64)
        mask = self._mask_memory[:size].reshape(self.rows, total)
        mask.fill(1)
        for row in np.flatnonzero(self.pads):
            mask[row, : self.pads[row]] = 0
        return mask


def as_float32(logits: Array, dtype: str) -> Array:
    """Return logits as float32: themselves, or converted (bfloat16 comes as uint16 bits)."""
    if dtype == "bfloat16":
        return (logits.astype(np.uint32) << 16).view(np.float32)
    return logits if logits.dtype == np.float32 else logits.astype(np.float32)
