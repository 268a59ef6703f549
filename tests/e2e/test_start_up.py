"""What commands import, which is what `--help` takes its time for, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import COMMAND, LANGID, Artifact, environment, succeed

COMMANDS = ("export", "optimize", "quantize", "run", "profile", "verify", "inspect", "doctor")
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy")
RECORDER = """
import atexit, os, sys
atexit.register(lambda: os.write(int(os.environ["MODULES_TO"]), " ".join(sys.modules).encode()))
from onnxkit.cli.app import main
main()
"""


def modules_of(*words: str | Path) -> set[str]:
    """Run a command and return the top-level names of the modules that it imported."""
    reader, writer = os.pipe()
    with open(reader) as stream:  # noqa: PTH123 - a descriptor, not a path
        done = subprocess.run(
            [sys.executable, "-c", RECORDER, *map(str, words)],
            env=environment(MODULES_TO=str(writer)), pass_fds=[writer], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        os.close(writer)
        names = stream.read().split()
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    assert modules_of(*words, "--help") & {*HEAVY, "rich", "pydantic"} == set()


@pytest.mark.parametrize("command", ["run", "profile", "verify"])
def test_text_models_run_without_the_makers_of_models(command: str, langid: Artifact) -> None:
    more = {"run": ["Guten Morgen"], "profile": ["--runs", "2"]}
    imported = modules_of(command, langid.path, *more.get(command, []))
    assert imported & {"torch", "transformers", "onnx_ir", "onnxscript", "optimum", "pydantic"} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_fits_the_terminal(command: str) -> None:
    done = succeed(command, "--help", env={"COLUMNS": "80"})
    text, _, examples = done.out.partition("Examples:")
    assert f"onnxkit {command}" in examples
    assert max(map(len, text.splitlines())) <= 80


def test_version_and_bare_command() -> None:
    assert succeed("--version").out.startswith("onnxkit ")
    assert "Commands:" in succeed().out


def test_shell_completion_knows_commands_options_and_choices() -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_ONNXKIT_COMPLETE": "complete_bash"}
        return succeed(env=env).out.split()

    assert complete("onnxkit qu") == ["quantize"]
    assert complete("onnxkit quantize --calibration-") == ["--calibration-cache"]
    assert complete("onnxkit quantize a b --scheme int8-s") == ["int8-static"]
    # The option asks which shell started it.
    script = ["bash", "-c", f"'{COMMAND}' --show-completion; exit $?"]
    assert "onnxkit" in subprocess.run(script, capture_output=True, text=True, check=True).stdout


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxkit", "inspect", str(LANGID), "--json"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "input"
