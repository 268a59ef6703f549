"""What is generated of the documentation is what the code says now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate


def test_the_generated_documentation_is_current() -> None:
    for path, text in generate.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: run `make docs`"


def test_no_schema_is_left_over() -> None:
    assert set((generate.HERE / "schemas").iterdir()) == set(generate.files()) - {generate.HERE / "cli.md"}


@pytest.mark.parametrize("page", [generate.HERE / "json.md", generate.HERE.parent / "README.md"])
def test_the_exit_codes_are_documented(page: Path) -> None:
    rows = re.findall(r"^\| (\d[\d, ]*) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == {*range(8), 130, 143}
