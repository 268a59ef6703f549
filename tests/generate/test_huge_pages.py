"""When the weights move into huge pages."""

from __future__ import annotations

import threading

import pytest

from onnxkit.generate import huge_pages
from onnxkit.generate.huge_pages import HugePages
from tests.patience import WAIT_S


def test_a_short_run_pays_nothing_and_a_long_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = threading.Event()
    calls: list[int] = []

    def move() -> int:
        calls.append(1)
        moved.set()
        return 0

    monkeypatch.setattr(huge_pages, "use_huge_pages", move)
    monkeypatch.setattr(huge_pages, "resident_bytes", lambda: int(1.2e9))  # 2 s of moving
    pages = HugePages()
    pages.spent(1.5)
    assert not calls
    pages.spent(1.0)
    assert moved.wait(WAIT_S)
    pages.spent(100.0)
    assert calls == [1]


def test_before_something_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(huge_pages, "use_huge_pages", lambda: calls.append(1))
    pages = HugePages()
    pages.now()
    pages.spent(1e6)
    assert calls == [1]
