"""Influence is read from the ledger: only committed steps count, and every example must be known."""

from base64 import b64encode

import pytest

from examples.code_licences.evidence import gather
from gradwarden.runtime.ledger.entries import Entry

A, B = b"a" * 32, b"b" * 32
GROUPS = {A: "MIT", B: "GPL-3.0-only"}
ADMIT = {"verdict": "admit", "weights": [1_000_000, 500_000], "rules": ["open"]}
REFUSE = {"verdict": "refuse", "weights": [0, 0], "rules": ["copyleft"]}


def entries(*bodies):
    return [Entry(index, kind, body, b"") for index, (kind, body) in enumerate(bodies)]


OPENED = ("opened", {"bands": ["shallow", "deep"], "policy": {"digest": "00"}})
DECISIONS = ("decisions", {"decisions": [ADMIT, REFUSE]})
COMMITTED = ("committed", {"step": 0, "privacy": {}})


def step(commitments, decision, number=0):
    body = {
        "step": number,
        "commitments": b64encode(b"".join(commitments)).decode(),
        "decision": decision,
    }
    return ("step", body)


def test_weights_and_verdicts_are_summed_by_group():
    evidence = gather(
        entries(OPENED, DECISIONS, step([A, B, A], [0, 1, 0]), COMMITTED),
        GROUPS,
    )
    assert evidence.committed == 1
    mit = evidence.groups["MIT"]
    assert (mit.verdicts["admit"], mit.weights["shallow"], mit.weights["deep"]) == (2, 2_000_000, 1_000_000)
    assert evidence.groups["GPL-3.0-only"].rules == {"copyleft": 1}
    assert evidence.share("MIT", "deep") == 1.0
    assert evidence.share("GPL-3.0-only", "deep") == 0.0


def test_a_refused_step_and_one_that_never_ended_count_for_nothing():
    evidence = gather(
        entries(OPENED, DECISIONS, step([A], [0]), ("refused", {"step": 0}), step([A], [0], 1)),
        GROUPS,
    )
    assert (evidence.committed, evidence.refused, evidence.groups) == (0, 1, {})


def test_numbers_of_decisions_begin_anew_under_another_policy():
    changed = ("policy_changed", {"policy": {"digest": "01"}, "step": 1})
    refusals = ("decisions", {"decisions": [REFUSE]})
    evidence = gather(
        entries(
            OPENED, DECISIONS, step([A], [0]), COMMITTED, changed, refusals, step([A], [0], 1), COMMITTED
        ),
        GROUPS,
    )
    assert evidence.groups["MIT"].verdicts == {"admit": 1, "refuse": 1}


def test_commitments_in_entries_of_their_own_are_joined():
    def part(number, commitment):
        return ("examples", {"step": 0, "part": number, "commitments": b64encode(commitment).decode()})

    evidence = gather(
        entries(
            OPENED,
            DECISIONS,
            part(0, A),  # of a step that a crash cut off
            ("resumed", {}),
            DECISIONS,
            part(0, B),
            part(1, A),
            step([], [1, 0]),
            COMMITTED,
        ),
        GROUPS,
    )
    assert evidence.groups["GPL-3.0-only"].verdicts == {"refuse": 1}
    assert evidence.groups["MIT"].verdicts == {"admit": 1}


def test_an_example_of_other_data_is_not_passed_over():
    with pytest.raises(KeyError):
        gather(entries(OPENED, DECISIONS, step([b"c" * 32], [0]), COMMITTED), GROUPS)
