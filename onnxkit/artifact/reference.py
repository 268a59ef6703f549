"""`reference.npz`: inputs, and a sample of the outputs that PyTorch gave for them.

With it a check of numbers can be repeated on any machine, without PyTorch and the checkpoint.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxkit.errors import InputError
from onnxkit.safety import read_npz

MAX_REFERENCE_BYTES = 2_000_000
_SCHEMA = 1
_INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class ReferenceOutput:
    """A sample of one output.

    Attributes:
        shape: the output's whole shape.
        index: int64 [k], flat positions into it (C order), ascending.
        values: float32 or the output's own type [k], its values there.
        scale: the largest absolute value of the whole output at valid positions.
    """

    shape: tuple[int, ...]
    index: NDArray[np.int64]
    values: NDArray[Any]
    scale: float


@dataclass(frozen=True, kw_only=True)
class ReferenceCase:
    """One set of inputs and a sample of what the reference gave for it.

    Attributes:
        name: for instance "left padding".
        inputs: whole arrays by input name.
        outputs: samples by output name.
        component: the graph that it is for.
    """

    name: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, ReferenceOutput]
    component: str = "model"


def sample_output(
    output: NDArray[Any], *, valid: NDArray[np.bool_] | None = None, count: int = 1024, seed: int = 0
) -> ReferenceOutput:
    """Draw at most `count` positions of `output`, the largest absolute value always among them.

    `valid` (bool) says which positions count; its axes are the output's first ones, so an
    attention mask [B, S] serves an output [B, S, H]. Padded positions are never sampled. Float
    types that numpy lacks, and fp16, are kept as float32.

    Raises:
        InputError: `valid` does not fit the output, or nothing is valid.
    """
    values = np.asarray(output)
    if values.dtype.kind not in "iufb" or values.dtype == np.float16:
        values = values.astype(np.float32)
    positions = np.flatnonzero(_spread(valid, values.shape))
    if not positions.size:
        raise InputError(f"no valid position in an output of shape {list(values.shape)}")
    flat = values.reshape(-1)
    magnitude = np.abs(flat[positions].astype(np.float64))
    peak = int(np.argmax(magnitude))
    chosen = np.random.default_rng(seed).permutation(positions.size)[: max(count - 1, 0)]
    index = positions[np.unique(np.append(chosen, peak))].astype(np.int64)
    return ReferenceOutput(shape=values.shape, index=index, values=flat[index], scale=float(magnitude[peak]))


def _spread(valid: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if valid is None:
        return np.ones(shape, dtype=np.bool_)
    mask = np.asarray(valid, dtype=np.bool_)
    if mask.shape != shape[: mask.ndim]:
        raise InputError(f"a mask of shape {list(mask.shape)} does not fit an output of shape {list(shape)}")
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def save_reference(path: Path, cases: Sequence[ReferenceCase]) -> tuple[str, ...]:
    """Write `cases` to `path`, at most 2 MB, and return the names of those that were kept.

    Cases are kept in the order given; one that would make the file larger than 2 MB is left out
    (four float32 images of 224 by 224 alone are 2.4 MB). When none fits, no file is written. The
    same cases give the same bytes.
    """
    kept: list[ReferenceCase] = []
    data = b""
    for case in cases:
        packed = _pack([*kept, case])
        if len(packed) <= MAX_REFERENCE_BYTES:
            kept.append(case)
            data = packed
    if kept:
        path.write_bytes(data)
    return tuple(case.name for case in kept)


def _pack(cases: Sequence[ReferenceCase]) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    index: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        entry: dict[str, Any] = {
            "name": case.name, "component": case.component, "inputs": sorted(case.inputs), "outputs": {},
        }  # fmt: skip
        for position, name in enumerate(entry["inputs"]):
            arrays[f"{number}.input.{position}"] = np.ascontiguousarray(case.inputs[name])
        for position, (name, output) in enumerate(sorted(case.outputs.items())):
            entry["outputs"][name] = {"shape": list(output.shape), "scale": output.scale}
            arrays[f"{number}.output.{position}.index"] = output.index
            arrays[f"{number}.output.{position}.values"] = output.values
        index.append(entry)
    text = json.dumps({"schema": _SCHEMA, "cases": index}, sort_keys=True)
    buffer = io.BytesIO()
    arrays[_INDEX] = np.frombuffer(text.encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_reference(path: Path) -> tuple[ReferenceCase, ...]:
    """Read what `save_reference` wrote.

    Raises:
        InputError: missing, damaged, or written by a newer onnxkit.
    """
    arrays = read_npz(path, max_bytes=64 * MAX_REFERENCE_BYTES)
    try:
        index = json.loads(arrays[_INDEX].tobytes())
        if index["schema"] > _SCHEMA:
            raise InputError(f"{path}: written by a newer onnxkit (schema {index['schema']}); upgrade")
        return tuple(_unpack(number, entry, arrays) for number, entry in enumerate(index["cases"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: damaged reference data ({type(error).__name__}: {error})") from error


def _unpack(number: int, entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ReferenceCase:
    outputs = {}
    for position, (name, facts) in enumerate(sorted(entry["outputs"].items())):
        stem = f"{number}.output.{position}"
        outputs[name] = _output(facts, arrays[f"{stem}.index"], arrays[f"{stem}.values"])
    inputs = {name: arrays[f"{number}.input.{i}"] for i, name in enumerate(entry["inputs"])}
    return ReferenceCase(
        name=str(entry["name"]),
        inputs=inputs,
        outputs=outputs,
        component=str(entry.get("component", "model")),
    )


def _output(facts: Mapping[str, Any], index: NDArray[Any], values: NDArray[Any]) -> ReferenceOutput:
    shape = tuple(int(size) for size in facts["shape"])
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if index.dtype != np.int64 or index.ndim != 1 or index.shape != values.shape or not index.size:
        raise ValueError("positions and values do not belong together")
    if index.min() < 0 or index.max() >= size:
        raise ValueError("a position outside its output")
    return ReferenceOutput(shape=shape, index=index, values=values, scale=float(facts["scale"]))
