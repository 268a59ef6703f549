"""Skips what needs a device that this machine has not, and says why."""

from __future__ import annotations

from functools import cache

import pytest

from onnxkit.runtime.cuda import examine_cuda


@cache
def _no_cuda() -> str | None:
    """Return why CUDA cannot be used here, or None."""
    return examine_cuda().problem


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where CUDA does not work."""
    if item.get_closest_marker("gpu") and (problem := _no_cuda()):
        pytest.skip(f"no CUDA: {problem}")
