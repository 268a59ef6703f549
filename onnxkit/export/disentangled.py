"""DeBERTa's attention: contents and relative positions apart (arXiv:2006.03654, arXiv:2111.09543)."""

from __future__ import annotations

from typing import Any

import torch

from onnxkit.export.hooks import HookRefused
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
    projections = (self.query_proj, self.key_proj, self.value_proj)
    query, key, value = (_heads(self, part(hidden_states)) for part in projections)
    kinds = [kind for kind in ("c2p", "p2c") if kind in self.pos_att_type]
    scale = (query.shape[-1] * (1 + len(kinds))) ** -0.5
    bias = None
    if self.relative_attention:
        if relative_pos is None or rel_embeddings is None:
            raise HookRefused("relative positions that each layer makes")
        bias = _bias(self, kinds, query, key, relative_pos, rel_embeddings)
    scaled = None if bias is None else bias * scale
    out = OPS.attention(query, key, value, attention_mask.to(torch.bool), scaled, None, scale, 0.0)
    return out.reshape(*hidden_states.shape[:-1], -1), None


def _heads(self: Any, x: torch.Tensor) -> torch.Tensor:
    """`[B,S,H·D]` → `[B,H,S,D]`."""
    return x.view(*x.shape[:-1], self.num_attention_heads, -1).transpose(1, 2)


def _bias(
    self: Any,
    kinds: list[str],
    query: torch.Tensor,
    key: torch.Tensor,
    relative: torch.Tensor,
    embeddings: torch.Tensor,
) -> torch.Tensor | None:
    """`[B,H,S,S]`, unscaled: each query with the embeddings of its distances ("c2p"), each key with those of
    its own ("p2c"). `relative` `[1,S,S]`, an embedding for each of 2·span distances."""
    span = self.pos_ebd_size
    places = embeddings[: 2 * span].unsqueeze(0)
    shape = (query.shape[0], query.shape[1], -1, -1)
    terms = []
    for kind in kinds:
        content, name = (query, "key") if kind == "c2p" else (key, "query")
        projection = getattr(self, f"{name}_proj" if self.share_att_key else f"pos_{name}_proj")
        scores = content @ _heads(self, projection(places)).transpose(-1, -2)
        distance = relative if kind == "c2p" else -relative
        index = (distance + span).clamp(0, 2 * span - 1).unsqueeze(1).expand(shape)
        found = scores.gather(-1, index)
        terms.append(found if kind == "c2p" else found.transpose(-1, -2))
    return sum(terms[1:], terms[0]) if terms else None
