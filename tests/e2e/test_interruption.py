"""Full disks, Ctrl-C, SIGTERM, closed pipes: the exit code, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.e2e.harness import COMMAND, LANGID, OLD_MANIFEST, Artifact, Done, environment, fails, run, snapshot
from tests.endless import endless_model
from tests.patience import WAIT_S, comes_true


def start(*words: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start the command in a session of its own, as a terminal's foreground job."""
    return subprocess.Popen(
        [COMMAND, *map(str, words)], env=environment(), stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], number: signal.Signals) -> Done:
    """Send a signal to the process and all its children, as a terminal does, and wait."""
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=WAIT_S)
    return Done(process.returncode, out, err)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while the process runs."""
    comes_true(lambda: condition() or process.poll() is not None)


STAGES = {
    "export": lambda model, out: ("export", LANGID, out),
    "optimize": lambda model, out: ("optimize", model, out),
    "quantize": lambda model, out: (
        "quantize", model, out, "--scheme", "int8-static", "--calibration", LANGID / "calibration.jsonl",
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_interrupted_leaves_nothing(
    stage: str, number: signal.Signals, langid: Artifact, untouched: Path
) -> None:
    process = start(*STAGES[stage](langid.path, untouched / "old"), "--overwrite")
    wait_until(lambda: len(list(untouched.iterdir())) > 1, process)  # it has begun to write
    done = finish(process, number)
    assert done.code == (130 if number == signal.SIGINT else 143), done.err
    assert len(done.errors) == 1, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("way", ["-m onnxkit", "script"])
def test_a_signal_while_python_imports_ends_it_without_a_word(
    way: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """`typer` stands for all that is imported before a command begins."""
    (tmp_path / "typer.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    project = Path(__file__).parents[2]
    module, _, function = tomllib.loads((project / "pyproject.toml").read_text())["project"]["scripts"][
        "onnxkit"
    ].partition(":")
    script = f"from {module} import {function}; {function}()"
    process = subprocess.Popen(
        [sys.executable, *(["-c", script] if way == "script" else way.split()), "--help"],
        env={**environment(), "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, project)))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    done = finish(process, number)
    assert (done.code, done.out, done.err) == (code, "", "")


def test_a_second_signal_does_not_interrupt_what_is_said_about_the_first() -> None:
    script = (
        "import os, signal, sys\n"
        "from onnxkit.cli import app, boundary\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "boundary._tell = stop\n"
        "sys.argv = ['onnxkit', 'no-such-command']\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_that_waits_for_its_input_is_interrupted(
    number: signal.Signals, code: int, langid: Artifact
) -> None:
    process = start("run", langid.path, "--file", "-", "--jsonl", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    process.stderr.readline()  # the settings: it is ready
    time.sleep(0.3)
    done = finish(process, number)
    assert (done.code, done.out) == (code, "")
    assert len(done.errors) == 1, done.err


def test_a_run_of_the_model_without_end_is_interrupted(tmp_path: Path) -> None:
    onnx.save(endless_model(), tmp_path / "endless.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros(1, np.float32))
    process = start("run", tmp_path / "endless.onnx", "--inputs", tmp_path / "x.npz")
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(0.3)  # for the run to begin
    done = finish(process, signal.SIGINT)
    assert (done.code, done.out) == (130, ""), done.err
    assert len(done.errors) == 1, done.err


def test_profile_is_interrupted_with_its_children(langid: Artifact) -> None:
    process = start("profile", langid.path, "--seconds", "60")
    assert process.stderr is not None
    process.stderr.readline()
    done = finish(process, signal.SIGINT)
    assert done.code == 130, done.err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_reader_that_stops_reading_is_no_failure(langid: Artifact) -> None:
    words = [COMMAND, "run", langid.path, "--file", LANGID / "evaluation.jsonl", "--jsonl"]
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith('{"index": 0')
    process.stdout.close()
    assert process.wait(WAIT_S) == 0
    assert "rror" not in process.stderr.read()
    process.stderr.close()


def test_a_full_device_behind_stdout(langid: Artifact) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, "run", langid.path, "hello"], env=environment(), stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: No space left on device"
    ]


# --- full disks -------------------------------------------------------------------------------------


def mounts() -> bool:
    """Whether this process may mount a small file system of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(stage: str, langid: Artifact, tmp_path: Path) -> None:
    if not mounts():
        pytest.skip("mounting a tmpfs needs root and unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [str(word) for word in STAGES[stage](langid.path, disk / "old")]
    script = (
        f'mount -t tmpfs -o size=300k none "{disk}" && mkdir "{disk}/old" '
        f"&& echo '{OLD_MANIFEST}' > '{disk}/old/onnxkit.json' "
        f'&& {{ "$@" --overwrite; echo "code $?" >&2; find "{disk}" -type f; }}'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", COMMAND, *words, "--quiet"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "code 5" in done.stderr, done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout.split() == [str(disk / "old" / "onnxkit.json")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_on_the_size_of_files(stage: str, langid: Artifact, untouched: Path) -> None:
    limit = 200_000
    words = STAGES[stage](langid.path, untouched / "old")
    done = run(
        *words, "--overwrite", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.code == 5, done.err
    assert len(done.errors) == 1, done.err


def test_a_folder_that_cannot_be_written(langid: Artifact, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(5, "quantize", langid.path, tmp_path / "locked" / "new", "--no-measure")


def test_leftovers_of_a_killed_run_are_reaped_by_the_next(langid: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "outputs"
    out.mkdir()
    process = start(*STAGES["quantize"](langid.path, out / "new"))
    wait_until(lambda: any(out.iterdir()), process)
    finish(process, signal.SIGKILL)
    done = run(*STAGES["quantize"](langid.path, out / "new"), "--no-measure", "--overwrite")
    assert done.code == 0, done.err
    assert {path.split("/")[0] for path in snapshot(out)} == {"new"}
