"""Choosing the next token: the best one, or one drawn from what the filters leave.

The filters equal transformers' LogitsWarpers, in transformers' order: temperature, top-k, top-p, min-p,
typical-p, epsilon, eta. They work on the tokens that are left, so that after top-k (50
unless asked otherwise) nothing is as long as the vocabulary, and no filter sorts more than it must.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxkit.errors import InputError, UsageError
from onnxkit.generate.logits import Logits, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxkit.generate.options import GenerationOptions

Keep = NDArray[np.bool_]

_FEW = 2048  # tokens; so few are sorted
_HALVINGS = 24  # of float32's range of logits; more do not part equal ones either
_BLOCK = 1024  # tokens that a draw sums up at once


def generator(seed: int | None, sequence: int = 0) -> np.random.Generator:
    """Return the random numbers of one sequence; `sequence` counts the sequences of one prompt.

    Each sequence has its own: what it draws depends on its prompt, its options and the seed, not on what
    else is in the batch. Without a seed they differ from run to run.
    """
    return np.random.default_rng(
        None if seed is None else np.random.SeedSequence(seed, spawn_key=(sequence,))
    )


def choose(logits: Logits, options: GenerationOptions, rng: np.random.Generator) -> int:
    """Return the next token for processed `logits`, float32 [vocabulary].

    Without `do_sample` the best one, of equal ones the lowest id (as torch.argmax). With it, one random
    number is taken from `rng`, no more and no less.

    Raises:
        InputError: the logits are NaN or infinite.
        UsageError: the options forbid every token.
    """
    if not options.do_sample:
        token = int(logits.argmax())
        _check_number(logits[token])
        return token
    tokens, left = candidates(logits, options)
    return int(tokens[_draw(np.exp(left - left.max()), rng.random())])


def candidates(logits: Logits, options: GenerationOptions, *, keep: int = 1) -> tuple[Tokens, Logits]:
    """Return the tokens that the filters leave, ascending, and their logits over the temperature.

    `keep` is transformers' min_tokens_to_keep: 1, but more in beam search, where it is the number of
    end-of-sequence tokens and one.

    Raises:
        InputError: the logits are NaN or infinite.
        UsageError: the options forbid every token.
    """
    with np.errstate(over="ignore"):  # float32's limits stand for infinity (remove_invalid_values)
        left = logits if options.temperature == 1.0 else logits / np.float32(options.temperature)
    bound = np.float32(-np.inf)
    if options.top_k:
        k = min(max(options.top_k, keep), left.size)
        bound = np.partition(left, -k)[-k] if k < left.size else left.min()
    _check_number(left.max())
    tokens, left = _only(None, left, left >= bound if np.isfinite(bound) else left > bound)
    for keeps in _filters(options):
        tokens, left = _only(tokens, left, keeps(left, keep))
    return np.arange(left.size) if tokens is None else tokens, left


def largest(values: Logits, count: int) -> Tokens:
    """Return the places of the `count` largest values, best first, of equal ones the lowest first."""
    count = min(count, values.size)
    bound = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)[: count - above.size]
    places = np.concatenate([above, equal])
    order: Tokens = places[np.argsort(-values[places], kind="stable")]
    return order


def softmax(logits: Logits) -> Logits:
    """Return exp(x) / sum(exp(x)), float32."""
    shifted = np.exp(logits - logits.max())
    result: Logits = shifted / shifted.sum()
    return result


def log_softmax(logits: Logits) -> Logits:
    """Return x - log(sum(exp(x))) along the last axis, float32, shifted so that it cannot overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Logits = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _filters(options: GenerationOptions) -> Iterator[Callable[[Logits, int], Keep]]:
    if options.top_p < 1.0:
        yield lambda left, keep: _top_p(left, options.top_p, keep)
    if options.min_p is not None:
        share = options.min_p
        yield lambda left, keep: _min_p(left, share, keep)
    if options.typical_p < 1.0:
        yield lambda left, keep: _typical(left, options.typical_p, keep)
    if options.epsilon_cutoff > 0:
        yield lambda left, keep: _epsilon(left, options.epsilon_cutoff, keep)
    if options.eta_cutoff > 0:
        yield lambda left, keep: _eta(left, options.eta_cutoff, keep)


def _top_p(left: Logits, share: float, keep: int) -> Keep:
    # From the worst token upwards those go that together hold no more than 1 - share; of equal ones the
    # lowest ids first (transformers leaves that open).
    weights = np.exp(left - left.max())
    total = weights.sum()
    above, between, held_above = _bracket(left, weights, share * total)
    worst_first = between[np.argsort(left[between], kind="stable")]
    rising = weights[worst_first].cumsum()
    gone = total - held_above - rising[-1]
    removed = np.count_nonzero(rising + gone <= np.float32(1 - share) * total)
    above[worst_first[removed:]] = True
    if np.count_nonzero(above) < keep:
        above[:] = False
        above[largest(left, keep)] = True
    return above


def _min_p(left: Logits, share: float, keep: int) -> Keep:
    probabilities = softmax(left)
    kept: Keep = probabilities >= np.float32(share) * probabilities.max()
    if keep > 1:
        kept[largest(probabilities, keep)] = True
    return kept


def _typical(left: Logits, mass: float, keep: int) -> Keep:
    # Meister et al., "Locally Typical Sampling", https://arxiv.org/abs/2202.00666
    surprise = -log_softmax(left)
    weighted = surprise * np.exp(-surprise)
    distance = np.abs(surprise - weighted.sum())
    weights = np.exp(-surprise)
    _, between, held_above = _bracket(-distance, weights, mass)
    order = between[np.argsort(distance[between], kind="stable")]
    held = held_above + weights[order].cumsum()
    last = min(int(np.count_nonzero(held < np.float32(mass))), order.size - 1)
    kept: Keep = distance <= distance[order[last]]
    if keep > 1:
        kept[largest(-distance, keep)] = True
    return kept


def _bracket(rank: Logits, weights: Logits, wanted: float) -> tuple[Keep, Tokens, np.float32]:
    """Find where, by falling `rank`, the sum of the weights passes `wanted`, without sorting all of them.

    Returns the tokens surely before that place (bool), the places of few among which it lies, and what
    the first hold together.
    """
    above, held_above = np.zeros(rank.size, np.bool_), np.float32(0)
    between = np.ones(rank.size, np.bool_)
    low, high = rank.min(), rank.max()
    for _ in range(_HALVINGS):
        if np.count_nonzero(between) <= _FEW:
            break
        middle = (low + high) / 2
        over = rank >= middle
        held = np.dot(weights, over.astype(np.float32))
        if abs(held - wanted) <= 1e-3 * wanted:  # too near for float32 to be sure
            break
        if held > wanted:
            low = middle
            between &= over
        else:
            high, above, held_above = middle, over, held
            between &= ~over
    return above, np.flatnonzero(between), held_above


def _epsilon(left: Logits, cutoff: float, keep: int) -> Keep:
    kept: Keep = (softmax(left) >= np.float32(cutoff)) | _among_best(left, keep)
    return kept


def _eta(left: Logits, cutoff: float, keep: int) -> Keep:
    # Hewitt et al., "Truncation Sampling as Language Model Desmoothing", https://arxiv.org/abs/2210.15191
    logs = log_softmax(left)
    entropy = -(logs * np.exp(logs)).sum()
    bound = min(np.float32(cutoff), np.sqrt(np.float32(cutoff)) * np.exp(-entropy))
    kept: Keep = (softmax(left) >= bound) | _among_best(left, keep)
    return kept


def _among_best(left: Logits, keep: int) -> Keep:
    keep = min(keep, left.size)
    best: Keep = left >= np.partition(left, -keep)[-keep]
    return best


def _only(tokens: Tokens | None, left: Logits, kept: Keep) -> tuple[Tokens | None, Logits]:
    # None stands for all tokens: an index as long as the vocabulary is only made where it is needed.
    if kept.all():
        return tokens, left
    return np.flatnonzero(kept) if tokens is None else tokens[kept], left[kept]


def _draw(weights: Logits, uniform: float) -> int:
    """Return the place where the running sum of `weights` passes `uniform` (0 to 1) times their sum."""
    whole = weights.size // _BLOCK * _BLOCK
    bounds = np.append(weights[:whole].reshape(-1, _BLOCK).sum(axis=1), weights[whole:].sum())
    bounds = bounds.cumsum(dtype=np.float64)
    target = uniform * bounds[-1]
    block = min(int(np.searchsorted(bounds, target, side="right")), bounds.size - 1 - (whole == weights.size))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    before = bounds[block - 1] if block else 0.0
    place = min(int(np.searchsorted(inside, target - before, side="right")), inside.size - 1)
    return block * _BLOCK + place


def _check_number(best: np.floating[Any]) -> None:
    if best == -np.inf:
        raise UsageError(
            "no token may come next: suppressed tokens, n-gram limits or a constraint forbid them all"
        )
    if not np.isfinite(best):
        raise InputError(
            f"the model's logits are no numbers (the best is {best}): a half-precision or quantized model "
            "that overflows; run the fp32 model, or set remove_invalid_values"
        )
