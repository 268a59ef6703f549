"""Attention that is written out by hand, in many hands, said by one operator: same values, none left over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram

from onnxkit.export.handwritten import is_left, say_attention, say_padding
from onnxkit.export.operators import OPS

BATCH, HEADS, ROWS, SIZE = 2, 3, 5, 4
Hand = Callable[..., torch.Tensor]


def product(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.matmul(q, k.transpose(-1, -2))


def divided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    return torch.matmul(torch.softmax(product(q, k) / math.sqrt(SIZE) + bias, dim=-1), v)


def scaled_together(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """The scale counts for the bias, too, which stands first; the softmax is taken in another type."""
    scores = (bias + product(q, k)) * 0.3
    return torch.nn.functional.softmax(scores.float(), dim=-1).type_as(scores) @ v


def filled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    scores = product(q / 2.0, k)
    scores.masked_fill_((may == 0).expand_as(scores), torch.finfo(scores.dtype).min)
    return torch.matmul(torch.nn.functional.dropout(torch.softmax(scores, -1), 0.1, training=False), v)


def added_up(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """Two biases, of which one has fewer axes, and a mask."""
    scores = product(q, k) + bias + bias[0, 0]
    return torch.matmul(torch.softmax(scores.masked_fill(~may, -math.inf), -1), v)


def summed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    scores = torch.einsum("bhlk,bhtk->bhlt", [q, k]) * 0.7 + bias
    return torch.einsum("bhlt,bhtv->bhlv", [torch.softmax(scores, dim=-1), v])


def given() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, HEADS, ROWS, size) for size in (SIZE, SIZE, SIZE + 1))
    bias, may = torch.randn(BATCH, 1, ROWS, ROWS), torch.ones(BATCH, 1, 1, ROWS, dtype=torch.bool)
    may[0, 0, 0, 3:] = False
    return q, k, v, bias, may


class Module(torch.nn.Module):
    """A function, as torch.export takes it."""

    def __init__(self, hand: Hand) -> None:
        super().__init__()
        self.hand = hand

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.hand(*values)


class Interpreter(torch.fx.Interpreter):
    """Runs a program in which the semantic operator stands, by what it means."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not OPS.attention.default:
            return super().call_function(target, args, kwargs)
        q, k, v, mask, bias, _, scale, _ = args
        scores = q @ k.transpose(-1, -2) * scale + (0 if bias is None else bias)
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(q.dtype).min)
        return (scores.softmax(-1) @ v).transpose(1, 2)


def traced(hand: Hand) -> ExportedProgram:
    batch, rows = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    shapes = ((rows, rows, rows, {**rows, 3: Dim.DYNAMIC}, {**batch, 3: Dim.DYNAMIC}),)
    return torch.export.export(Module(hand), given(), dynamic_shapes=shapes)


def left(program: ExportedProgram, name: str) -> int:
    return sum(name in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("hand", [divided, scaled_together, filled, added_up, summed])
def test_an_attention_is_one_operator(hand: Hand) -> None:
    program = traced(hand)
    say_attention(program)
    assert left(program, "onnxkit.attention") == 1
    assert not is_left(program)
    assert left(program, "matmul") + left(program, "einsum") == 0
    [got] = Interpreter(program.graph_module).run(*given())
    torch.testing.assert_close(got, hand(*given()), atol=1e-5, rtol=1e-4)


def squared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """Scores that no softmax of q·kᵀ makes."""
    return torch.matmul(torch.softmax(product(q, k).square(), -1), v)


def read_elsewhere(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    probabilities = torch.softmax(product(q, k), -1)
    return torch.matmul(probabilities, v) + probabilities.sum()


def over_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    return torch.matmul(torch.softmax(product(q, k), 2), v)


def other_sums(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    scores = torch.einsum("bhlk,bhtk->bhtl", [q, k])
    return torch.einsum("bhlt,bhtv->bhlv", [torch.softmax(scores, dim=-1), v])


def slightly_less(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """What is filled in forbids nothing."""
    return torch.matmul(torch.softmax(product(q, k).masked_fill(~may, -1.0), -1), v)


def turned_round(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """Nobody looks but where it seems forbidden."""
    return torch.matmul(torch.softmax(product(q, k).masked_fill(~may, -1e9) * -1.0, -1), v)


def written_through_a_view(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any
) -> torch.Tensor:
    scores = product(q, k)
    scores[..., 0].add_(3.0)
    return torch.matmul(torch.softmax(scores * 0.5, -1), v)


def keys_of_all_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    return torch.matmul(torch.softmax(product(q, k[:1]), -1), v)


def spread_by_a_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """One head of scores becomes three."""
    return torch.matmul(torch.softmax(product(q[:, :1], k[:, :1]) + bias.expand(-1, 3, -1, -1), -1), v)


def added_truth(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    return torch.matmul(torch.softmax(product(q, k) + may, -1), v)


def shrunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """What is filled in is very small, and is not when the softmax reads it."""
    return torch.matmul(torch.softmax(product(q, k).masked_fill(~may, -1e4) / 1e4, -1), v)


def many_letters(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    other = torch.einsum("abcd,efgh->ac", [q, k])
    return torch.matmul(torch.softmax(product(q, k).square(), -1), v) + other.sum()


@pytest.mark.parametrize(
    "hand",
    [
        turned_round, squared, read_elsewhere, over_queries, other_sums, slightly_less,
        written_through_a_view, keys_of_all_rows, spread_by_a_bias, added_truth, shrunk, many_letters,
    ],
)  # fmt: skip
def test_what_is_none_stays(hand: Hand) -> None:
    program = traced(hand)
    say_attention(program)
    assert left(program, "onnxkit.attention") == 0
    assert is_left(program)
    [got] = Interpreter(program.graph_module).run(*given())
    torch.testing.assert_close(got, hand(*given()), atol=1e-5, rtol=1e-4)


def weighed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, may: Any) -> torch.Tensor:
    """Called an attention by some, and none."""
    return (torch.softmax(q[..., :1], dim=2) * k).sum(2, keepdim=True) * v[..., :1]


def test_a_softmax_that_is_no_factor_of_a_product_is_another_thing() -> None:
    assert not is_left(traced(weighed))


def hidden(x: torch.Tensor, padding: torch.Tensor) -> Any:
    return (1.0 - padding[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min


def said(x: torch.Tensor, *over: Any) -> torch.Tensor:
    result: torch.Tensor = OPS.attention(x, x, x, *over, None, 1.0, 0.0)
    return result


PADDINGS: dict[str, Hand] = {
    "added": lambda x, padding: said(x, None, hidden(x, padding)),
    "bool": lambda x, padding: said(x, padding.to(torch.bool)[:, None, None, :], None),
    "what is hidden": lambda x, padding: said(x, ~(padding == 0).view(-1, 1, 1, padding.shape[1]), None),
}
OTHERS: dict[str, Hand] = {
    "for each query": lambda x, padding: said(
        x, (padding[:, None, None, :] * padding[:, None, :, None]) > 0, None
    ),
    "a bias that hides little": lambda x, padding: said(
        x, None, (1.0 - padding[:, None, None, :].float()) * -2.0
    ),
    "not yes or no": lambda x, padding: said(x, None, hidden(x, padding / 2)),
    "with a bias": lambda x, padding: said(x, None, hidden(x, padding) + x @ x.transpose(-1, -2)),
}


def padded(hand: Hand) -> ExportedProgram:
    x, padding = torch.randn(BATCH, HEADS, ROWS, SIZE), torch.ones(BATCH, ROWS, dtype=torch.int64)
    axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    program = torch.export.export(Module(hand), (x, padding), dynamic_shapes=(axes,))
    say_padding(program)
    return program


@pytest.mark.parametrize("hand", PADDINGS.values(), ids=PADDINGS)
def test_padding_is_told_by_how_it_is_laid_over_the_scores(hand: Hand) -> None:
    graph = padded(hand).graph
    [node] = [node for node in graph.nodes if node.target is OPS.attention.default]
    mask, bias = node.args[3:5]
    assert mask.target is OPS.mask.default
    assert bias is None
    assert mask.args[0].meta["val"].dtype == torch.bool
    source = mask.args[0]
    while source.op == "call_function":
        assert source.target is not torch.ops.aten.logical_not.default
        source = source.args[0]
    assert source.name == "values_1"


@pytest.mark.parametrize("hand", OTHERS.values(), ids=OTHERS)
def test_other_masks_stay(hand: Hand) -> None:
    assert left(padded(hand), "onnxkit.mask") == 0
