"""Attention over a cache as com.microsoft.GroupQueryAttention, of ONNX Runtime's CPU and CUDA providers.

What the operator does silently, and how it is written here therefore (tests/graph/test_grouped_attention.py
holds the probes):

- It knows no padding: without `attention_bias` the padded slots of a left-padded row are attended to. The
  bias (mask, window and position bias in one) is always given, but where the mask is the causal triangle and
  nothing else, which is the operator's own.
- With its own rotary embedding, a prompt of several rows turns every row by row 0's positions. Rotations stay
  outside, in com.microsoft.RotaryEmbedding, which honours each row's.
- The lengths of rows count keys, padded ones included: every row's is the batch's total.
- A chunk (several queries after a past) is refused for more than one row.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxkit.graph.lowering import MICROSOFT, Draft, NotApplicable
from onnxkit.graph.ort_shared import scaled

_INT32 = int(ir.DataType.INT32)


def grouped_query_attention(draft: Draft, *, scale_queries: bool = False) -> dict[str, ir.Value]:
    """GroupQueryAttention over a past, whose buffers may be longer than what they hold.

    `scale_queries` scales the queries instead of the scores: the same by algebra, and faster where the
    provider's product of one row by a matrix knows no factor (`ort_cpu`).
    """
    region = draft.region
    attrs, inputs = region.attrs, region.inputs
    past = [inputs.get("past_key"), inputs.get("past_value")]
    _require(attrs["head_dim"] == attrs["v_head_dim"], "keys and values of different widths")
    _require(attrs["head_dim"] % 8 == 0, f"heads of {attrs['head_dim']}: the operator takes multiples of 8")
    heads, kv_heads = int(attrs["num_heads"]), int(attrs["kv_num_heads"])
    scale = float(attrs["scale"])
    queries = inputs["q"]
    if scale_queries:
        queries, scale = _scaled_rotation(draft, scale) or scaled(draft, queries, scale), 1.0
    q = _dense(draft, "q", queries)
    k, v = (_dense(draft, role, inputs[role]) for role in "kv")
    lengths, total = _lengths(draft)
    bias = _bias(draft)
    attributes: dict[str, int | float] = {
        "num_heads": heads, "kv_num_heads": kv_heads, "scale": scale
    }  # fmt: skip
    if attrs.get("softcap"):
        attributes["softcap"] = float(attrs["softcap"])
    made = draft.microsoft_cached(
        "GroupQueryAttention",
        [q, k, v, *past, lengths, total, None, None, None, bias, inputs.get("sinks")],
        **attributes,
    )
    if attrs["layout"] == "bhsd":
        size = _ints(draft, 0, 0, heads, int(attrs["head_dim"]))
        apart = draft.add("Reshape", [made["out"], size], name="heads")
        made["out"] = draft.add("Transpose", [apart], name="swap", perm=[0, 2, 1, 3])
    return made


def _scaled_rotation(draft: Draft, scale: float) -> ir.Value | None:
    """The queries rotated by scaled tables, which all layers share: a rotation is linear.

    None for what is not rotated, and for a rotation of a part of each head, which leaves the rest as it is.
    """
    queries = draft.region.inputs["q"]
    rotation = queries.producer() if queries is not None else None
    if rotation is None or rotation.op_type != "RotaryEmbedding" or _partial(rotation):
        return None
    factor = draft.constant(np.array(scale, np.float32))
    x, positions, *tables = rotation.inputs
    scaled = [draft.shared((table, scale), "Mul", [table, factor]) for table in tables]
    settings = {name: attribute.value for name, attribute in rotation.attributes.items()}
    inputs = [x, positions, *scaled]
    return draft.add("RotaryEmbedding", inputs, domain=MICROSOFT, name="rotation", **settings)


def _partial(rotation: ir.Node) -> bool:
    size = rotation.attributes.get("rotary_embedding_dim")
    return size is not None and size.as_int() > 0


def _dense(draft: Draft, role: str, value: ir.Value | None) -> ir.Value | None:
    """q, k or v as `[B,S,H·D]`."""
    attrs = draft.region.attrs
    if attrs["layout"] == "bsh":
        return value
    width = int(attrs["num_heads" if role == "q" else "kv_num_heads"]) * int(attrs["head_dim"])
    rows = draft.add("Transpose", [value], name=f"{role}_rows", perm=[0, 2, 1, 3])
    return draft.add("Reshape", [rows, _ints(draft, 0, 0, width)], name=role)


def _lengths(draft: Draft) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` int32 `[B]` (keys of each row, less one) and `total_sequence_length` int32 `[]`."""
    total = draft.shared((_total(draft), "int32"), "Cast", [_total(draft)], to=_INT32)
    one = draft.constant(np.array([1], np.int32))
    last = draft.shared((total, "last"), "Sub", [total, one])
    batch = draft.shared((total, "batch"), "Shape", [draft.region.inputs["k"]], start=0, end=1)
    return (
        draft.shared((last, batch), "Expand", [last, batch]),
        draft.shared((total, "scalar"), "Squeeze", [total]),
    )


def _total(draft: Draft) -> ir.Value:
    """Int64 `[1]`: keys of the past and the new ones, from the padding mask where there is one.

    A past buffer that is longer than what it holds does not tell it.
    """
    mask = _mask_source(draft)
    padding = mask.get("padding")
    if padding is not None:
        return draft.shared((padding, "keys"), "Shape", [padding], start=1, end=2)
    keys = mask.get("keys")
    if keys is not None:
        return draft.shared((keys, "keys"), "Reshape", [keys, _ints(draft, 1)])
    past, new = draft.region.inputs["past_key"], draft.region.inputs["k"]
    axis = 1 if draft.region.attrs["layout"] == "bsh" else 2
    before = draft.shared(("past length",), "Shape", [past], start=2, end=3)
    added = draft.shared(("new length",), "Shape", [new], start=axis, end=axis + 1)
    return draft.shared(("total",), "Add", [before, added])


def _mask_source(draft: Draft) -> dict[str, ir.Value | None]:
    """What the mask of the region is made of; nothing where that is not known."""
    mask = draft.region.inputs.get("mask")
    source = draft.masks.get(mask) if mask is not None else None
    return dict(source.inputs) if source is not None else {}


def _bias(draft: Draft) -> ir.Value | None:
    """Everything that is added to the scores, `[B|1,H|1,S,T]`; None for the causal triangle alone."""
    mask, bias = (draft.region.inputs.get(role) for role in ("mask", "bias"))
    source = draft.masks.get(mask) if mask is not None else None
    _require(source is None or bool(source.attrs["causal"]), "its mask is not causal")
    triangle = source is not None
    if source is not None and not source.attrs["window"] and source.inputs.get("padding") is None:
        mask = None
    terms = [value for value in (mask, bias) if value is not None]
    if not terms:
        _require(triangle, "without a causal mask")
        return None
    added = terms[0] if len(terms) == 1 else draft.shared((*terms, "bias"), "Add", terms)
    return added if triangle and mask is not None else _per_query(draft, added)


def _per_query(draft: Draft, added: ir.Value) -> ir.Value:
    """The queries' and keys' axes written out: the operator does not broadcast them."""
    axis = 1 if draft.region.attrs["layout"] == "bsh" else 2
    queries = draft.shared((added, "queries"), "Shape", [draft.region.inputs["k"]], start=axis, end=axis + 1)
    shape = draft.shared((added, "shape"), "Concat", [_ints(draft, 1, 1), queries, _total(draft)], axis=0)
    return draft.shared((added, "wide"), "Expand", [added, shape])


def _ints(draft: Draft, *content: int) -> ir.Value:
    return draft.constant(np.array(content, np.int64))


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NotApplicable(otherwise)
