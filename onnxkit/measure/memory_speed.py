"""How fast this machine reads memory, and how much a decoding step has to read: what limits decoding."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

# Larger than any last-level cache that it is likely to meet.
_BYTES = 256 << 20
_WIDTH = 4096
_PASSES = 8
_LOOKUPS = ("Gather", "GatherBlockQuantized")


def read_bandwidth(threads: int) -> float:
    """Measure how many bytes a second `threads` threads read together; the best of several passes.

    Each multiplies its part of a matrix with a vector, which is limited by nothing but reading, as the
    matrix products of a decoding step are. The BLAS of numpy must not start threads of its own.
    """
    rows = _BYTES // 4 // _WIDTH
    matrix = np.ones((rows, _WIDTH), np.float32)
    vector = np.ones(_WIDTH, np.float32)
    parts = [part for part in np.array_split(matrix, max(1, threads)) if len(part)]
    seconds = math.inf
    for _ in range(_PASSES):
        workers = [threading.Thread(target=np.matmul, args=(part, vector)) for part in parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = min(seconds, time.perf_counter() - started)
    return matrix.nbytes / seconds


def weights_read(model: onnx.ModelProto) -> int:
    """Bytes of weights that a decoding step reads: all but tables of which it only looks rows up.

    Tensors that lie at the same place of a file (an embedding and the head that shares it) count once; of a
    mixture of experts all experts count.
    """
    looked_up: set[str] = set()
    read: set[str] = set()
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            table = node.op_type in _LOOKUPS and slot != 1
            (looked_up if table else read).add(name)
    sizes: dict[tuple[str, int] | str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.name in looked_up and tensor.name not in read:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}
        place = (location.get("location", ""), int(location.get("offset", 0)))
        key = place if location else tensor.name
        sizes[key] = max(sizes.get(key, 0), _size(tensor, location.get("length")))
    return sum(sizes.values())


def _size(tensor: onnx.TensorProto, length: str | None) -> int:
    if length is not None:
        return int(length)
    return len(tensor.raw_data) or max(map(len, _typed(tensor)), default=0) * 4


def _typed(tensor: onnx.TensorProto) -> Iterator[list[object]]:
    """Yield the repeated fields that small tensors may stand in instead of raw bytes."""
    yield from (list(tensor.float_data), list(tensor.int32_data), list(tensor.int64_data))
