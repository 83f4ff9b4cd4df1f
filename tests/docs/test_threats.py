"""Each row of the table of threats names tests that exist, and the findings it names are findings."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "threats.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([A-Z]\d+) \| (.*) \|$", PAGE, re.MULTILINE)


def test_the_rows_are_numbered_in_order() -> None:
    names = [name for name, _ in ROWS]
    assert [name[0] for name in names] == sorted(name[0] for name in names)
    for letter in "ABCDEFG":
        numbers = [int(name[1:]) for name in names if name[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_each_row_names_tests_that_exist(name: str, row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
    assert named
    for path, test in named:
        assert re.search(rf"^(?:    )?def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), test


@pytest.mark.parametrize("code", sorted(set(re.findall(r"`([a-z]+_[a-z_]+)`", PAGE)) - {"signed_size"}))
def test_the_findings_that_it_names_are_in_the_tables_of_the_ledger(code: str) -> None:
    assert f"`{code}`" in (DOCS / "ledger.md").read_text("utf-8")
