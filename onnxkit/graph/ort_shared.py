"""Lowerings to operators that ONNX Runtime's CPU and CUDA providers share.

The contracts of the operators: docs/ContribOperators.md of onnxruntime (domain com.microsoft).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import is_stored, producer, small_array
from onnxkit.graph.lowering import Draft, NotApplicable
from onnxkit.graph.regions import Region


@dataclass(frozen=True, kw_only=True)
class Projection:
    """`x @ weight + bias`: weight `[K,N]`, bias `[N]`, both stored."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value


def projection(value: ir.Value | None) -> Projection | None:
    """Return the projection that makes `value`, when it makes it for one user only."""
    add = producer(value, "Add")
    if add is None or value is None or value.is_graph_output() or not _read_once(value):
        return None
    for product, bias in (tuple(add.inputs), tuple(reversed(add.inputs))):
        matmul = producer(product, "MatMul")
        if (
            matmul is None
            or product is None
            or bias is None
            or not is_stored(bias, 1)
            or not _read_once(product)
        ):
            continue
        x, weight = matmul.inputs
        if x is not None and is_stored(weight, 2):
            return Projection(x=x, weight=weight, bias=bias)
    return None


def _read_once(value: ir.Value) -> bool:
    """Whether one node reads it (a node may read it as key and as value)."""
    return len({use.node for use in value.uses()}) == 1


def padding_mask(draft: Draft) -> ir.Value | None:
    """Return the int32 `[B,T]` mask (1: a token) of a region that only masks padding; None without a mask.

    Raises:
        NotApplicable: the mask is more than padding.
    """
    mask = draft.region.inputs.get("mask")
    if mask is None:
        return None
    source = draft.masks.get(mask)
    if source is None or source.attrs["causal"] or source.attrs["window"]:
        raise NotApplicable("the mask is more than padding")
    padding = source.inputs.get("padding")
    if padding is None:
        raise NotApplicable("the mask does not come from a padding mask")
    if padding.dtype == ir.DataType.INT32:
        return padding
    return draft.shared((padding,), "Cast", [padding], to=int(ir.DataType.INT32))


def packed_attention(draft: Draft) -> ir.Value:
    """com.microsoft.Attention: the three projections as one weight `[K,3·N]`, padding as a raw mask.

    Left and right padding are right in it: the mask is `[B,T]`, never the lengths of the rows.
    """
    region = draft.region
    _require(region.attrs["layout"] == "bsh", "q, k and v are not [B,S,H]")
    _plain(region)
    _require(region.inputs.get("bias") is None, "a position bias")
    parts = [projection(region.inputs[role]) for role in "qkv"]
    known = [part for part in parts if part is not None]
    _require(len(known) == 3, "q, k or v is no MatMul with a stored weight and bias of its own")
    _require(len({part.x for part in known}) == 1, "q, k and v have different inputs")
    mask = padding_mask(draft)
    module = region.id.rpartition("#")[0] or region.id
    weight = _packed(draft, f"{module}.qkv.weight", [part.weight for part in known], axis=1)
    bias = _packed(draft, f"{module}.qkv.bias", [part.bias for part in known], axis=0)
    widths = [_width(part.bias) for part in known]
    attributes = _attention_attributes(region)
    if len(set(widths)) > 1:
        attributes["qkv_hidden_sizes"] = widths
    return draft.microsoft("Attention", [known[0].x, weight, bias, mask], **attributes)


def scaled(draft: Draft, queries: ir.Value | None, factor: float) -> ir.Value | None:
    """The queries multiplied by what else would multiply their scores; themselves where that is 1."""
    if factor == 1.0:
        return queries
    return draft.add("Mul", [queries, draft.constant(np.array(factor, np.float32))], name="scaled")


def multi_head_attention(draft: Draft, *, scale_queries: bool = False) -> ir.Value:
    """com.microsoft.MultiHeadAttention: padding as a raw mask, any other mask as an additive bias.

    Keys and values of a cross-attention come as `[B,H,T,D]`, from the cache of the encoder's output.
    `scale_queries` as for `grouped_query_attention`.
    """
    region = draft.region
    _require(region.attrs["layout"] in ("bsh", "cross"), "q, k and v are not [B,S,H]")
    _plain(region)
    attributes = _attention_attributes(region)
    mask = _Mask.of(draft)
    if mask.triangle:
        attributes["unidirectional"] = 1
    terms = (region.inputs.get("bias"), mask.additive)
    additive = [value for value in terms if value is not None and not _zero(value)]
    bias = draft.add("Add", additive, name="bias") if len(additive) > 1 else next(iter(additive), None)
    q, k, v = (region.inputs[role] for role in "qkv")
    if scale_queries:
        q, attributes["scale"] = scaled(draft, q, attributes["scale"]), 1.0
    return draft.microsoft("MultiHeadAttention", [q, k, v, None, mask.padding, bias], **attributes)


def _plain(region: Region) -> None:
    """Refuse what the operators of encoders do not compute."""
    _require(region.attrs["kv_num_heads"] == region.attrs["num_heads"], "grouped heads")
    _require(not region.attrs.get("softcap"), "a soft cap of the scores")
    _require(region.inputs.get("sinks") is None, "attention sinks")


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """A region's mask as MultiHeadAttention takes it: one of three, or nothing.

    Attributes:
        padding: int32 `[B,T]`, 1 for a token.
        triangle: causal and nothing else.
        additive: float `[B or 1, 1, S, T]`; the operator does not broadcast the queries' axis.
    """

    padding: ir.Value | None = None
    triangle: bool = False
    additive: ir.Value | None = None

    @classmethod
    def of(cls, draft: Draft) -> _Mask:
        value = draft.region.inputs.get("mask")
        if value is None:
            return cls()
        source = draft.masks.get(value)
        if source is None:
            return cls(additive=_per_query(draft, value))
        causal, window = bool(source.attrs["causal"]), bool(source.attrs["window"])
        if causal and not window and source.inputs.get("padding") is None:
            return cls(triangle=True)
        return cls(additive=value) if causal or window else cls(padding=padding_mask(draft))


def _zero(value: ir.Value) -> bool:
    """Whether it is an expanded zero: T5's position bias of a cross-attention."""
    expand = producer(value, "Expand")
    content = small_array(expand.inputs[0]) if expand is not None else None
    return content is not None and not content.any()


def _per_query(draft: Draft, mask: ir.Value) -> ir.Value:
    """Any additive mask, its queries' axis written out: once for all regions that share it."""
    axes = {"q": 1, "k": 2 if draft.region.attrs["layout"] == "cross" else 1}
    queries, keys = (
        draft.shared((mask, role), "Shape", [draft.region.inputs[role]], start=axis, end=axis + 1)
        for role, axis in axes.items()
    )
    shape = draft.shared((mask,), "Concat", [_ints(draft, 1, 1), queries, keys], axis=0)
    return draft.shared((mask,), "Expand", [mask, shape])


def _width(bias: ir.Value) -> int:
    return int(bias.const_value.size) if bias.const_value is not None else 0


def _attention_attributes(region: Region) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "num_heads": int(region.attrs["num_heads"]),
        "scale": float(region.attrs["scale"]),
    }
    if region.attrs["causal"]:
        attributes["unidirectional"] = 1
    return attributes


def gelu(draft: Draft) -> ir.Value:
    """com.microsoft.Gelu for the Erf form, FastGelu for the form that is a tanh by definition."""
    op = "FastGelu" if draft.region.attrs["approximate"] == "tanh" else "Gelu"
    return draft.microsoft(op, [draft.region.inputs["x"]])


def rms_norm(draft: Draft) -> ir.Value:
    """SimplifiedLayerNormalization, which ONNX Runtime keeps in ONNX's own domain."""
    inputs = [draft.region.inputs["x"], draft.region.inputs["weight"]]
    epsilon = float(draft.region.attrs["epsilon"])
    return draft.add("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=epsilon)


def rotary(draft: Draft) -> ir.Value:
    """com.microsoft.RotaryEmbedding, whose tables are `[positions, R/2]`: cos and sin `[1 or B,S,R]` as rows.

    Row i of the table is position i of the flattened batch, and position ids are those numbers: exact for
    positions that differ between rows, too. Both elements of a pair turn by one angle, by the definition of a
    rotation (RoFormer, arXiv:2104.09864).
    """
    region = draft.region
    x, cos, sin = (_present(region.inputs[role]) for role in ("x", "cos", "sin"))
    size = int(region.attrs.get("rotary_dim", region.attrs["head_dim"]))
    interleaved, partial = bool(region.attrs["interleaved"]), size < int(region.attrs["head_dim"])
    tables = [_pair_table(draft, table, size, interleaved=interleaved) for table in (cos, sin)]
    attributes = {"interleaved": int(interleaved)}
    if partial or region.attrs["layout"] == "bsh":
        attributes["num_heads"] = int(region.attrs["num_heads"])
    if partial:
        attributes["rotary_embedding_dim"] = size
    return draft.microsoft("RotaryEmbedding", [x, _positions(draft, cos, x), *tables], **attributes)


def _pair_table(draft: Draft, table: ir.Value, size: int, *, interleaved: bool) -> ir.Value:
    """`[1 or B,S,R]` → `[1·S or B·S, R/2]`."""
    end, step = (size, 2) if interleaved else (size // 2, 1)
    bounds = [_ints(draft, number) for number in (0, end, -1, step)]
    one = draft.shared((table, step), "Slice", [table, *bounds])
    return draft.shared((one,), "Reshape", [one, _ints(draft, -1, size // 2)])


def _positions(draft: Draft, table: ir.Value, x: ir.Value) -> ir.Value:
    """Int64 `[B,S]`: the row of the flattened table that each token reads."""
    shape = draft.shared((table,), "Shape", [table], start=0, end=2)
    count = draft.shared((shape,), "ReduceProd", [shape], keepdims=0)
    zero, one = (draft.constant(np.array(i, np.int64)) for i in (0, 1))
    numbers = draft.shared((count,), "Range", [zero, count, one])
    rows = draft.shared((numbers,), "Reshape", [numbers, shape])
    batch = draft.shared((rows, "batch"), "Shape", [x], start=0, end=1)
    wide = draft.shared((batch,), "Concat", [batch, _ints(draft, 1)], axis=0)
    return draft.shared((rows, wide), "Expand", [rows, wide])


def _ints(draft: Draft, *content: int) -> ir.Value:
    return draft.constant(np.array(content, np.int64))


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise NotApplicable("an input is missing")
    return value


def _packed(draft: Draft, name: str, values: list[ir.Value], axis: int) -> ir.Value:
    """The weights side by side, as a tensor that reads them when it is written out."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    shape = [*tensors[0].shape.numpy()]
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)
    joined = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis)),
        dtype=tensors[0].dtype,
        shape=ir.Shape(shape),
    )
    return draft.weight(name, values, joined)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NotApplicable(otherwise)
