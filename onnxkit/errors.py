"""One exception class per documented exit code.

Code below the command line only raises these; the command line's error boundary turns them
into one line on stderr and the exit code. A message says what is wrong, where, and how to
mend it, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class OnnxkitError(Exception):
    """A failure that the user can act on. Raise one of the subclasses."""

    code: ClassVar[int] = 1
    kind: ClassVar[str] = "bug"

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(OnnxkitError):
    """Exit code 2: the command line asks for something that does not exist or does not apply."""

    code = 2
    kind = "usage"


class InputError(OnnxkitError):
    """Exit code 3: a file, a sample or a model that cannot be used as it is."""

    code = 3
    kind = "input"


class EnvironmentProblem(OnnxkitError):
    """Exit code 4: a package, a device, a driver or the network is missing."""

    code = 4
    kind = "environment"


class ResourceError(OnnxkitError):
    """Exit code 5: the output cannot be written, or memory or disk is exhausted."""

    code = 5
    kind = "resource"


class UnsafeError(OnnxkitError):
    """Exit code 6: refused, because reading it could run foreign code or leave its directory."""

    code = 6
    kind = "unsafe"


class GateFailed(OnnxkitError):
    """Exit code 7: a check that the user relies on did not hold; nothing was published.

    Attributes:
        report: the stage's whole report, which `--json` prints beside the error.
    """

    code = 7
    kind = "gate"

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def suggestion(word: str, known: Iterable[str]) -> str:
    """What a message says after an unknown word: `did you mean …?` with its neighbours, or what there is."""
    import difflib

    names = list(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
