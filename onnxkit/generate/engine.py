"""The engine: requests in, completions out, over the graphs of a model directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.generate.budget import Budget, context_limit
from onnxkit.generate.conversation import Conversation
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.draft import Draft
from onnxkit.generate.encoder import Encoder, Inputs
from onnxkit.generate.logits import Logits, Tokens
from onnxkit.generate.request import Completion, Request
from onnxkit.generate.sampling import log_softmax
from onnxkit.generate.schedule import Schedule
from onnxkit.generate.single import SingleRow, answer
from onnxkit.generate.speculation import NgramProposer, Proposer
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions

# Bytes of the logits of one run of `score`.
_SCORE_BYTES = 1 << 26


class Engine:
    """Generates with a model directory. Make one with `Engine.open`.

    Attributes:
        decoder: the loaded decoder; `encoder`: the encoder, or None.
        limit: tokens that a sequence of the decoder can have at most, or None.
    """

    def __init__(
        self,
        decoder: Decoder,
        encoder: Encoder | None,
        *,
        limit: int | None,
        batch_size: int = 8,
        proposer: Callable[[Tokens], Proposer] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Use loaded graphs; `proposer` makes what guesses the tokens after a history (int64 [n])."""
        if batch_size < 1:
            raise UsageError(f"the batch size must be 1 or more, not {batch_size}")
        self.decoder = decoder
        self.encoder = encoder
        self.limit = limit
        self._batch_size = batch_size
        self._proposer = proposer
        self._progress = progress or Progress()
        self._warned = False
        self._budget = Budget(
            limit=limit,
            slot_bytes=decoder.slot_bytes,
            encoder_slot_bytes=encoder.slot_bytes if encoder else 0,
            logits_bytes=4 * decoder.vocabulary,
        )

    @classmethod
    def open(
        cls,
        model: ModelDir,
        runtime: RuntimeOptions | None = None,
        *,
        batch_size: int = 8,
        speculate: str | None = None,
        draft: ModelDir | None = None,
        progress: Progress | None = None,
    ) -> Engine:
        """Load the graphs of a model directory.

        Args:
            model: with one decoder graph, or with the components `encoder`, `decoder` and (optimum's
                layout, whose prefixes are run token by token) `decoder_with_past`.
            runtime: provider, threads, graph optimization; for all graphs.
            batch_size: the most sequences that are decoded at once.
            speculate: "ngram" guesses what followed an earlier occurrence of the last tokens.
            draft: guesses by this smaller model, whose ids mean the same. With either kind of speculation,
                requests run one by one.
            progress: is warned when less can be done than was asked for.

        Raises:
            UsageError: unknown `speculate`, both kinds of speculation, a batch size below 1.
            InputError: no decoder with a cache (also: as the draft).
            EnvironmentProblem, ResourceError: as `runtime.open_session`.
        """
        runtime = runtime or RuntimeOptions()
        if speculate not in (None, "ngram"):
            raise UsageError(
                f"--speculate {speculate}: ngram is the only kind (for a draft model: --draft DIR)"
            )
        if speculate and draft:
            raise UsageError("--speculate and --draft exclude each other")
        decoder, encoder = _graphs(model, runtime)
        proposer: Callable[[Tokens], Proposer] | None = None
        if speculate:
            proposer = _ngrams
        elif draft:
            proposer = Draft.open(draft, runtime)
        return cls(
            decoder,
            encoder,
            limit=context_limit(model.config),
            batch_size=batch_size,
            proposer=proposer,
            progress=progress,
        )

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the logits cover."""
        return self.decoder.vocabulary

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token."""
        return sum(tensor.slot_bytes for tensor in self.decoder.roles.cache)

    def generate(
        self, requests: Iterable[Request], *, on_token: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position of the request, completion), as they finish, in constant memory.

        Requests are read as places get free. `on_token` is called with (position, token) for
        every token of requests that make one sequence, without beams.

        Raises:
            UsageError: options that cannot be met.
            InputError: an empty prompt, one that fills the context, wrong encoder inputs.
            ResourceError: a request that does not fit into memory, before it starts.
            KeyboardInterrupt: Ctrl-C, within the node that runs.
        """
        checked = map(self._checked, requests)
        if self._proposer is not None:
            return self._one_by_one(checked, on_token)
        schedule = Schedule(
            self.decoder, self.encoder, self._budget, batch_size=self._batch_size, on_token=on_token
        )
        return schedule.run(checked)

    def score(self, ids: Tokens, *, encoder: Inputs | None = None) -> Logits:
        """Return the log-probabilities, float32 [n-1] in nats, of ids[1:], each given all before it.

        Runs in chunks, so that memory grows with the cache only (but see `Decoder.runs_whole`).

        Args:
            ids: int64 [n], n >= 2; with an encoder the decoder's ids.
            encoder: the encoder's unbatched inputs.

        Raises:
            InputError: fewer than two ids, more than the context, one that the model does not know, or wrong
                encoder inputs.
            ResourceError: the keys and values do not fit into memory.
        """
        if len(ids) < 2:
            raise InputError("a score needs at least two tokens: the first is only given")
        if self.limit is not None and len(ids) > self.limit:
            raise InputError(
                f"the text has {len(ids)} tokens, the model's context {self.limit}: score shorter pieces"
            )
        if ids.max() >= self.vocabulary:
            raise InputError(
                f"the token {ids.max()} is none of the model's {self.vocabulary}: its tokenizer knows more"
            )
        self._budget.check_tokens(len(ids))
        cross = self.encoder.run([encoder or {}]) if self.encoder else None
        row = SingleRow(self.decoder, announced=len(ids), cross=cross)
        most = max(1, _SCORE_BYTES // (4 * self.vocabulary))
        scores = np.empty(len(ids) - 1, np.float32)
        whole = self.decoder.runs_whole(len(scores), logits=len(scores))
        first = 0
        while first < len(scores):
            size = len(scores) if whole else min(most, self.decoder.chunk(first))
            given = ids[first : min(first + size, len(scores))]
            logits = row.append(given, keep=len(given))
            chosen = ids[first + 1 : first + 1 + len(given)]
            scores[first : first + len(given)] = log_softmax(logits)[np.arange(len(given)), chosen]
            first += len(given)
        return scores

    def conversation(self) -> Conversation:
        """Return an empty conversation, which keeps its cache from one answer to the next.

        Raises:
            UsageError: the model has an encoder.
        """
        if self.encoder is not None:
            raise UsageError("a conversation needs a decoder-only model (task text-generation)")
        return Conversation(self.decoder, self._budget, proposer=self._proposer)

    def _one_by_one(
        self, requests: Iterable[Request], on_token: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            cross = self.encoder.run([request.encoder]) if self.encoder else None
            announced = len(request.prompt) + self._budget.new_tokens(request)
            completion = answer(
                SingleRow(self.decoder, announced=announced, cross=cross),
                request,
                vocabulary=self.vocabulary,
                budget=self._budget,
                proposer=self._proposer,
                on_token=_told(on_token, index),
            )
            yield index, completion

    def _checked(self, request: Request) -> Request:
        if bool(request.encoder) != (self.encoder is not None):
            needs = "has an encoder, the request no inputs for it" if self.encoder else "has no encoder"
            raise InputError(f"{self.decoder.session.model}: the model {needs}")
        prompt = len(request.prompt)
        wanted = request.options.wanted_new_tokens(prompt) if prompt else None
        if wanted and self.limit is not None and prompt < self.limit < prompt + wanted and not self._warned:
            self._warned = True
            self._progress.warn(
                f"{wanted} new tokens are asked for, the context of {self.limit} tokens leaves "
                f"{self.limit - prompt} after the prompt: the output is cut there"
            )
        return request


def _graphs(model: ModelDir, runtime: RuntimeOptions) -> tuple[Decoder, Encoder | None]:
    """Load one decoder, or an encoder and its decoder; in optimum's layout that of the later steps."""
    files = {name: model.path / component.file for name, component in model.components.items()}
    if "encoder" not in files or "decoder" not in files:
        return Decoder.open(model.model_file, runtime, model.config), None
    later = files.get("decoder_with_past")
    decoder = Decoder.open(later or files["decoder"], runtime, model.config, stepwise=later is not None)
    first_step = files["decoder"] if later else None
    return decoder, Encoder.open(files["encoder"], runtime, decoder.roles, first_step)


def _ngrams(history: Tokens) -> Proposer:
    return NgramProposer(history.tolist())


def _told(on_token: Callable[[int, int], None] | None, index: int) -> Callable[[int], None] | None:
    return None if on_token is None else lambda token: on_token(index, token)
