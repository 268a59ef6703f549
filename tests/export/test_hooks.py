"""What the mask hook reads out of a mask function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import masking_utils

from onnxkit.export.hooks import HookRefused, _shape_of


def overlay(reach: int) -> Callable[..., Any]:
    """A causal window of `reach` with the other side laid over it, as Gemma 3's embedding models have it."""
    return masking_utils.or_masks(
        masking_utils.sliding_window_causal_mask_function(reach),
        lambda batch, head, query, key: abs(query - key) < reach,
    )


def always(*indices: Any) -> torch.Tensor:
    return torch.tensor(True)


@pytest.mark.parametrize(
    ("function", "local_size", "expected"),
    [
        (masking_utils.causal_mask_function, None, (True, 0)),
        (always, None, (False, 0)),
        (masking_utils.or_masks(masking_utils.causal_mask_function, always), None, (False, 0)),
        (masking_utils.sliding_window_causal_mask_function(6), 6, (True, 6)),
        (masking_utils.sliding_window_causal_mask_function(1), 1, (True, 1)),
        (overlay(4), 4, (False, 3)),
        (lambda batch, head, query, key: abs(query - key) <= 4, 4, (False, 4)),
    ],
)
def test_shapes(function: Callable[..., Any], local_size: int | None, expected: tuple[bool, int]) -> None:
    assert _shape_of(function, local_size or 0) == expected


@pytest.mark.parametrize(
    ("function", "local_size"),
    [
        (masking_utils.sliding_window_causal_mask_function(6), None),
        (masking_utils.sliding_window_causal_mask_function(6), 9),
        (lambda batch, head, query, key: (query // 4 == key // 4) & (key <= query), None),
        (lambda batch, head, query, key: key >= query, None),
        (lambda batch, head, query, key: torch.empty(9, device="meta")[key] == 1, None),
        (lambda batch, head, query, key: (query - key < 3) & (key - query < 2), 3),
    ],
)
def test_others_are_refused(function: Callable[..., Any], local_size: int | None) -> None:
    with pytest.raises(HookRefused):
        _shape_of(function, local_size or 0)
