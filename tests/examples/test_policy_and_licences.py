"""The policy's groups of licences are those of the licence database, for every licence it can name."""

from datetime import date

import pytest

from examples.code_licences.corpus import LICENCES
from examples.code_licences.licences import family_of
from examples.code_licences.settings import POLICY
from gradwarden.policy import Context, compile_policy, load_policy

EXPECTED = {
    "permissive": ("admit", {"shallow": 1.0, "middle": 1.0, "deep": 1.0}),
    "weak copyleft": ("limit", {"shallow": 1.0, "middle": 0.0, "deep": 0.0}),
    "strong copyleft": ("refuse", {"shallow": 0.0, "middle": 0.0, "deep": 0.0}),
}

FILE = {
    "package": "sample",
    "expression": "as declared",
    "sha256": "00",
    "lines": 100,
    "bytes": 3000,
    "entropy": 4.5,
    "vendored": False,
    "generated": False,
    "near_duplicate": False,
    "held_out": False,
}


@pytest.fixture(scope="module")
def program():
    return compile_policy(load_policy(POLICY))


def test_the_policy_names_the_licences_that_the_corpus_records(program):
    (licence,) = (spec for spec in program.attributes if spec.name == "license")
    assert set(licence.values) == {*LICENCES, "other", "unknown"}


@pytest.mark.parametrize("licence", LICENCES)
def test_a_licence_reaches_as_deep_as_its_family_allows(program, licence):
    decision = program.decide({**FILE, "license": licence}, Context(at=date(2026, 1, 1)))
    assert (decision.verdict, decision.weights) == EXPECTED[family_of(licence)]
