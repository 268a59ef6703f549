"""The blocks of GGUF files (llama.cpp's formats) as MatMulNBits stores them.

Source of the layouts: `ggml-common.h` and `ggml-quants.c` of https://github.com/ggml-org/ggml. In a block of
32 codes of 4 bits the first half stands in the low halves of the bytes, the second in the high ones. Codes
of 5 and 6 bits become codes of 8. All scales and minimums are float16; the K formats multiply them with
small integers, which gives values of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from onnxkit.export.packed import PackedWeight

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """One format; its functions take a record a row, uint8 `[records, width]`.

    Attributes:
        width: bytes of a record: a block, or a super-block of the K formats.
        bits, size: of a code as it will be stored, and of a block.
        codes: uint8 `[records, …]`, in turn.
        scales, minimums: `[records, blocks]`.
    """

    width: int
    bits: int
    size: int
    codes: Callable[[Array], Array]
    scales: Callable[[Array], Array]
    minimums: Callable[[Array], Array] | None = None


def packed_tensors(file: Path, model: PreTrainedModel) -> tuple[dict[str, PackedWeight], dict[str, str]]:
    """The quantized matrices of a file, under the names of the model's parameters.

    Returns:
        those in a format that can be repacked, and the format of those that cannot.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    reader = GGUFReader(file)
    names = _names(reader, model)
    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    weights: dict[str, PackedWeight] = {}
    others: dict[str, str] = {}
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name is None or tensor.tensor_type in plain or len(tensor.shape) != 2:
            continue
        layout = _LAYOUTS.get(tensor.tensor_type.name)
        if layout is None:
            others[name] = tensor.tensor_type.name
        else:
            weights[name] = _packed(tensor.data, layout)
    return weights, others


def same_as(weight: PackedWeight, parameter: torch.Tensor, heads: tuple[int, ...]) -> PackedWeight | None:
    """The packed weight whose decoded values are those of the loaded parameter, bit by bit, or None.

    Files hold the rows of rotated projections in another order than transformers (`heads`: how many there may
    be), and a format with minimums can be exact with codes around their middle, or around zero only.
    """
    wanted = parameter.detach().numpy()
    if wanted.shape != (weight.channels, weight.depth):
        return None
    for candidate in _candidates(weight, heads):
        if np.array_equal(candidate.decoded(), wanted):
            return candidate
    return None


def _candidates(weight: PackedWeight, heads: tuple[int, ...]) -> Iterator[PackedWeight]:
    around = [weight]
    if weight.minimums is not None:
        around.append(replace(weight, zero_points=np.zeros(weight.scales.shape, np.uint8)))
    for count in (None, *heads):
        for each in around:
            if count is None:
                yield each
            elif weight.channels % (2 * count) == 0:
                yield _reordered(each, _in_halves(weight.channels, count))


def _in_halves(rows: int, heads: int) -> Array:
    """Llama.cpp rotates pairs that stand side by side, transformers the halves of a head."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _reordered(weight: PackedWeight, rows: Array) -> PackedWeight:
    zeros, minimums = weight.zero_points, weight.minimums
    return replace(
        weight,
        codes=lambda: weight.codes()[rows],
        scales=weight.scales[rows],
        zero_points=None if zeros is None else zeros[rows],
        minimums=None if minimums is None else minimums[rows],
    )


def _names(reader: Any, model: PreTrainedModel) -> Mapping[str, str]:
    """The file's tensor names → the model's, as transformers reads them."""
    field = reader.get_field("general.architecture")
    processor: Any = TENSOR_PROCESSORS.get(str(field.contents()), TensorProcessor)
    names: Mapping[str, str] = get_gguf_hf_weights_map(model, processor(config={}))
    return names


def _packed(data: Array, layout: _Layout) -> PackedWeight:
    """A matrix from its rows of bytes; they are mapped, and only scales are kept."""
    rows = len(data)

    def records() -> Array:
        return np.ascontiguousarray(data).reshape(-1, layout.width)

    def codes() -> Array:
        return layout.codes(records()).reshape(rows, -1, layout.size)

    scales = layout.scales(records()).reshape(rows, -1)
    minimums = layout.minimums(records()).reshape(rows, -1) if layout.minimums is not None else None
    return PackedWeight(
        bits=layout.bits, size=layout.size, depth=scales.shape[1] * layout.size, codes=codes, scales=scales,
        minimums=minimums,
    )  # fmt: skip


def _half(at: int) -> Callable[[Array], Array]:
    """One float16 a record, `[records, 1]`."""
    return lambda records: np.ascontiguousarray(records[:, at : at + 2]).view(np.float16)


def _halves(packed: Array) -> Array:
    """Codes of 4 bits, the low halves of all bytes first: `[…, bytes]` → `[…, 2·bytes]`."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _times(half: Array, integers: Array) -> Array:
    """Exact in float32: 11 bits times 8."""
    product: Array = half.astype(np.float32) * integers.astype(np.float32)
    return product


def _q5_0_codes(records: Array) -> Array:
    """The fifth bits stand in 4 bytes; the middle 16 becomes 128."""
    high: Array = np.unpackbits(records[:, 2:6], axis=-1, bitorder="little") << 4
    return (_halves(records[:, 6:]) | high) + np.uint8(112)


def _q4_k_codes(records: Array) -> Array:
    return _halves(records[:, 16:].reshape(-1, 4, 32))


def _q4_k_scales(records: Array) -> Array:
    low, _, mixed = np.split(records[:, 4:16], 3, axis=-1)
    integers = np.concatenate([low & 63, (mixed & 15) | ((low >> 2) & 48)], axis=-1)
    return _times(_half(0)(records), integers)


def _q4_k_minimums(records: Array) -> Array:
    _, low, mixed = np.split(records[:, 4:16], 3, axis=-1)
    integers = np.concatenate([low & 63, (mixed >> 4) | ((low >> 2) & 48)], axis=-1)
    minimums: Array = -_times(_half(2)(records), integers)
    return minimums


def _q6_k_codes(records: Array) -> Array:
    """Four low bits of 256 codes, then two high bits; the middle 32 becomes 128."""
    low = records[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1)
    high = records[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    return ((low & 15).reshape(-1, 256) | ((high & 3).reshape(-1, 256) << 4)) + np.uint8(96)


def _q6_k_scales(records: Array) -> Array:
    integers = np.ascontiguousarray(records[:, 192:208]).view(np.int8)
    return _times(_half(208)(records), integers)


_LAYOUTS: Mapping[str, _Layout] = {
    "Q4_0": _Layout(
        width=18, bits=4, size=32, scales=_half(0), codes=lambda records: _halves(records[:, 2:])
    ),
    "Q4_1": _Layout(
        width=20, bits=4, size=32, scales=_half(0), minimums=_half(2),
        codes=lambda records: _halves(records[:, 4:]),
    ),
    "Q5_0": _Layout(width=22, bits=8, size=32, scales=_half(0), codes=_q5_0_codes),
    "Q8_0": _Layout(width=34, bits=8, size=32, scales=_half(0), codes=lambda records: records[:, 2:] ^ 128),
    "Q4_K": _Layout(
        width=144, bits=4, size=32, scales=_q4_k_scales, minimums=_q4_k_minimums, codes=_q4_k_codes
    ),
    "Q6_K": _Layout(width=210, bits=8, size=16, scales=_q6_k_scales, codes=_q6_k_codes),
}  # fmt: skip

REPACKED = tuple(_LAYOUTS)
"""The formats of GGUF files that become blocks without another rounding."""
