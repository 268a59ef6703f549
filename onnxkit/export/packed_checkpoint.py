"""AWQ and GPTQ checkpoints: what stands in `qweight`, `qzeros`, `scales` and `g_idx`.

Both pack codes of 4 (GPTQ also 8) bits into int32 words, from the low bits up:

- AWQ ("gemm"): along the outputs, `qweight [K, N/8]`, in the order 0 2 4 6 1 3 5 7 within a word;
  `qzeros [groups, N/8]` alike. https://github.com/casper-hansen/AutoAWQ, `awq/utils/packing_utils.py`.
- GPTQ: along the depth, `qweight [K/8, N]`; `qzeros [groups, N/8]` along the outputs, which the first format
  stores less one, word by word (a zero borrows from its neighbour), and `gptq_v2` as they are. `g_idx [K]`
  names the group of each place. https://github.com/ModelCloud/GPTQModel, `gptqmodel/utils/model.py`.

In both `scales [groups, N]`, and a weight is (code - zero point) · scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.export.packed import PackedWeight, block_size, by_block, in_blocks
from onnxkit.graph import nbits
from onnxkit.safety import printable

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, ir.TensorProtocol]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_WORD = 32


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a checkpoint says that it is quantized.

    Attributes:
        method: whose format it is.
        bits: of a code.
        group: weights along the depth that share a scale; -1: all of them.
        less_one: zero points are stored less one.
    """

    method: Literal["awq", "gptq"]
    bits: int
    group: int
    less_one: bool = False

    def describe(self) -> str:
        """In plain words."""
        groups = f"groups of {self.group}" if self.group > 0 else "one group"
        return f"{self.method}, {self.bits} bits, {groups}"


def read_packing(settings: Mapping[str, Any], where: str) -> Packing | None:
    """What `quantization_config` in a config.json says; None where it says nothing of AWQ or GPTQ.

    Raises:
        InputError: a variant of these formats that is not read.
    """
    given = settings.get("quantization_config")
    method = str(given.get("quant_method", "")).lower() if isinstance(given, Mapping) else ""
    if not isinstance(given, Mapping) or method not in ("awq", "gptq"):
        return None
    layout = str(given.get("checkpoint_format") or given.get("format") or given.get("version") or "").lower()
    known = ("", "gemm") if method == "awq" else ("", "gptq", "gptq_v2")
    bits, group = given.get("bits", given.get("w_bit")), given.get("group_size", given.get("q_group_size"))
    if layout not in known:
        raise InputError(
            f"{where}: {method} in the layout {printable(layout)!r} is not read, only {', '.join(known[1:])}"
        )
    if bits not in ((4,) if method == "awq" else nbits.BITS):
        raise InputError(f"{where}: {method} of {printable(str(bits))} bits is not read, only 4 (GPTQ: or 8)")
    if not isinstance(group, int) or group == 0 or group < -1:
        raise InputError(f"{where}: group_size {printable(str(group))} is no size")
    first = method == "gptq" and layout != "gptq_v2"
    return Packing(method="awq" if method == "awq" else "gptq", bits=bits, group=group, less_one=first)


def packed_weights(tensors: Tensors, packing: Packing) -> tuple[dict[str, PackedWeight], Tensors]:
    """Take the packed weights out of a checkpoint's tensors.

    Returns:
        the weights as "module.weight", and the tensors that are no part of one.

    Raises:
        InputError: a part is missing, or shapes do not fit each other.
    """
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    taken = {f"{stem}.{part}" for stem in stems for part in _PARTS}
    scaled = next((name for name in tensors if name.endswith(".scales") and name not in taken), None)
    if scaled is not None:  # AWQ scales what an activation function gives: no model class has a place for it
        raise InputError(f"the tensor {printable(scaled)} scales activations, which export does not apply")
    weights = {f"{stem}.weight": _packed(stem, tensors, packing) for stem in stems}
    return weights, {name: tensor for name, tensor in tensors.items() if name not in taken}


def _packed(stem: str, tensors: Tensors, packing: Packing) -> PackedWeight:
    for part in _PARTS[:3]:
        if f"{stem}.{part}" not in tensors:
            raise InputError(f"{printable(stem)} has a qweight and no {part}")
    words, scales = tensors[f"{stem}.qweight"], tensors[f"{stem}.scales"].numpy()
    zeros = _zero_points(tensors[f"{stem}.qzeros"].numpy(), packing)
    rows, columns = (int(size) for size in words.shape.numpy())
    many = _WORD // packing.bits
    depth, channels = (rows, columns * many) if packing.method == "awq" else (rows * many, columns)
    group = depth if packing.group < 0 else packing.group
    size = block_size(group)
    if scales.shape != (-(-depth // group), channels) or zeros.shape != scales.shape:
        raise InputError(
            f"{printable(stem)}: scales {list(scales.shape)} and zero points {list(zeros.shape)} do not fit "
            f"a weight of {channels} x {depth} in groups of {group}"
        )
    if size is None:
        raise InputError(
            f"{printable(stem)}: ONNX Runtime has no blocks for groups of {group}: 16 must divide them"
        )
    order = _order(tensors.get(f"{stem}.g_idx"), depth, group, stem)

    def codes() -> Array:
        unpacked = _codes(words.numpy(), packing)
        return in_blocks(np.ascontiguousarray((unpacked if order is None else unpacked[order]).T), size)

    symmetric = bool((zeros == nbits.middle(packing.bits)).all())
    half = scales.dtype == np.float16
    return PackedWeight(
        bits=packing.bits,
        size=size,
        depth=depth,
        codes=codes,
        scales=by_block(scales.T if half else scales.T.astype(np.float32), group, size, depth),
        zero_points=None if symmetric else by_block(zeros.T, group, size, depth),
        order=order,
    )


def _codes(words: Array, packing: Packing) -> Array:
    """uint8 `[K, N]`."""
    if packing.method == "awq":
        return _along_outputs(words, packing)
    parts = _unpacked(words, packing.bits)  # [K/many, N, many]
    return parts.swapaxes(1, 2).reshape(-1, words.shape[1])


def _zero_points(words: Array, packing: Packing) -> Array:
    """uint8 `[groups, N]`."""
    if packing.less_one:
        ones = sum(1 << shift for shift in range(0, _WORD, packing.bits))
        words = (words.view(np.uint32) + np.uint32(ones)).view(np.int32)
    return _along_outputs(words, packing)


def _along_outputs(words: Array, packing: Packing) -> Array:
    parts = _unpacked(words, packing.bits)
    if packing.method == "awq":
        parts = parts[..., np.argsort(_AWQ_ORDER)]
    return parts.reshape(len(words), -1)


def _unpacked(words: Array, bits: int) -> Array:
    """The codes of each word, the low bits first: uint8 `[..., 32 / bits]`."""
    octets = np.ascontiguousarray(words, "<i4")[..., None].view(np.uint8)
    return nbits.unpack_codes(octets, bits)


def _order(tensor: ir.TensorProtocol | None, depth: int, group: int, stem: str) -> Array | None:
    """The places along the depth, group after group; None where they stand so."""
    if tensor is None:
        return None
    indices, in_turn = tensor.numpy().astype(np.int64), np.arange(depth) // group
    if np.array_equal(indices, in_turn):
        return None
    order = np.argsort(indices, kind="stable")
    if indices.shape != (depth,) or not np.array_equal(indices[order], in_turn):
        raise InputError(f"{printable(stem)}: its g_idx does not give every group its {group} places")
    return order
