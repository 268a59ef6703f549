"""Skips what needs a device that this machine has not, and says why; no test fails for being slow."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from onnxkit.runtime.cuda import examine_cuda

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@cache
def _no_cuda() -> str | None:
    """Return why CUDA cannot be used here, or None."""
    return examine_cuda().problem


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where CUDA does not work."""
    if item.get_closest_marker("gpu") and (problem := _no_cuda()):
        pytest.skip(f"no CUDA: {problem}")
