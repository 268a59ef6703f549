"""A progress object that keeps what it is told."""

from __future__ import annotations

from onnxkit.progress import Progress


class Heard(Progress):
    """Notes and warnings, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)
