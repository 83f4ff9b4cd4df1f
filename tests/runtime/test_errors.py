"""Errors cross processes whole: those of a worker reach the loop that started it."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from gradwarden.policy import PolicyError, parse_policy
from gradwarden.runtime import errors

RAISED = [
    kind("what went wrong", help="what to do", **extra)
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RuntimeGovernanceError)
    for extra in [
        {
            "LedgerDamaged": {"index": 3, "offset": 99, "problem": "torn"},
            "NoteError": {"fault": "unknown_key"},
        }.get(name, {})
    ]
]


def the_faults_of_a_policy() -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse_policy("policy p version 1 language 1\nexamples { a : bol }\nmodel { top = rest }\n")
    return caught.value


@pytest.mark.parametrize("error", [*RAISED, the_faults_of_a_policy()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_is_the_same_on_the_other_side(error, carry):
    arrived = carry(error)
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.code, arrived.help) == (str(error), error.code, error.help)
    assert vars(arrived) == vars(error)
