"""DeBERTa's attention: contents and relative positions apart (arXiv:2006.03654, arXiv:2111.09543)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from onnxkit.export.attention import HookRefused
from onnxkit.export.operators import OPS


def attend(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """Scores of contents, and a bias of how contents and relative positions go together.

    The mask `[B,1,S,T]` lets padding look at nothing: its scores are all alike then, as in transformers.
    """
    if query_states is not None or output_attentions:
        raise HookRefused("queries of other states, or probabilities asked for")
    own = (self.query_proj, self.key_proj, self.value_proj)
    query, key, value = (_heads(self, part(hidden_states)) for part in own)
    kinds = _kinds(self)
    scale = (query.shape[-1] * (1 + len(kinds))) ** -0.5
    bias = None
    if self.relative_attention:
        if relative_pos is None or rel_embeddings is None:
            raise HookRefused("relative positions that each layer makes")
        span = self.pos_ebd_size
        pattern = "{}_proj" if self.share_att_key else "pos_{}_proj"
        names = {"c2p": pattern.format("key"), "p2c": pattern.format("query")}
        places = _places(self, {kind: names[kind] for kind in kinds}, rel_embeddings[: 2 * span])
        bias = _bias(places, query, key, relative_pos, span)
    return _out(hidden_states, query, key, value, attention_mask, bias, scale)


def attend_first_version(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """As `attend`; one projection for all three, and an embedding for each distance, of which a text reads
    as many as it is long."""
    if query_states is not None or output_attentions or self.talking_head:
        raise HookRefused("queries of other states, probabilities asked for, or heads that talk")
    shape = (self.num_attention_heads, -1)
    mixed = self.in_proj(hidden_states).view(*hidden_states.shape[:-1], *shape).chunk(3, dim=-1)
    biased = (mixed[0] + self.q_bias.view(shape), mixed[1], mixed[2] + self.v_bias.view(shape))
    query, key, value = (x.transpose(1, 2) for x in biased)
    kinds = _kinds(self)
    scale = (query.shape[-1] * (1 + len(self.pos_att_type))) ** -0.5
    bias = None
    if self.relative_attention:
        if rel_embeddings is None or relative_pos is None:
            raise HookRefused("relative positions that each layer makes")
        longest = self.max_relative_positions
        span = torch.sym_min(query.shape[2], longest)  # type: ignore[no-untyped-call]
        names = {"c2p": "pos_proj", "p2c": "pos_q_proj"}
        whole = _places(self, {kind: names[kind] for kind in kinds}, rel_embeddings)
        places = {kind: table[:, :, longest - span : longest + span] for kind, table in whole.items()}
        bias = _bias(places, query, key, relative_pos, span)
    return _out(hidden_states, query, key, value, attention_mask, bias, scale)


def _places(self: Any, names: Mapping[str, str], embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """Embeddings `[2·span,H·D]` → by kind `[1,H,2·span,D]`, each through the projection of that name."""
    return {kind: _heads(self, getattr(self, name)(embeddings[None])) for kind, name in names.items()}


def _kinds(self: Any) -> list[str]:
    return [kind for kind in ("c2p", "p2c") if kind in self.pos_att_type]


def _out(
    hidden_states: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, None]:
    scaled = None if bias is None else bias * scale
    out = OPS.attention(query, key, value, mask.to(torch.bool), scaled, None, scale, 0.0)
    return out.reshape(*hidden_states.shape[:-1], -1), None


def _heads(self: Any, x: torch.Tensor) -> torch.Tensor:
    """`[B,S,H·D]` → `[B,H,S,D]`."""
    return x.view(*x.shape[:-1], self.num_attention_heads, -1).transpose(1, 2)


def _bias(
    places: Mapping[str, torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    relative: torch.Tensor,
    span: Any,
) -> torch.Tensor | None:
    """`[B,H,S,S]`, unscaled: each query with the embeddings of its distances ("c2p"), each key with those of
    its own ("p2c"). `relative` `[1,S,S]`; `places` by kind `[1,H,2·span,D]`, one for each distance."""
    shape = (query.shape[0], query.shape[1], -1, -1)
    terms = []
    for kind, table in places.items():
        scores = (query if kind == "c2p" else key) @ table.transpose(-1, -2)
        distance = relative if kind == "c2p" else -relative
        index = (distance + span).clamp(0, 2 * span - 1).unsqueeze(1).expand(shape)
        found = scores.gather(-1, index)
        terms.append(found if kind == "c2p" else found.transpose(-1, -2))
    return sum(terms[1:], terms[0]) if terms else None
