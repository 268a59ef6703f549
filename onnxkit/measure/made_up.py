"""Inputs that were made up for a graph: what it makes of them, and which of them it cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.measure.agreement import fed
from onnxkit.progress import Progress
from onnxkit.runtime import Session

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One input, and what the input model makes of it."""

    name: str
    feeds: Feeds
    outputs: Feeds


def run_all(
    session: Session, cases: Iterable[tuple[str, Feeds]], progress: Progress, *, option: str
) -> list[Expected]:
    """Run the input model on every case; those that it cannot run are left out, with one warning.

    Args:
        option: what the user gives inputs with.

    Raises:
        InputError: it can run none of them.
    """
    found: list[Expected] = []
    failed: dict[str, InputError] = {}
    for name, feeds in cases:
        try:
            found.append(Expected(name=name, feeds=feeds, outputs=session.run(fed(session, feeds))))
        except InputError as error:
            failed[name] = error
    if not failed:
        return found
    first = next(iter(failed.values()))
    if not found:
        raise misfit(first, option) from first
    names = ", ".join(repr(name) for name in failed)
    progress.warn(f"the input model cannot run {names}, which is left out of the check: {first}")
    return found


def misfit(error: InputError, option: str) -> InputError:
    """Return the error of a graph that does not run on what was made up, with the option that helps."""
    text = str(error).rstrip(".")
    return InputError(f"{text}; these inputs are made up: give it some that fit with {option} FILE.npz")


__all__ = ["Expected", "misfit", "run_all"]
