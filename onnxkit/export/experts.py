"""Mixtures of experts as transformers' experts interface has them, in a form that a graph can hold.

Transformers' own implementations loop over the experts that were hit, gather a copy of the weights for
every token, or sort tokens for a kernel: none of them is a graph of fixed shape and bounded memory.
"""

from __future__ import annotations

from typing import Any

import torch

from onnxkit.export.operators import OPS


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Every token `[N,H]` through its experts `[N,K]`, weighted `[N,K]` and summed: `[N,H]`."""
    width, count = hidden_states.shape[-1], top_k_index.shape[-1]
    rows = hidden_states.unsqueeze(1).expand(-1, count, -1).reshape(-1, width)
    chosen = top_k_index.reshape(-1)
    x = _linear(self, "gate_up_proj" if self.has_gate else "up_proj", rows, chosen)
    x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
    x = _linear(self, "down_proj", x, chosen)
    if self.has_post_expert_norm:
        x = self.post_expert_norm(x)
    weighted = x.reshape(-1, count, width) * top_k_weights.unsqueeze(-1)
    result: torch.Tensor = weighted.sum(dim=1).to(hidden_states.dtype)
    return result


def _linear(module: Any, name: str, rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = OPS.expert_matmul(rows, getattr(module, name), chosen, module.is_transposed)
    return result + getattr(module, f"{name}_bias")[chosen] if module.has_bias else result
