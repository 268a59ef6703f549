"""What is generated of the documentation is what the code says now."""

from __future__ import annotations

import pytest

from docs import generate


def test_the_generated_documentation_is_current() -> None:
    for path, text in generate.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: run `make docs`"


def test_no_schema_is_left_over() -> None:
    assert set((generate.HERE / "schemas").iterdir()) == set(generate.files()) - {generate.HERE / "cli.md"}


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 130, 143])
def test_every_exit_code_is_documented(code: int) -> None:
    table = (generate.HERE / "json.md").read_text(encoding="utf-8")
    assert f"| {code} |" in table or f" {code} |" in table or f"| {code}," in table
