"""The artifacts that the end-to-end tests share: each is made once a session, by the command itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import COMMAND, DIGITS, LANGID, OLD_MANIFEST, Artifact, snapshot, succeed


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if not COMMAND.exists():
        pytest.fail(f"{COMMAND} is not installed: pip install -e . (make setup)")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's artifacts."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="session")
def langid(build: Path) -> Artifact:
    """The exported langid-bert."""
    return Artifact(build / "langid", succeed("export", LANGID, build / "langid", "--json"))


@pytest.fixture(scope="session")
def digits(build: Path) -> Artifact:
    """The exported digits-vit."""
    return Artifact(build / "digits", succeed("export", DIGITS, build / "digits", "--json"))


@pytest.fixture(scope="session")
def optimized(build: Path, langid: Artifact) -> Artifact:
    """The optimized langid-bert."""
    return Artifact(build / "optimized", succeed("optimize", langid.path, build / "optimized", "--json"))


@pytest.fixture(scope="session")
def dynamic(build: Path, optimized: Artifact) -> Artifact:
    """langid-bert with dynamic int8, judged on its evaluation set."""
    done = succeed(
        "quantize", optimized.path, build / "dynamic", "--eval", LANGID / "evaluation.jsonl", "--json"
    )
    return Artifact(build / "dynamic", done)


@pytest.fixture(scope="session")
def static(build: Path, optimized: Artifact) -> Artifact:
    """langid-bert with static int8, judged on its evaluation set."""
    done = succeed(
        "quantize", optimized.path, build / "static", "--scheme", "int8-static", "--calibration",
        LANGID / "calibration.jsonl", "--eval", LANGID / "evaluation.jsonl", "--json",
    )  # fmt: skip
    return Artifact(build / "static", done)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a model directory, so that a test may damage it."""

    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "copy" / source.name))

    return copy


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Path]:
    """A folder with an old output, `old/`, that must be the same after the test, and nothing beside it."""
    parent = tmp_path / "outputs"
    (parent / "old").mkdir(parents=True)
    (parent / "old" / "onnxkit.json").write_text(OLD_MANIFEST)  # without it onnxkit overwrites nothing
    before = snapshot(parent)
    yield parent
    assert snapshot(parent) == before
