"""Measures: agreement of outputs, time, memory, task metrics, and what this machine is.

Names are imported from their files when they are asked for: a child process that only times a
model, and `doctor`, load nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxkit.measure.agreement import (
        TOLERANCES,
        Agreement,
        CaseAgreement,
        compare,
        compare_sessions,
        valid_positions,
        weighted_cosine,
        worst,
    )
    from onnxkit.measure.cases import random_cases
    from onnxkit.measure.doctor import DoctorReport, examine
    from onnxkit.measure.latency import Comparison, Summary, interleaved, interleaved_calls, time_session
    from onnxkit.measure.profile import profile_model
    from onnxkit.measure.profile_report import ProfileOptions, ProfileReport
    from onnxkit.measure.verify import VerifyReport, verify_model

_HOMES = {
    "agreement": (
        "TOLERANCES", "Agreement", "CaseAgreement", "compare", "compare_sessions", "valid_positions",
        "weighted_cosine", "worst",
    ),
    "cases": ("random_cases",),
    "doctor": ("DoctorReport", "examine"),
    "latency": ("Comparison", "Summary", "interleaved", "interleaved_calls", "time_session"),
    "profile": ("profile_model",),
    "profile_report": ("ProfileOptions", "ProfileReport"),
    "verify": ("VerifyReport", "verify_model"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TOLERANCES",
    "Agreement",
    "CaseAgreement",
    "Comparison",
    "DoctorReport",
    "ProfileOptions",
    "ProfileReport",
    "Summary",
    "VerifyReport",
    "compare",
    "compare_sessions",
    "examine",
    "interleaved",
    "interleaved_calls",
    "profile_model",
    "random_cases",
    "time_session",
    "valid_positions",
    "verify_model",
    "weighted_cosine",
    "worst",
]


def __getattr__(name: str) -> object:
    """Import a public name from its file."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"onnxkit.measure.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'onnxkit.measure' has no attribute {name!r}")
