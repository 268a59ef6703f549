"""A conversation: a token history that grows turn by turn, over a cache that stays."""

from __future__ import annotations

from collections.abc import Callable

from onnxkit.generate.budget import Budget
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.logits import Tokens
from onnxkit.generate.request import Completion, Request
from onnxkit.generate.single import SingleRow, answer
from onnxkit.generate.speculation import Proposer


class Conversation:
    """Continues histories that share a beginning; only what is new is computed.

    Made by `Engine.conversation`. After a KeyboardInterrupt it goes on with what was computed so far.
    """

    def __init__(
        self, decoder: Decoder, budget: Budget, *, proposer: Callable[[Tokens], Proposer] | None = None
    ) -> None:
        """Begin with an empty cache."""
        self._decoder = decoder
        self._budget = budget
        self._proposer = proposer
        self._row = SingleRow(decoder, announced=0)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are there."""
        return self._row.length

    @property
    def cached_bytes(self) -> int:
        """Bytes of their keys and values."""
        return self._row.length * sum(tensor.slot_bytes for tensor in self._decoder.roles.cache)

    def generate(self, request: Request, *, on_token: Callable[[int], None] | None = None) -> Completion:
        """Continue `request.prompt`: the whole history, of which the known beginning is not computed again.

        Raises:
            UsageError: several sequences are asked for.
            InputError: the history fills the context.
            ResourceError: the answer would not fit into memory.
            KeyboardInterrupt: Ctrl-C; `on_token` has seen what was there.
        """
        return answer(
            self._row,
            request,
            vocabulary=self._decoder.vocabulary,
            budget=self._budget,
            proposer=self._proposer,
            on_token=on_token,
        )

    def reset(self) -> None:
        """Forget everything."""
        self._row = SingleRow(self._decoder, announced=0)
