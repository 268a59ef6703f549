"""The check of a whole generating model: chunks against one prefill, greedy text against transformers'."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from onnxkit.errors import GateFailed
from onnxkit.export.plan import Plan
from onnxkit.export.report import GenerationCheck
from onnxkit.export.signature import KEPT_LOGITS, PAST, PRESENT
from onnxkit.measure import CaseAgreement, compare
from onnxkit.measure.agreement import fed
from onnxkit.measure.cases import cases_of
from onnxkit.measure.geometry import Geometry, geometry, random_ids
from onnxkit.runtime import Session

Array = NDArray[Any]

TOKENS = 32
_PROMPT_LENGTHS = (7, 4, 2)
_CHAIN = (3, 1, 1, 3)
_ENCODER_CASES = ("right padding", "batch 3")
_OF_ENCODER = ".encoder."
_LOGITS, _IDS, _MASK, _ENCODER_MASK = "logits", "input_ids", "attention_mask", "encoder_attention_mask"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Three rows to continue.

    Attributes:
        ids: int64 [3, n]; decoder-only prompts are padded at the left, a decoder's start token is not.
        mask: int64 [3, n], which are no padding; None where a decoder takes none.
        encoder: the encoder's inputs; empty for decoder-only models.
    """

    ids: Array
    mask: Array | None
    encoder: Mapping[str, Array]


class Decoding:
    """A decoder's session with its growing cache: three rows, a step at a time.

    Attributes:
        session: takes the next step; optimum's layout has another one for the first.
    """

    def __init__(self, sessions: Mapping[str, Session], prompt: Prompt) -> None:
        self.session = sessions.get("model") or sessions["decoder"]
        self._later = sessions.get("decoder_with_past", self.session)
        rows = len(prompt.ids)
        self._mask = None if prompt.mask is None else prompt.mask[:, :0]
        self._fixed = _encoded(sessions["encoder"], prompt) if prompt.encoder else {}
        self._past = {
            spec.name: np.zeros([rows if a == 0 else s if isinstance(s, int) else 0
                                 for a, s in enumerate(spec.shape)], np.float32)
            for spec in self.session.inputs if spec.name.startswith(PAST) and spec.name not in self._fixed
        }  # fmt: skip

    def feeds(self, ids: Array, mask: Array | None = None) -> dict[str, Array]:
        """What the next step is fed: new tokens int64 [rows, n], all real unless `mask` says otherwise."""
        given: dict[str, Array] = {_IDS: ids, **self._past, **self._fixed}
        if self._mask is not None:
            new = np.ones_like(ids) if mask is None else mask
            given[_MASK] = np.concatenate([self._mask, new], axis=1)
            positions = np.maximum(given[_MASK].cumsum(axis=1) - 1, 0)
            given["position_ids"] = positions[:, -ids.shape[1] :]
        return fed(self.session, given)

    def step(self, ids: Array, mask: Array | None = None) -> Array:
        """Logits float32 [rows, n, vocabulary] of new tokens; the cache takes them in."""
        feeds = self.feeds(ids, mask)
        outputs = self.session.run(feeds)
        self._past = _as_past(outputs)
        self.session = self._later
        self._fixed.update({name: self._past.pop(name) for name in list(self._past) if _OF_ENCODER in name})
        if self._mask is not None:
            self._mask = feeds[_MASK]
        return outputs[_LOGITS]


def _encoded(encoder: Session, prompt: Prompt) -> dict[str, Array]:
    outputs = encoder.run(fed(encoder, prompt.encoder))
    given = {**_as_past(outputs), "encoder_hidden_states": outputs["last_hidden_state"]}
    mask = outputs.get(_ENCODER_MASK, prompt.encoder.get(_MASK))
    return given if mask is None else {**given, _ENCODER_MASK: mask}


def _as_past(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        PAST + name.removeprefix(PRESENT): value
        for name, value in outputs.items()
        if name.startswith(PRESENT)
    }


def make_prompt(
    plan: Plan, sessions: Mapping[str, Session], config: Mapping[str, Any], *, seed: int
) -> Prompt:
    """Three rows of different lengths; of an encoder-decoder, padded encoder inputs and the start token."""
    if "encoder" not in sessions:
        known, longest = geometry(config), max(_PROMPT_LENGTHS)
        lengths = np.array(_PROMPT_LENGTHS)
        mask = (np.arange(longest) >= longest - lengths[:, None]).astype(np.int64)
        ids = random_ids(known, mask.shape, np.random.default_rng(seed))
        return Prompt(ids=np.where(mask, ids, known.pad_id), mask=mask, encoder={})
    cases = dict(cases_of(sessions["encoder"].inputs, config, seed=seed))
    name = next((name for name in _ENCODER_CASES if name in cases), next(iter(cases)))
    rows = len(next(iter(cases[name].values())))
    start = getattr(plan.config, "decoder_start_token_id", None)
    return Prompt(ids=np.full((rows, 1), start or 0), mask=None, encoder=cases[name])


def check_steps(
    sessions: Mapping[str, Session], prompt: Prompt, known: Geometry, part: str
) -> list[CaseAgreement]:
    """One prefill against chunks of 3, 1, 1 and 3 tokens, and against the last two logits alone."""
    rng = np.random.default_rng(0)
    width = min(sum(_CHAIN), known.decoder_positions or sum(_CHAIN))
    ids = random_ids(known, (len(prompt.ids), width), rng)
    lengths = np.array([width, *_PROMPT_LENGTHS[1:]])[:, None]
    mask = None if prompt.mask is None else (np.arange(width) >= width - lengths).astype(np.int64)
    whole, chained, cut = (Decoding(sessions, prompt) for _ in range(3))
    expected = whole.step(ids, mask)
    edges = np.cumsum([0, *_CHAIN]).clip(max=width)
    got = [
        chained.step(ids[:, a:b], None if mask is None else mask[:, a:b])
        for a, b in itertools.pairwise(edges) if a < b
    ]  # fmt: skip
    valid = None if mask is None else mask.astype(bool)
    rows = [_row(part, "chunks of 3, 1, 1 and 3", expected, np.concatenate(got, axis=1), valid)]
    if any(spec.name == KEPT_LOGITS for spec in cut.session.overridable):
        last = _last_two(cut, ids, mask)
        kept = None if valid is None else valid[:, -2:]
        rows.append(_row(part, "the last two logits", expected[:, -2:], last, kept))
    return rows


def _row(part: str, case: str, expected: Array, actual: Array, valid: Array | None) -> CaseAgreement:
    agreement = compare(expected, actual, valid)
    return CaseAgreement(component=part, case=case, output=_LOGITS, agreement=agreement)


def _last_two(decoding: Decoding, ids: Array, mask: Array | None) -> Array:
    binding = decoding.session.binding()
    feeds = {name: np.ascontiguousarray(value) for name, value in decoding.feeds(ids, mask).items()}
    for name, value in feeds.items():
        binding.feed(name, value)
    binding.feed(KEPT_LOGITS, np.array(2, np.int64))
    binding.fetch_value(_LOGITS)
    binding.run()
    logits: Array = binding.values()[_LOGITS].numpy()
    return logits


def check_greedy(
    sessions: Mapping[str, Session], prompt: Prompt, model: PreTrainedModel, known: Geometry, tolerance: float
) -> GenerationCheck:
    """Continue the prompt greedily on both sides, token for token.

    A row whose tokens part counts up to the step where they do, if there the logits of both tokens are closer
    than `tolerance` times the largest: rounding decides between them.

    Raises:
        GateFailed: they part where the logits do not.
    """
    room = (known.decoder_positions or TOKENS + prompt.ids.shape[1]) - prompt.ids.shape[1]
    count = max(1, min(TOKENS, room))
    right = reference_tokens(model, prompt, count)
    decoding = Decoding(sessions, prompt)
    ids, mask = prompt.ids, prompt.mask
    rows = np.arange(len(ids))
    parted: dict[int, int] = {}
    for step in range(count):
        logits = decoding.step(ids, mask)[:, -1]
        best = logits.argmax(axis=-1)
        for row in rows[(best != right[:, step]) & ~np.isin(rows, list(parted))]:
            margin = float(logits[row, best[row]] - logits[row, right[row, step]])
            if margin > tolerance * float(np.abs(logits[row]).max()):
                raise GateFailed(
                    f"greedy generation differs from transformers' at token {step + 1} of row {row + 1}: "
                    f"{best[row]} instead of {right[row, step]}, whose logit is lower by {margin:.1e}"
                )
            parted[int(row)] = step
        ids, mask = best[:, None], None
    return GenerationCheck(
        tokens=count, rows=len(rows), near_ties=tuple(parted[row] for row in sorted(parted))
    )


def reference_tokens(model: PreTrainedModel, prompt: Prompt, count: int) -> Array:
    """The tokens of transformers' own greedy `generate`: nothing stops it and no processor has a say."""
    start = int(prompt.ids[0, 0])
    config: Any = GenerationConfig
    settings = config(
        max_new_tokens=count, do_sample=False, num_beams=1, use_cache=True, pad_token_id=_pad_id(model),
        decoder_start_token_id=start, bos_token_id=start, eos_token_id=None, return_dict_in_generate=False,
    )  # fmt: skip
    ids = torch.from_numpy(prompt.ids)
    if prompt.encoder:
        given = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in prompt.encoder.items()}
        given["decoder_input_ids"] = ids
    else:
        assert prompt.mask is not None
        given = {"inputs": ids, "attention_mask": torch.from_numpy(prompt.mask)}
    before = model.generation_config
    anywhere: Any = model
    anywhere.generation_config = copy.deepcopy(settings)
    mixin: Any = GenerationMixin  # whisper's own `generate` cuts audio into windows
    try:
        with torch.no_grad():
            tokens = mixin.generate(model, generation_config=settings, **given)
    finally:
        anywhere.generation_config = before
    made: Array = tokens[:, ids.shape[1] :].numpy()
    return made


def _pad_id(model: PreTrainedModel) -> int:
    """Any id will do: with no end token no row ends before the others."""
    pad = getattr(model.config, "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0
