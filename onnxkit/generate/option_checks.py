"""Which values of `GenerationOptions` make sense, alone and together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError, UsageError

if TYPE_CHECKING:
    from onnxkit.generate.options import GenerationOptions

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAM_OPTIONS = ("length_penalty", "early_stopping")

_EXCLUSIVE = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))


def flag(field: str) -> str:
    """Return the command line's name of a field of `GenerationOptions`."""
    return "--" + field.removesuffix("_ids").replace("_", "-")


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Raise UsageError when two of the given options exclude each other."""
    sampling = [name for name in SAMPLING_OPTIONS if name in given]
    if given.get("temperature") == 0:
        others = [name for name in sampling if name != "temperature"]
        if given.get("do_sample"):
            others.append("do_sample")
        if others:
            raise UsageError(f"--temperature 0 takes the best token: {flag(others[0])} does not apply")
    elif given.get("do_sample") is False and sampling:
        raise UsageError(f"--no-do-sample takes the best token: {flag(sampling[0])} does not apply")
    for one, other in _EXCLUSIVE:
        if one in given and other in given:
            raise UsageError(f"{flag(one)} and {flag(other)} contradict each other: give one of them")


def check(options: GenerationOptions, *, given: frozenset[str] | None = None) -> None:
    """Check that values are in range and go together.

    `given` names the fields that the caller gave, so that a message blames the right side; None: all.

    Raises:
        UsageError: a given value is out of range, or does not go with another.
        InputError: a value that the caller did not give, and that takes effect, is out of range.
    """
    for name, (valid, wanted) in _RANGES.items():
        value = getattr(options, name)
        asked = _asked(given, name)
        idle = name in SAMPLING_OPTIONS and not options.do_sample
        if value is None or (idle and not (asked and given is not None)) or valid(value):
            continue
        if asked:
            raise UsageError(f"{flag(name)} must be {wanted}, not {value}")
        raise InputError(
            f"generation_config.json: {name} must be {wanted}, not {value}: correct it, or give {flag(name)}"
        )
    _check_beams(options, given)
    _check_tokens(options, given)


def _check_beams(options: GenerationOptions, given: frozenset[str] | None) -> None:
    wanted, beams = options.num_return_sequences, options.num_beams
    if beams > 1:
        if wanted > beams:
            raise UsageError(
                f"--num-return-sequences {wanted} is more than the {beams} beams: give --num-beams {wanted}"
            )
        return
    misplaced = [name for name in BEAM_OPTIONS if given is not None and name in given]
    if misplaced:
        raise UsageError(f"{flag(misplaced[0])} belongs to beam search: add --num-beams")
    if wanted > 1 and not options.do_sample:
        raise UsageError(
            f"--num-return-sequences {wanted} would give one text {wanted} times: sample (--temperature) or "
            "search (--num-beams)"
        )


def _check_tokens(options: GenerationOptions, given: frozenset[str] | None) -> None:
    least, most = options.min_new_tokens, options.max_new_tokens
    if least is not None and most is not None and least > most and _asked(given, "min_new_tokens"):
        raise UsageError(f"--min-new-tokens {least} is more than the most new tokens, {most}")
    suppressed = set(options.suppress_tokens)
    for name, forced in (
        ("forced_bos_token_id", {options.forced_bos_token_id} - {None}),
        ("forced_eos_token_ids", set(options.forced_eos_token_ids)),
    ):
        if forced and forced <= suppressed:
            problem = f"suppress_tokens holds every token of {name}: one of them must give way"
            if _asked(given, name) or _asked(given, "suppress_tokens"):
                raise UsageError(problem)
            raise InputError(f"generation_config.json: {problem}")


def _asked(given: frozenset[str] | None, name: str) -> bool:
    return given is None or name in given


_Range = tuple[Callable[[Any], bool], str]
_AT_LEAST_ONE: _Range = (lambda n: n >= 1, "1 or more")
_NOT_NEGATIVE: _Range = (lambda n: n >= 0, "0 or more")
_POSITIVE: _Range = (lambda x: 0 < x < math.inf, "a number over 0")
_FINITE: _Range = (math.isfinite, "a number")
_SHARE: _Range = (lambda x: 0 <= x <= 1, "from 0 to 1")
_CUTOFF: _Range = (lambda x: 0 <= x < 1, "0 (off) or more, below 1")

_RANGES: Mapping[str, _Range] = {
    "max_new_tokens": _AT_LEAST_ONE,
    "max_length": _AT_LEAST_ONE,
    "min_new_tokens": _NOT_NEGATIVE,
    "min_length": _NOT_NEGATIVE,
    "temperature": _POSITIVE,
    "top_k": (lambda n: n >= 0, "0 (off) or more"),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": (lambda x: 0 < x <= 1, "over 0 and at most 1"),
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "presence_penalty": _FINITE,
    "frequency_penalty": _FINITE,
    "no_repeat_ngram_size": _NOT_NEGATIVE,
    "encoder_no_repeat_ngram_size": _NOT_NEGATIVE,
    "num_beams": _AT_LEAST_ONE,
    "length_penalty": _FINITE,
    "early_stopping": (lambda x: x in (True, False, "never"), "true, false or never"),
    "num_return_sequences": _AT_LEAST_ONE,
    "seed": _NOT_NEGATIVE,
}
