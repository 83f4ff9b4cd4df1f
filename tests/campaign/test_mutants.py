"""The campaign of mutants tells tests that notice a change from those that do not; its tables can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.campaign import mutants
from tests.campaign.mutation_table import ROOT, Mutant, TableError, named_tests, read_table, table_names
from tests.campaign.mutation_trial import Workshop, workshop

SHOWN = "tests/policy/test_frozen.py::test_values_are_equal_hashed_and_shown_as_dataclasses_are"


@pytest.fixture(scope="module")
def place() -> Iterator[Workshop]:
    with workshop(preloaded=("hypothesis.strategies",)) as found:
        yield found


def mutant(old: str, new: str, *tests: str) -> Mutant:
    return Mutant(("a row",), "something", "policy/frozen.py", old, new, tests)


def test_a_test_that_notices_is_told_from_one_that_does_not(place: Workshop) -> None:
    noticed = place.attempt(mutant("hash(read(self))", "id(self)", SHOWN))
    assert (noticed.fates, noticed.unnoticed) == ({SHOWN: "red"}, {})
    passed = place.attempt(mutant("Return a function that sets", "Make a function that sets", SHOWN))
    assert passed.unnoticed == {SHOWN: "green"}


def test_what_shows_nothing_counts_for_nothing(place: Workshop) -> None:
    """A change that is no program, a test that is not there, a text that is not in the file."""
    absent = "tests/policy/test_frozen.py::test_of_nothing"
    broken = place.attempt(mutant("return hash(read(self))", "return (", SHOWN, absent))
    assert set(broken.unnoticed) == {SHOWN, absent}
    assert set(broken.unnoticed.values()) <= {"error", "missing"}
    told = list(mutants.try_all([mutant("no such text", "")], place))
    assert [type(one) for one in told] == [TableError]


@pytest.mark.parametrize("name", table_names())
def test_what_a_table_replaces_is_there(name: str) -> None:
    for one in read_table(name):
        assert one.applied((ROOT / one.file).read_text("utf-8"))


@pytest.mark.parametrize("name", table_names())
def test_the_tests_that_a_table_names_are_there(name: str) -> None:
    for path, test in named_tests(read_table(name)):
        assert re.search(rf"^(?:    )?def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), test


def test_every_condition_threat_trap_and_requirement_has_a_mutant() -> None:
    known = {row for name in table_names() for one in read_table(name) for row in one.of}
    page = (ROOT / "docs" / "threats.md").read_text("utf-8")
    assert set(re.findall(r"^\| ([A-G]\d+) \|", page, re.MULTILINE)) <= known
    assert {f"trap {number}" for number in range(1, 17)} <= known
    page = (ROOT / "docs" / "requirements.md").read_text("utf-8")
    asked = set(re.findall(r"^\| (R\d+|[a-z][a-z ]+) \|", page, re.MULTILINE))
    assert asked - known == set()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_every_mutant_is_noticed() -> None:
    assert mutants.main(["--unmutated"]) == 0
