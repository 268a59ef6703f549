"""Runs the installed command as a user would, and says what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "onnxkit"
SAMPLES = ROOT / "sample_models"
LANGID, DIGITS = SAMPLES / "langid-bert", SAMPLES / "digits-vit"
TIMEOUT_S = 300
OLD_MANIFEST = '{"schema": 1, "task": "raw", "components": {}, "files": {}, "verified": null, "history": []}'


@dataclass(frozen=True)
class Done:
    """A finished run of the command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that say why it failed."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a user: no ONNXKIT_ variables, one thread a library."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ONNXKIT_")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def run(
    *words: str | Path, env: Mapping[str, str] | None = None, stdin: str | None = None, **more: Any
) -> Done:
    """Run the command to its end."""
    done = subprocess.run(
        [COMMAND, *map(str, words)],
        env=environment(**(env or {})),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
        **more,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def succeed(*words: str | Path, **more: Any) -> Done:
    """Run the command, which must end well."""
    done = run(*words, **more)
    assert done.code == 0, done.err
    return done


def fails(code: int, *words: str | Path, says: Sequence[str] = (), **more: Any) -> Done:
    """Run the command, which must fail with `code` and one line that says each of `says`."""
    done = run(*words, **more)
    assert done.code == code, (done.code, done.err, done.out[-500:])
    assert len(done.errors) == 1, done.err
    assert "Traceback" not in done.err
    for part in says:
        assert part in done.errors[0], done.errors[0]
    return done


Snapshot = dict[str, bytes | None]


def snapshot(folder: Path) -> Snapshot:
    """Return every file below `folder` with its content, hidden ones too; folders map to None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Artifact:
    """A model directory and what the command said when it made it."""

    path: Path
    done: Done
