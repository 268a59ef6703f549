"""Tiny checkpoints, each made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import save_tiny, save_tiny_sentence_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint by name; read it, copy it, never change it."""
    root = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Path:
        path = root / name
        if not path.exists():
            save_tiny(name, path)
        return path

    return get


@pytest.fixture(scope="session")
def tiny_sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean pooling, Dense with tanh, Normalize."""
    return save_tiny_sentence_model(tmp_path_factory.mktemp("sentence"), dense=24)
