"""The examples of a run: one row for one id, whatever the batches that name it look like."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import Context, compile_policy, parse_policy
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.records.history import History
from gradwarden.runtime.roster import Roster

PROGRAM = compile_policy(
    parse_policy(
        """policy small version 1 language 1
        examples { kind : one of a, b  score : number 0..1 optional  tags : set of x, y optional }
        model { all_of_it = rest }
        depth a { when kind == a  reach all }
        """
    )
)
SECRET = bytes(range(32))


@pytest.fixture
def roster() -> Roster:
    return Roster(PROGRAM, Committer(SECRET))


def verdicts(roster: Roster, examples: Any) -> list[str]:
    admitted = roster.admit(roster.rows(examples), Context())
    return [admitted.decision(place).verdict for place in range(len(admitted))]


def test_the_three_ways_of_naming_an_example_mean_the_same(roster):
    first = roster.rows([{"id": "x", "kind": "a"}])
    assert roster.rows([("x", {"kind": "a"})]).tolist() == first.tolist()
    assert roster.rows(["x"]).tolist() == first.tolist()
    assert verdicts(roster, ["x", ["y", MappingProxyType({"kind": "b"})]]) == ["admit", "refuse"]


def test_rows_follow_the_order_of_the_batch_and_of_first_appearance(roster):
    roster.add([("p", {"kind": "a"}), ("q", {"kind": "b"})])
    assert roster.rows(["q", ("r", {"kind": "a"}), "p", "q"]).tolist() == [1, 2, 0, 1]
    assert roster.known() == {"p": 0, "q": 1, "r": 2}


def test_an_id_that_is_new_may_come_twice_in_one_batch(roster):
    batch = [("x", {"kind": "a"}), ("y", {"kind": "b"}), ("x", {"kind": "a"})]
    assert roster.rows(batch).tolist() == [0, 1, 0]
    assert verdicts(roster, batch) == ["admit", "refuse", "admit"]


def test_an_id_that_comes_twice_in_one_batch_with_two_faces_is_refused(roster):
    with pytest.raises(ExampleError, match="`x` comes with other metadata"):
        roster.rows([("x", {"kind": "a"}), ("x", {"kind": "b"})])


@pytest.mark.parametrize(
    "bad", [[("new", {"kind": "b"}), ("old", {"kind": "b"})], [("new", {"kind": "b"}), "never seen"]]
)
def test_a_refused_batch_does_not_mix_up_the_rows_of_later_ones(roster, bad):
    roster.add([("old", {"kind": "a"})])
    with pytest.raises(ExampleError):
        roster.rows(bad)
    rows = roster.rows([("other", {"kind": "a"}), ("new", {"kind": "b"}), "old"])
    assert len(set(rows.tolist())) == 3
    assert verdicts(roster, ["other", "new", "old"]) == ["admit", "refuse", "admit"]
    committer = Committer(SECRET)
    wanted = b"".join(committer.commit(name) for name in ("other", "new", "old"))
    assert roster.commitments(rows) == wanted


def test_an_unknown_id_is_named(roster):
    with pytest.raises(ExampleError, match="`nobody` is not known"):
        roster.rows(["nobody"])


@pytest.mark.parametrize("changed", [{"kind": "b"}, {"kind": "a", "score": 0.5}, {}, {"kind": ["a"]}])
def test_metadata_that_changed_are_refused(roster, changed):
    roster.add([("x", {"kind": "a"})])
    with pytest.raises(ExampleError, match="`x` comes with other metadata"):
        roster.rows([("x", changed)])


@pytest.mark.parametrize("value", [float("nan"), np.float64("nan"), np.zeros(3), [float("nan")]])
def test_invalid_metadata_that_are_the_same_again_stay_invalid(roster, value):
    def fresh() -> tuple[str, Mapping[str, Any]]:
        kind = type(value)
        return "x", {"kind": "a", "score": kind(str(value)) if kind in (float, np.float64) else value}

    assert verdicts(roster, [fresh()]) == ["invalid"]
    assert verdicts(roster, [fresh()]) == ["invalid"]


def test_what_the_caller_does_to_its_metadata_afterwards_is_noticed(roster):
    metadata: dict[str, Any] = {"kind": "b", "tags": ["x"]}
    roster.add([("x", metadata)])
    metadata["tags"].append("y")
    with pytest.raises(ExampleError):
        roster.rows([("x", metadata)])
    metadata["tags"].pop()
    metadata["kind"] = "a"
    with pytest.raises(ExampleError):
        roster.rows([("x", metadata)])
    roster.change_program(PROGRAM)
    assert verdicts(roster, ["x"]) == ["refuse"]


def test_an_empty_batch_has_no_rows(roster):
    rows = roster.rows([])
    assert (rows.dtype, rows.shape) == (np.int64, (0,))
    assert roster.exposures(rows).tolist() == []


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=8))
def test_exposures_count_earlier_steps_and_earlier_places_of_the_batch(steps):
    roster = Roster(PROGRAM, Committer(SECRET))
    seen: list[int] = []
    for step in steps:
        rows = roster.rows([(str(name), {"kind": "a"}) for name in step])
        wanted = [seen.count(name) + step[:place].count(name) for place, name in enumerate(step)]
        assert roster.exposures(rows).tolist() == wanted
        roster.expose(rows)
        seen += step


def test_exposures_of_a_ledger_are_found_again_by_commitment_in_any_order():
    committer = Committer(SECRET)
    history = History()
    history.exposures = {committer.commit("x"): 3, committer.commit("z"): 1}
    roster = Roster(PROGRAM, committer)
    roster.resume(history)
    rows = roster.rows([(name, {"kind": "a"}) for name in ("y", "z", "x", "x")])
    assert roster.exposures(rows).tolist() == [0, 1, 3, 4]


def test_classes_are_returned_once_and_anew_after_a_change_of_program(roster):
    roster.add([("x", {"kind": "a"}), ("y", {"kind": "b"}), ("bad", {"kind": "q"})])
    first = roster.new_classes()
    assert [body["id"] for body in first] == [0, 1, 2]
    assert first[2]["problems"] == [["kind", "unknown_value"]]
    assert roster.new_classes() == []
    roster.change_program(PROGRAM)
    assert roster.new_classes() == first


def test_the_digest_of_a_data_set_depends_on_content_and_secret_not_on_order():
    def digest(secret: bytes, *examples: tuple[str, dict[str, Any]]) -> str:
        roster = Roster(PROGRAM, Committer(secret))
        roster.add(examples)
        return str(roster.digest()["digest"])

    x, y = ("x", {"kind": "a", "tags": {"x", "y"}}), ("y", {"kind": "b"})
    assert digest(SECRET, x, y) == digest(SECRET, y, x)
    others = {
        digest(SECRET, x),
        digest(SECRET, x, ("y", {"kind": "a"})),
        digest(SECRET, x, ("z", {"kind": "b"})),
        digest(bytes(32), x, y),
    }
    assert len(others | {digest(SECRET, x, y)}) == 5


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), 2**60, np.int64(3), np.float32("nan"), np.zeros(2), object(), b"x",
        {1, "a"}, "\ud800",
    ],
)  # fmt: skip
def test_no_metadata_break_the_digest(roster, value):
    roster.add([("x", {"kind": value, 3: value}), ("\ud800", {"kind": "a"})])
    assert len(roster.digest()["digest"]) == 64
