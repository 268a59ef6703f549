"""What the caller may choose about generation, and what the model's own files choose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxkit.errors import UsageError
from onnxkit.generate.option_checks import SAMPLING_OPTIONS, check, refuse_contradictions
from onnxkit.generate.option_files import fields_of, stored_values, unsupported
from onnxkit.progress import Progress

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one request is decoded. The defaults are those of transformers' `generate`.

    Names and meaning are those of transformers' GenerationConfig; `presence_penalty` and
    `frequency_penalty` are OpenAI's and count generated tokens only. Lengths are in tokens.

    Attributes:
        max_new_tokens: longest output; None leaves it to `max_length`, then to the engine.
        max_length: longest prompt plus output (an encoder-decoder's prompt is its decoder's prefix).
        min_new_tokens: no end-of-sequence token before that many new tokens; wins over `min_length`.
        min_length: the same, the prompt counted.
        do_sample: draw from the distribution; False takes the best token (or the best beams).
        temperature: what logits are divided by, over 0.
        top_k: keep the k best tokens (and ties with the last); 0 keeps all.
        top_p: keep the best tokens that together hold this probability; 1.0 keeps all.
        min_p: keep tokens of at least this share of the best token's probability.
        typical_p: keep the tokens whose surprise is nearest the entropy; 1.0 keeps all.
        epsilon_cutoff: keep tokens of at least this probability; 0.0 keeps all.
        eta_cutoff: the same, with a bound that falls with the entropy; 0.0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen so far.
        encoder_repetition_penalty: the opposite for the tokens of the encoder's input (else the prompt).
        presence_penalty: subtracted from the logit of each token that was generated.
        frequency_penalty: subtracted once for each time that a token was generated.
        no_repeat_ngram_size: no n-gram of this size occurs twice, the prompt included; 0 is off.
        encoder_no_repeat_ngram_size: no n-gram of the encoder's input (else the prompt) occurs; 0 is off.
        bad_words_ids: token sequences that must not occur.
        sequence_bias: pairs of a token sequence and what is added to the logit of its last token.
        suppress_tokens: tokens that never occur.
        begin_suppress_tokens: tokens that do not occur as the first new token.
        forced_bos_token_id: the first new token after a prompt of one token.
        forced_eos_token_ids: the last token when the length is reached; several: the best of them.
        exponential_decay_length_penalty: (start, factor): end-of-sequence grows likelier after `start`.
        remove_invalid_values: NaN and infinite logits become numbers.
        renormalize_logits: scores are log-probabilities again after all processing (beam search).
        num_beams: beams of the search; 1 is none.
        length_penalty: a beam's score is its log-probability over its length to this power.
        early_stopping: True ends at `num_beams` finished beams, False when the best running beam is
            unlikely to win, "never" when it cannot win.
        num_return_sequences: outputs a prompt; of a beam search, its best.
        seed: of the random numbers; None takes fresh ones.
        eos_token_ids: each ends a sequence.
        pad_token_id: what fills short rows.
        bos_token_id: begins a text.
        decoder_start_token_id: begins an encoder-decoder's output.
        stop_strings: texts that end a sequence; whoever knows the tokenizer looks for them.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1
    seed: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    stop_strings: tuple[str, ...] = ()

    def wanted_new_tokens(self, prompt_length: int) -> int | None:
        """Return the longest output after a prompt of `prompt_length` tokens; None: not said.

        Raises:
            UsageError: `max_length` leaves no room after the prompt.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return None
        if self.max_length <= prompt_length:
            raise UsageError(
                f"the prompt has {prompt_length} tokens and the greatest length is {self.max_length}: "
                "raise --max-length, or give --max-new-tokens"
            )
        return self.max_length - prompt_length

    def least_new_tokens(self, prompt_length: int) -> int:
        """Return how many new tokens must come before an end-of-sequence token is allowed."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(0, self.min_length - prompt_length)


def defaults(model: ModelDir, *, progress: Progress | None = None) -> GenerationOptions:
    """Return what the model's own files say: generation_config.json, else config.json.

    As transformers 5.23 resolves it: without a padding token the first end-of-sequence token fills, without a
    decoder's start token the beginning-of-sequence token starts. Two differences are meant: no length is
    set where the files set none (transformers: 20 tokens), and a negative token id means none.
    `progress` gets one warning that names the settings which would change the result in
    transformers and which onnxkit does not have.

    Raises:
        InputError: a file is damaged, or a value has the wrong type.
    """
    values, where = stored_values(model.path, model.config)
    missed = unsupported(values)
    if missed:
        (progress or Progress()).warn(f"{where}: {', '.join(missed)} is not supported: the output may differ")
    fields = fields_of(values, where=where)
    if model.config.get("is_encoder_decoder") and fields.get("decoder_start_token_id") is None:
        fields["decoder_start_token_id"] = fields.get("bos_token_id")
    return GenerationOptions(**fields)


def merged(defaults: GenerationOptions, **given: Any) -> GenerationOptions:
    """Lay what the caller gave over the model's defaults, and check the result.

    A value of None is not given. A given sampling option means `do_sample`, as do several sequences without
    beams; `temperature=0` means no sampling. A given length takes the place of the model's.

    Raises:
        UsageError: given values are out of range or contradict one another.
        InputError: a value of the model's own files, which now takes effect, is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    refuse_contradictions(given)
    changes = dict(given)
    if changes.get("temperature") == 0:
        del changes["temperature"]
        changes["do_sample"] = False
    elif "do_sample" not in given and any(name in given for name in SAMPLING_OPTIONS):
        changes["do_sample"] = True
    if "max_new_tokens" in given or "max_length" in given:
        changes.setdefault("max_new_tokens", None)
        changes.setdefault("max_length", None)
    if "min_length" in given:
        changes.setdefault("min_new_tokens", None)
    options = dataclasses.replace(defaults, **changes)
    if options.num_return_sequences > 1 and options.num_beams == 1 and "do_sample" not in changes:
        options = dataclasses.replace(options, do_sample=True)
    check(options, given=frozenset(given))
    return options
