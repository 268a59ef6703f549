"""Nobody is called and nothing is written but the output: an empty HOME, no network, system calls traced."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import COMMAND, LANGID, Artifact, environment, snapshot


def works(words: Sequence[str]) -> bool:
    """Whether a program is here and may do what it is asked to, tried on `true`."""
    return shutil.which(words[0]) is not None and (
        subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    )


UNSHARE = next((words for words in (["unshare", "-n"], ["unshare", "-rn"]) if works(words)), None)
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg"]

COMMANDS = {
    "export": ["export", LANGID, "OUT"],
    "optimize": ["optimize", "MODEL", "OUT"],
    "quantize": [
        "quantize", "MODEL", "OUT", "--scheme", "int8-static", "--calibration", LANGID / "calibration.jsonl",
    ],
    "run": ["run", "MODEL", "Guten Morgen"],
    "profile": ["profile", "MODEL", "--runs", "3"],
    "verify": ["verify", "MODEL"],
    "inspect": ["inspect", "MODEL"],
    "doctor": ["doctor"],
    "help": ["--help"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_connects_to_nobody_and_writes_its_output_only(
    command: str, langid: Artifact, tmp_path: Path
) -> None:
    if UNSHARE is None:
        pytest.skip("unshare -n does not work here")
    home, work, temporary = (tmp_path / name for name in ("home", "work", "tmp"))
    for folder in (home, work, temporary):
        folder.mkdir()
    places = {"MODEL": str(langid.path), "OUT": str(work / "out")}
    words = [places.get(str(word), str(word)) for word in COMMANDS[command]]
    log = tmp_path / "calls"
    tracer = [*STRACE, "-o", str(log)] if works([*STRACE, "-o", os.devnull]) else []
    env = {key: value for key, value in environment().items() if not key.startswith(("XDG_", "HF_"))}
    env |= {"HOME": str(home), "TMPDIR": str(temporary)}
    before = snapshot(langid.path)
    done = subprocess.run(
        [*UNSHARE, *tracer, str(COMMAND), *words],
        env=env,
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert snapshot(home) == snapshot(temporary) == {}
    assert {path.split("/")[0] for path in snapshot(work)} <= {"out"}
    assert snapshot(langid.path) == before
    if not tracer:
        pytest.skip("strace does not work here: connections were not traced")
    calls = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    assert calls == []
