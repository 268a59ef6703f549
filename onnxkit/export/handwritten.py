"""Attention that a model writes out by hand, found in its trace: softmax(q·kᵀ·scale + bias + mask)·v.

What transformers' attention interface does not say is read off the operators around a softmax and said by
the semantic one. Whatever looks otherwise stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from onnxkit.export.fx import drop_assertions, is_in_place, make_functional
from onnxkit.export.operators import OPS

_aten = torch.ops.aten
_PRODUCTS = {_aten.matmul.default, _aten.einsum.default}
_PASSED_ON = {
    _aten.dropout.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.to.dtype,
    _aten.to.dtype_layout,
    _aten.to.other,
    _aten._to_copy.default,
    _aten.type_as.default,
}
"""Change no value of a probability or a score, but its type perhaps."""
_EXPANDED = {_aten.expand.default, _aten.expand_as.default}
_BOTH = {_aten.logical_and.default, _aten.bitwise_and.Tensor, _aten.__and__.Tensor}
_NOT = {_aten.logical_not.default, _aten.bitwise_not.default}
_SPREADING = {
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.to.dtype,
    *_NOT,
}
"""From a mask of tokens to one that can be laid over scores."""
_SDPA = _aten.scaled_dot_product_attention.default
_WEIGHTS = {_aten.softmax.int, _SDPA}
_LEFT = {*_PRODUCTS, _aten.bmm.default, _aten.baddbmm.default, _SDPA}
_MOVING = {*_PASSED_ON, *_EXPANDED, *_SPREADING, _aten.transpose.int, _aten.permute.default}
_FORBIDDEN = -1e4
"""Scores from here down are those of keys that a query may not look at."""


@dataclass(kw_only=True)
class _Scores:
    """What a softmax reads: q·kᵀ·scale, and the masks and biases over it (a bias and its factor, where
    something very small stands and how small).

    `turned` when k is there as `[B,H,D,T]`."""

    q: Node
    k: Node
    turned: bool
    scale: float = 1.0
    masks: list[Node] = field(default_factory=list)
    forbidden: list[tuple[Node, float]] = field(default_factory=list)
    biases: list[tuple[Node, float]] = field(default_factory=list)


def say_attention(program: ExportedProgram) -> None:
    """Replace every attention of `[B,H,S,D]` that is written out in `program` by the semantic operator."""
    drop_assertions(program)
    make_functional(program)
    if any(is_in_place(node) for node in program.graph.nodes):  # through views: what changes is not plain
        return
    for node in [n for n in program.graph.nodes if n.target in _PRODUCTS]:
        probabilities, value = _factors(node, turned=False)
        scores = _scores_behind(probabilities)
        if scores is not None and _fits(scores, value):
            _replace(node, scores, value)
    _drop_unread(program)


def is_left(program: ExportedProgram) -> bool:
    """Whether some softmax still is a factor of a product: an attention that nothing here knows.

    What is called an attention and has none (MobileViTV2's, SwiftFormer's) is another thing.
    """
    found = [node for node in program.graph.nodes if node.target in _WEIGHTS]
    while found:
        node = found.pop()
        if node.target in _LEFT:
            return True
        found += [user for user in node.users if user.target in _LEFT | _MOVING]
    return False


def say_padding(program: ExportedProgram) -> None:
    """A mask of an attention's that only hides padding becomes the semantic one: what is added as
    (1 - padding)·(something very small), or bool `[B,1,1,T]`, of `[B,T]`."""
    said: dict[Node, Node] = {}
    for node in [n for n in program.graph.nodes if n.target is OPS.attention.default]:
        mask, bias = node.args[3:5]
        given = mask if bias is None else _hidden(bias) if mask is None else None
        tokens, hides = _per_token(given)
        if tokens is None:
            continue
        if tokens not in said:
            said[tokens] = _padding_mask(node, tokens, hides=hides)
        node.args = (*node.args[:3], said[tokens], None, *node.args[5:])
    _drop_unread(program)


def _drop_unread(program: ExportedProgram) -> None:
    program.graph.eliminate_dead_code()
    for node in reversed(program.graph.nodes):
        if node.target in _PASSED_ON and not node.users:  # torch holds some of them to have effects
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _hidden(bias: Any) -> Any:
    """x in (1 - x)·(something very small)."""
    if not isinstance(bias, Node) or bias.target is not _aten.mul.Tensor:
        return None
    rest, by = bias.args
    if not isinstance(rest, Node) or not isinstance(by, (int, float)) or by > _FORBIDDEN:
        return None
    plain = rest.target is _aten.rsub.Scalar and rest.args[1] == 1 and len(rest.args) == 2
    return rest.args[0] if plain else None


def _per_token(mask: Any) -> tuple[Node | None, bool]:
    """`[B,T]` behind a mask `[B,1,1,T]`, and whether its True hides a token."""
    value = mask.meta.get("val") if isinstance(mask, Node) else None
    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        return None, False
    if any(not isinstance(size, int) or size != 1 for size in value.shape[1:3]):
        return None, False
    node, hides = mask, False
    while isinstance(node, Node) and node.target in _SPREADING:
        hides ^= node.target in _NOT
        node = node.args[0]
    found: Any = node.meta.get("val") if isinstance(node, Node) else None
    sizes = [str(size) for size in (value.shape[0], value.shape[3])]
    whole = isinstance(found, torch.Tensor) and not found.is_floating_point()
    fits = whole and [str(size) for size in found.shape] == sizes
    return (node if fits else None), hides


def _padding_mask(at: Node, tokens: Node, *, hides: bool) -> Node:
    put = _Put(at)
    padding = tokens
    if hides or tokens.meta["val"].dtype != torch.bool:
        padding = put(_aten.eq.Scalar if hides else _aten.ne.Scalar, tokens, 0)
    batch, keys = (put(_aten.sym_size.int, tokens, axis) for axis in (0, 1))
    return put(OPS.mask.default, padding, batch, put(_aten.sym_size.int, at.args[0], 2), keys, 0, False)


class _Put:
    """Puts nodes before another one."""

    def __init__(self, at: Node) -> None:
        self._at = at

    def __call__(self, target: Any, *args: Any) -> Node:
        with self._at.graph.inserting_before(self._at):
            node = self._at.graph.call_function(target, args)
        seen = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
        node.meta = {**self._at.meta, "val": target(*seen)}
        return node


def _factors(product: Node, *, turned: bool) -> tuple[Any, Any]:
    """The two that are multiplied, the right one as it is or (`turned`) with its last axes swapped, where it
    is an einsum that says so."""
    if product.target is _aten.matmul.default:
        return product.args[0], product.args[1]
    letters = dict.fromkeys(letter for letter in str(product.args[0]) if letter.isalpha())
    if len(letters) != 5:
        return None, None
    renamed = str(product.args[0]).translate({ord(x): "abcdefgh"[i] for i, x in enumerate(letters)})
    factors: Any = product.args[1]
    if renamed.replace(" ", "") != ("abcd,abed->abce" if turned else "abcd,abde->abce"):
        return None, None
    return factors[0], factors[1]


def _scores_behind(factor: Any) -> _Scores | None:
    """The scores whose softmax, which nobody else reads, is `factor`; else None."""
    while isinstance(factor, Node) and factor.target in _PASSED_ON and len(factor.users) == 1:
        factor = factor.args[0]
    if not isinstance(factor, Node) or factor.target is not _aten.softmax.int or len(factor.users) > 1:
        return None
    scores = _read(factor.args[0]) if factor.args[1] in (-1, 3) else None
    if scores is None:
        return None
    return scores if _batch_and_heads(scores.q) == _batch_and_heads(factor) else None


def _batch_and_heads(node: Node) -> list[str]:
    value = node.meta.get("val")
    return [str(size) for size in value.shape[:2]] if isinstance(value, torch.Tensor) else []


def _read(node: Any) -> _Scores | None:
    """Take the terms of scores apart, from the softmax upwards."""
    while isinstance(node, Node) and node.target in _PASSED_ON:
        node = node.args[0]
    if not isinstance(node, Node) or any(is_in_place(user) for user in node.users):
        return None
    name = getattr(node.target, "_opname", "")
    if node.target in _PRODUCTS:
        return _multiplied(node)
    if name in ("div", "mul"):
        return _scaled(node)
    if name == "add" and not node.kwargs:
        return _added(node)
    return _filled(node) if name == "masked_fill" else None


def _multiplied(product: Node) -> _Scores | None:
    """A number that the queries are multiplied by is the scores' scale."""
    scale = 1.0
    turned = product.target is _aten.matmul.default
    q, k = _factors(product, turned=True)
    while isinstance(q, Node) and (factor := _factor(q)) is not None:
        q, scale = q.args[0], scale * factor
    if not isinstance(q, Node) or not isinstance(k, Node):
        return None
    return _Scores(q=q, k=k, turned=turned, scale=scale)


def _factor(node: Node) -> float | None:
    """The number that a product or a quotient multiplies by; one below 0 would turn a mask round."""
    if node.target not in (_aten.mul.Tensor, _aten.div.Tensor) or node.kwargs:
        return None
    by = node.args[1]
    if not isinstance(by, (int, float)) or by <= 0:
        return None
    return float(by) if node.target is _aten.mul.Tensor else 1 / by


def _scaled(node: Node) -> _Scores | None:
    factor = _factor(node)
    scores = _read(node.args[0]) if factor is not None else None
    if scores is None or factor is None:
        return None
    scores.scale *= factor
    scores.biases = [(bias, known * factor) for bias, known in scores.biases]
    scores.forbidden = [(where, content * factor) for where, content in scores.forbidden]
    return scores if all(content <= _FORBIDDEN for _, content in scores.forbidden) else None


def _added(node: Node) -> _Scores | None:
    """One term holds the scores; the other one is a mask (bool, by our hook) or a bias."""
    for mine, other in (node.args[:2], node.args[1::-1]):
        scores = _read(mine) if isinstance(other, Node) else None
        if scores is None or not isinstance(other, Node) or not _lies_over(other):
            continue
        if other.meta["val"].dtype == torch.bool:
            if not _is_ours(other):
                return None
            scores.masks.append(other)
        else:
            scores.biases.append((other, 1.0))
        return scores
    return None


def _is_ours(mask: Any) -> bool:
    """Whether a bool says, as our hook's do, where to look; others count for 1 where they are added."""
    while isinstance(mask, Node) and mask.target in (_SPREADING - _NOT) | _EXPANDED:
        mask = mask.args[0]
    if not isinstance(mask, Node):
        return False
    return mask.target is OPS.mask.default or (mask.target in _BOTH and all(map(_is_ours, mask.args)))


def _filled(node: Node) -> _Scores | None:
    """`masked_fill` with something very small."""
    where, content = node.args[1:3]
    if isinstance(where, Node) and where.target in _EXPANDED and _lies_over(where.args[0]):
        where = where.args[0]
    if not isinstance(where, Node) or not isinstance(content, (int, float)) or content > _FORBIDDEN:
        return None
    scores = _read(node.args[0]) if _lies_over(where) else None
    if scores is not None:
        scores.forbidden.append((where, float(content)))
    return scores


def _lies_over(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and 2 <= value.ndim <= 4


def _fits(scores: _Scores, value: Any) -> bool:
    """Whether all are `[B,H,…]` of one batch, one type and of known heads and sizes, each head with keys of
    its own."""
    three: Any = [each.meta.get("val") for each in (scores.q, scores.k, value) if isinstance(each, Node)]
    tensors = [each for each in three if isinstance(each, torch.Tensor) and each.ndim == 4]
    if len(tensors) < 3 or len({tensor.dtype for tensor in tensors}) > 1:
        return False
    shapes: list[Any] = [tensor.shape for tensor in tensors]
    if len({str(shape[0]) for shape in shapes}) > 1:
        return False
    fixed = [shapes[0][3], shapes[2][3], *(shape[1] for shape in shapes)]
    return all(isinstance(size, int) for size in fixed) and len({*fixed[2:]}) == 1


def _replace(product: Node, scores: _Scores, value: Node) -> None:
    put = _Put(product)
    masks = [*scores.masks, *(put(_aten.logical_not.default, where) for where, _ in scores.forbidden)]
    biases = [bias if by == 1.0 else put(_aten.mul.Tensor, bias, by) for bias, by in scores.biases]
    mask = _joined(put, _aten.logical_and.default, masks)
    bias = _joined(put, _aten.add.Tensor, biases)
    key = put(_aten.transpose.int, scores.k, -1, -2) if scores.turned else scores.k
    said = put(OPS.attention.default, scores.q, key, value, mask, bias, None, scores.scale, 0.0)
    product.replace_all_uses_with(put(_aten.transpose.int, said, 1, 2))


def _joined(put: _Put, operator: Any, terms: Sequence[Node]) -> Node | None:
    """The terms as one `[B|1,H|1,S|1,T]`."""
    whole = None
    for term in terms:
        for _ in range(4 - term.meta["val"].ndim):
            term = put(_aten.unsqueeze.default, term, 0)
        whole = term if whole is None else put(operator, whole, term)
    return whole
