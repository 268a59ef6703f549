"""Finds attention in a graph that another tool exported, and proves what its mask means.

Exporters write softmax(q·kᵀ·scale + mask)·v in a few shapes, and masks in countless ones. So only the core is
matched by structure; what feeds it (scales, head counts, masks) is *run* on padded inputs: a mask that is
0 for tokens and very negative for padding, on the left and on the right alike, is a padding mask, however it
was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.dtypes import infer_dtypes
from onnxkit.graph.edit import permutation, producer, small_array
from onnxkit.graph.probing import probe
from onnxkit.graph.regions import Region

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_MASKED = -1e4
_HEADS_FIRST, _HEADS_LAST, _KEYS_TURNED = [0, 2, 1, 3], [0, 1, 3, 2], [0, 2, 3, 1]


@dataclass(kw_only=True)
class _Candidate:
    """One attention by its structure; head counts, factors and masks are learned by running it."""

    softmax: ir.Node
    out: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    heads: dict[str, ir.Value]
    """By role, the values `[B,H,S,D]` that q, k and v become; the keys may be turned, `[B,H,D,S]`."""
    factors: list[tuple[ir.Value, bool]] = field(default_factory=list)
    """Scalars that the scores are multiplied with; True: divided by."""
    terms: list[ir.Value] = field(default_factory=list)
    """What is added to the scores."""

    def unknown(self) -> Iterable[ir.Value]:
        """The values that have to be run."""
        yield from self.heads.values()
        yield from (value for value, _ in self.factors if small_array(value) is None)
        yield from self.terms


def recognize_attention(model: ir.Model, cases: Sequence[Feeds], scratch: Path) -> list[Region]:
    """Return the attentions of a foreign graph, and their padding masks, as regions that `lower` takes.

    Args:
        model: the graph, cleaned up.
        cases: inputs to run it on; two with other sizes and padding, right and left, tell most.
        scratch: a directory for a temporary copy of the model.

    Raises:
        InputError: ONNX Runtime cannot run the model on `cases`.
    """
    infer_dtypes(model)
    found = [c for node in model.graph if node.op_type == "Softmax" and (c := _candidate(node)) is not None]
    if not found or not cases:
        return []
    unknown = list({value: None for candidate in found for value in candidate.unknown()})
    runs = probe(model, unknown, cases, scratch)
    masks: dict[ir.Value, Region] = {}
    regions = [_region(candidate, model.graph, cases, runs, masks) for candidate in found]
    return [*masks.values(), *(region for region in regions if region is not None)]


def _candidate(softmax: ir.Node) -> _Candidate | None:
    """Match the core around a Softmax over the last axis."""
    axis = softmax.attributes.get("axis")
    after = _context(softmax.outputs[0])
    if axis is None or axis.as_int() not in (-1, 3) or after is None:
        return None
    out, values = after
    scores = _scores(softmax.inputs[0])
    v = _split(values)
    if scores is None or v is None:
        return None
    product, factors, terms = scores
    queries, keys = (_unscaled(value, factors) for value in product.inputs)
    q, k = _split(queries), _split_keys(keys)
    if q is None or k is None:
        return None
    heads = {"q": q[1], "k": k[1], "v": v[1]}
    return _Candidate(
        softmax=softmax, out=out, q=q[0], k=k[0], v=v[0], heads=heads, factors=factors, terms=terms
    )


def _context(probabilities: ir.Value) -> tuple[ir.Node, ir.Value | None] | None:
    """(Reshape to `[B,S,H·D]`, v) behind the probabilities.

    Exporters put guards for rows that may look at nothing before or behind the product: a Where that gives 0.
    Such rows are padding, whose outputs do not count.
    """
    product = _only(_users(_behind_guard(probabilities)), "MatMul")
    if product is None:
        return None
    turned = _only(_users(_behind_guard(product.outputs[0])), "Transpose")
    if turned is None or permutation(turned) != _HEADS_FIRST:
        return None
    merged = _only(_users(turned.outputs[0]), "Reshape")
    return None if merged is None else (merged, product.inputs[1])


def _behind_guard(value: ir.Value) -> ir.Value:
    """What a guard against empty rows makes of `value`, or `value` where there is none."""
    users = _users(value)
    guard = next((node for node in users if node.op_type == "Where"), None)
    if guard is None or any(node is not guard and node.op_type != "IsNaN" for node in users):
        return value
    others = [small_array(each) for each in guard.inputs[1:] if each is not value]
    zero = len(others) == 1 and others[0] is not None and not others[0].any()
    return guard.outputs[0] if zero else value


def _users(value: ir.Value) -> set[ir.Node]:
    return {use.node for use in value.uses()}


def _scores(
    value: ir.Value | None,
) -> tuple[ir.Node, list[tuple[ir.Value, bool]], list[ir.Value]] | None:
    """(MatMul of q and kᵀ, factors, added terms) behind the Softmax."""
    factors: list[tuple[ir.Value, bool]] = []
    terms: list[ir.Value] = []
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if node.op_type == "MatMul":
            return node, factors, terms
        if node.op_type not in ("Add", "Mul", "Div") or (node.op_type == "Add") < bool(terms and factors):
            return None
        first, second = node.inputs[0], node.inputs[1]
        if node.op_type != "Div" and not _leads_to_product(first):
            first, second = second, first
        if second is None:
            return None
        if node.op_type == "Add":
            if factors:  # a factor outside of the sum scales the mask, too
                return None
            terms.append(second)
        else:
            factors.append((second, node.op_type == "Div"))
        value = first
    return None


def _leads_to_product(value: ir.Value | None, depth: int = 4) -> bool:
    """Whether a MatMul stands behind at most `depth` sums and scalings, on its first or second input."""
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if node.op_type == "MatMul":
        return not any(each is None or each.is_initializer() for each in node.inputs)
    kinds = ("Add", "Mul", "Div")
    return node.op_type in kinds and any(_leads_to_product(each, depth - 1) for each in node.inputs)


def _unscaled(value: ir.Value | None, factors: list[tuple[ir.Value, bool]]) -> ir.Value | None:
    """Q or kᵀ without a scalar that it is multiplied with or divided by, which is noted in `factors`."""
    while value is not None and (node := value.producer()) is not None and node.op_type in ("Mul", "Div"):
        sides = list(node.inputs)
        if node.op_type == "Mul" and not _is_view(sides[0]):
            sides.reverse()
        if sides[1] is None:
            return None
        factors.append((sides[1], node.op_type == "Div"))
        value = sides[0]
    return value


def _is_view(value: ir.Value | None) -> bool:
    return producer(value, "Transpose") is not None or producer(value, "Reshape") is not None


def _split(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """(x, value) for a value `[B,H,S,D]` made by Transpose(Reshape(x `[B,S,H·D]`))."""
    x = _behind(value, (_HEADS_FIRST, None))
    return None if x is None or value is None else (x, value)


def _split_keys(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The same for kᵀ `[B,H,D,S]`, which may be turned in one step, in two, or as `[B·H,S,D]`."""
    steps: tuple[tuple[list[int] | None, ...], ...]
    steps = (
        (_KEYS_TURNED, None),
        (_HEADS_LAST, _HEADS_FIRST, None),
        (None, [0, 2, 1], None, _HEADS_FIRST, None),
    )
    for chain in steps:
        x = _behind(value, chain)
        if x is not None and value is not None:
            return x, value
    return None


def _behind(value: ir.Value | None, steps: tuple[list[int] | None, ...]) -> ir.Value | None:
    """Walk up through Transposes of these permutations, and a Reshape for each None."""
    for order in steps:
        node = producer(value, "Reshape" if order is None else "Transpose")
        if node is None or (order is not None and permutation(node) != order):
            return None
        value = node.inputs[0]
    return value


def _region(
    candidate: _Candidate,
    graph: ir.Graph,
    cases: Sequence[Feeds],
    runs: Sequence[Mapping[ir.Value, Array]],
    masks: dict[ir.Value, Region],
) -> Region | None:
    """The attention with what was run, or None where it does not fit."""
    scale = _scale(candidate, runs)
    sizes = {role: _heads(value, runs, role == "k") for role, value in candidate.heads.items()}
    if scale is None or len({heads for heads, _ in sizes.values()}) != 1 or sizes["k"] != sizes["q"]:
        return None
    (heads, size), v_size = sizes["q"], sizes["v"][1]
    if min(heads, size, v_size) < 1:
        return None
    inputs: dict[str, ir.Value | None] = {"q": candidate.q, "k": candidate.k, "v": candidate.v}
    for term in candidate.terms:
        if not any(run[term].any() for run in runs):
            continue  # a mask of nothing
        role = "mask" if _padding_input(term, graph, cases, runs, masks) else "bias"
        if role in inputs:
            return None
        inputs[role] = term
    if "bias" in inputs and "mask" not in inputs:
        inputs["mask"] = inputs.pop("bias")  # its shape is not known: `lower` writes the queries' axis out
    attrs = {"num_heads": heads, "kv_num_heads": heads, "head_dim": size, "v_head_dim": v_size,
             "scale": scale, "causal": False, "layout": "bsh"}  # fmt: skip
    return Region(
        id=f"{_module(candidate.softmax)}#attention",
        op="attention",
        attrs=attrs,
        inputs=inputs,
        outputs={"out": candidate.out.outputs[0]},
        nodes=(candidate.out,),
    )


def _scale(candidate: _Candidate, runs: Sequence[Mapping[ir.Value, Array]]) -> float | None:
    scale = 1.0
    for value, divides in candidate.factors:
        number = _constant(value, runs)
        if number is None or number.size != 1 or float(number.flat[0]) == 0.0:
            return None
        scale *= 1.0 / float(number.flat[0]) if divides else float(number.flat[0])
    return scale


def _constant(value: ir.Value, runs: Sequence[Mapping[ir.Value, Array]]) -> Array | None:
    """What a value is in every run."""
    known = small_array(value)
    if known is not None:
        return known
    arrays = [run[value] for run in runs]
    same = all(a.shape == arrays[0].shape and np.array_equal(a, arrays[0]) for a in arrays)
    return arrays[0] if same else None


def _heads(value: ir.Value, runs: Sequence[Mapping[ir.Value, Array]], turned: bool) -> tuple[int, int]:
    """(heads, size of a head) of `[B,H,S,D]`, or of turned keys; (0, 0) where they vary."""
    found = {
        (run[value].shape[1], run[value].shape[2 if turned else 3]) for run in runs if run[value].ndim == 4
    }
    return found.pop() if len(found) == 1 else (0, 0)


def _padding_input(
    term: ir.Value,
    graph: ir.Graph,
    cases: Sequence[Feeds],
    runs: Sequence[Mapping[ir.Value, Array]],
    masks: dict[ir.Value, Region],
) -> bool:
    """Whether `term` was, in every run, exactly the additive form of a padding mask among the inputs."""
    if term in masks:
        return True
    for value in graph.inputs:
        name = str(value.name)
        if "mask" in name and all(
            name in case and _is_additive(run[term], case[name])
            for case, run in zip(cases, runs, strict=True)
        ):
            masks[term] = Region(
                id=f"{name}#mask{len(masks) or ''}", op="mask", attrs={"causal": False, "window": 0},
                inputs={"padding": value}, outputs={"out": term}, nodes=(),
            )  # fmt: skip
            return True
    return False


def _is_additive(term: Array, mask: Array) -> bool:
    if term.ndim != 4 or mask.ndim != 2 or term.shape[1] != 1 or term.shape[-1] != mask.shape[1]:
        return False
    if term.shape[0] not in (1, len(mask)) or not np.isin(mask, (0, 1)).all():
        return False
    kept = np.broadcast_to(mask[:, None, None, :] == 1, (len(mask), *term.shape[1:]))
    full = np.broadcast_to(term, kept.shape)
    return bool((full[kept] == 0).all() and (full[~kept] <= _MASKED).all())


def _module(softmax: ir.Node) -> str:
    """ "/encoder/layer.1/attention/self/Softmax" → "encoder.layer.1.attention.self"."""
    path = (softmax.name or "").strip("/").rpartition("/")[0]
    return path.replace("/", ".") or str(softmax.name or softmax.outputs[0].name)


def _only(nodes: set[ir.Node], op: str) -> ir.Node | None:
    node = next(iter(nodes)) if len(nodes) == 1 else None
    return node if node is not None and node.op_type == op and node.domain == "" else None
