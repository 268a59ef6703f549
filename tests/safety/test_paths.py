from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import check_directory, contained, regular_file


@pytest.mark.parametrize(
    "name", ["model.onnx", "onnx/model.onnx", "a..b.bin", "with space", "1_Pooling/config.json"]
)
def test_names_inside_are_joined(tmp_path: Path, name: str) -> None:
    assert contained(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "..\\x",
        "C:\\x",
        "C:x",
        "\\\\host\\x",
        "a\0b",
        "//x",
    ],
)
def test_names_that_leave_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeError):
        contained(tmp_path, name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab./\\\0:~ \n%"), max_size=12) | st.text(max_size=12))
def test_what_is_accepted_lies_inside(tmp_path: Path, name: str) -> None:
    try:
        target = contained(tmp_path, name)
    except UnsafeError:
        return
    except UnicodeEncodeError:
        pytest.fail("a lone surrogate reached the file system")
    resolved = Path(os.path.normpath(target))
    assert resolved.is_relative_to(tmp_path) and resolved != tmp_path


def test_link_out_is_refused_and_link_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "real").write_text("x")
    (root / "inside").symlink_to("real")
    (root / "out").symlink_to("../secret")
    assert contained(root, "inside") == root / "inside"
    with pytest.raises(UnsafeError, match="link that leads out"):
        contained(root, "out")


def test_hub_cache_layout_is_accepted(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    check_directory(snapshot)
    assert contained(snapshot, "config.json").read_text() == "{}"
    (snapshot / "evil").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeError, match="evil"):
        check_directory(snapshot)


def test_another_repository_of_the_cache_is_outside(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--a" / "snapshots" / "abc"
    other = tmp_path / "models--org--b" / "blobs"
    snapshot.mkdir(parents=True)
    other.mkdir(parents=True)
    (other / "1").write_text("x")
    (snapshot / "x").symlink_to(other / "1")
    with pytest.raises(UnsafeError):
        check_directory(snapshot)


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.bin")
    with pytest.raises(UnsafeError, match="pipe"):
        check_directory(tmp_path)
    with pytest.raises(InputError, match="no regular file"):
        regular_file(tmp_path / "weights.bin")


def test_a_loop_of_links_is_an_answer_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OnnxkitError):
        contained(tmp_path, "a/x")
        regular_file(tmp_path / "a")


def test_missing_and_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        regular_file(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a directory"):
        regular_file(tmp_path)
    with pytest.raises(InputError, match="is no directory"):
        check_directory(tmp_path / "nothing")
