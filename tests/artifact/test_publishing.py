from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxkit.artifact import check_apart, publish, rename
from onnxkit.artifact import leftovers as staging_names
from onnxkit.errors import ResourceError, UnsafeError, UsageError
from tests.patience import WAIT_S


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _write(out: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with publish(out, overwrite=overwrite) as staging:
        (staging / "folder").mkdir()
        (staging / "folder" / "file").write_text(text)


def test_the_output_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with publish(str(out), overwrite=False) as staging:
        assert staging.parent == out.parent and not out.exists()
        (staging / "file").write_text("x")
    assert _names(out.parent) == ["out"] and (out / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), publish(tmp_path / "a" / "b" / "out", overwrite=False) as staging:
        (staging / "file").write_text("half")
        raise error
    assert _names(tmp_path) == []


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with publish(tmp_path / "out", overwrite=False) as staging:
            (staging / "sidecar").touch(mode=0o600)
            (staging / "script").touch(mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


def test_an_existing_output_needs_overwrite(tmp_path: Path, ours: Path) -> None:
    before = (ours / "model.onnx").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        _write(ours)
    assert (ours / "model.onnx").read_bytes() == before
    _write(ours, overwrite=True)
    assert _names(ours) == ["folder"] and _names(tmp_path) == ["ours"]


def test_overwrite_failing_leaves_the_old_output(tmp_path: Path, ours: Path) -> None:
    before = _names(ours)
    with pytest.raises(RuntimeError), publish(ours, overwrite=True):
        raise RuntimeError
    assert _names(ours) == before and _names(tmp_path) == ["ours"]


def test_overwrite_never_deletes_what_onnxkit_did_not_write(tmp_path: Path, ours: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="did not write"):
        _write(home, overwrite=True)
    (ours / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        _write(ours, overwrite=True)
    shutil.copy(ours / "config.json", home / "onnxkit.json")
    with pytest.raises(UsageError, match="damaged"):
        _write(home, overwrite=True)
    assert (home / "thesis.txt").exists() and (ours / "thesis.txt").exists()


def test_empty_directories_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        _write(tmp_path / "empty")
    _write(tmp_path / "empty", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no directory"):
        _write(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError):
        _write(tmp_path / "file" / "below")
    (tmp_path / "real").mkdir()
    for target in ("real", "nowhere"):
        link = tmp_path / f"link-{target}"
        link.symlink_to(target)
        with pytest.raises(UnsafeError, match="symlink"):
            _write(link, overwrite=True)
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError), publish(out, overwrite=False) as staging:
        (staging / "file").write_text("late")
        out.mkdir()
        (out / "file").write_text("first")
    assert (out / "file").read_text() == "first" and _names(tmp_path) == ["out"]


def test_readers_see_the_old_or_the_new_never_neither(tmp_path: Path, ours: Path) -> None:
    inode = ours.stat().st_ino
    with publish(ours, overwrite=True) as staging:
        (staging / "file").write_text("x")
        assert ours.stat().st_ino == inode
    assert ours.stat().st_ino != inode


def test_without_renameat2_the_result_is_the_same(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "_function", lambda: None)
    _write(tmp_path / "new")
    _write(ours, overwrite=True)
    assert _names(tmp_path) == ["new", "ours"] and _names(ours) == ["folder"]


def test_without_renameat2_a_failure_puts_the_old_one_back(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "_function", lambda: None)
    plain = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if "-old-" not in str(target) and "-old-" not in str(self):
            raise OSError(errno.EIO, "broken disk")
        return plain(self, target)

    before = _names(ours)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="broken disk"):
        _write(ours, overwrite=True)
    assert _names(ours) == before and _names(tmp_path) == ["ours"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_errors_are_resource_errors(tmp_path: Path, code: int) -> None:
    with pytest.raises(ResourceError, match="out"), publish(tmp_path / "out", overwrite=False) as staging:
        raise OSError(code, os.strerror(code), str(staging / "model.onnx"))
    assert _names(tmp_path) == []


def test_other_errors_of_the_block_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publish(tmp_path / "out", overwrite=False):
        raise PermissionError(errno.EACCES, "denied", "/somewhere/else/input")
    with pytest.raises(FileNotFoundError), publish(tmp_path / "out", overwrite=False) as staging:
        (staging / "gone").read_text()


def test_space_is_checked_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="MB free"),
        publish(tmp_path / "out", overwrite=False, need_bytes=2**60),
    ):
        pytest.fail("the block must not start")
    assert _names(tmp_path) == []


def test_a_need_is_rounded_up_and_what_is_free_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the message says that 0 MB are free and about 0 MB needed."""
    usage = SimpleNamespace(free=400_000)
    monkeypatch.setattr("onnxkit.artifact.publishing.shutil.disk_usage", lambda _: usage)
    with (
        pytest.raises(ResourceError, match="has 0 MB free, the output needs about 1 MB"),
        publish(tmp_path / "out", overwrite=False, need_bytes=450_000),
    ):
        pytest.fail("the block must not start")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ResourceError, match="cannot write"):
            _write(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


def test_places_that_take_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match="name another place"):
        _write(Path("/proc/onnxkit-test/out"))
    with pytest.raises(UsageError):
        _write(tmp_path / ("n" * 300) / "out")

    def denied(target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(staging_names, "create", denied)
    with pytest.raises(ResourceError, match="Permission denied"):
        _write(tmp_path / "a" / "out")
    assert _names(tmp_path) == []


def test_ctrl_c_right_after_the_staging_directory_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def interrupted(path: Path, *rest: Any, **given: Any) -> None:
        make(path, *rest, **given)
        if ".onnxkit-" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "a" / "out")
    assert _names(tmp_path) == []


_CHILD = """
import sys, time
from pathlib import Path
from onnxkit.artifact import publish
with publish(Path(sys.argv[1]), overwrite=False) as staging:
    (staging / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


def _child(out: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def test_what_a_killed_run_left_is_reaped_and_a_live_one_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    live, killed = _child(out), _child(out)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(WAIT_S)
        assert len(_names(tmp_path)) == 2
        _write(out)
        assert [name for name in _names(tmp_path) if f"-{live.pid}-" in name] and len(_names(tmp_path)) == 2
    finally:
        live.send_signal(signal.SIGINT)
        live.communicate(timeout=WAIT_S)
    assert _names(tmp_path) == ["out"]


def test_age_decides_where_the_owner_cannot_be_asked(tmp_path: Path) -> None:
    recent, old = (tmp_path / f".out.onnxkit-{'0' * 8}-1-{mark * 8}" for mark in "ab")
    for path in (recent, old):
        path.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    other = tmp_path / ".out.onnxkit-notes"
    other.mkdir()
    _write(tmp_path / "out")
    assert _names(tmp_path) == sorted([recent.name, other.name, "out"])


def test_an_output_set_aside_by_a_killed_run_comes_back(tmp_path: Path, ours: Path) -> None:
    """Where there is no exchange, a run can die between its two renames."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    aside = staging_names.aside_name(ours)
    aside = aside.with_name(aside.name.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-"))
    ours.rename(aside)
    staging_names.reap(ours)
    assert _names(tmp_path) == ["ours"]


def test_input_and_output_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.onnx").touch()
    (tmp_path / "link").symlink_to("a")
    check_apart(tmp_path / "a", tmp_path / "b")
    check_apart(tmp_path / "a" / "model.onnx", tmp_path / "b")
    check_apart(tmp_path / "a", tmp_path / "ab")
    for source, out in (("a", "a"), ("a", "a/b"), ("a/b", "a"), ("link", "a"), ("a/model.onnx", "a")):
        with pytest.raises(UsageError, match="in place"):
            check_apart(tmp_path / source, tmp_path / out)
