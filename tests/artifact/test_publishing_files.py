"""One file as an output: whole or not at all, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxkit.artifact import check_file, publish_file
from onnxkit.errors import UsageError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with publish_file(out, overwrite=False) as staging:
        staging.write_text("new")
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"] and out.read_text() == "new"


def test_what_ends_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), publish_file(out, overwrite=True) as staging:
        staging.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"] and out.read_text() == "old"


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match=r"exists; pass --overwrite"):
        check_file(tmp_path / "there", overwrite=False)
    check_file(tmp_path / "there", overwrite=True)
    with pytest.raises(UsageError, match="is a directory"):
        check_file(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match=r"there is no directory .*/none"):
        check_file(tmp_path / "none" / "x", overwrite=False)
