"""With the data set and the secret: recorded metadata are held to the true ones, and to other policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.verification.metadata_audit import MetadataAudit
from gradwarden.runtime.verification.opened_data import OpenedData
from gradwarden.runtime.verification.what_if import Difference, what_if

POLICY = """policy p version 1 language 1
examples { kind : one of a, b, c  size : number 0..100  erase_on : date optional }
signals { fatigue : number 0..1 default 0 }
model { shallow = top 50%  deep = rest }
depth a { when kind == a  reach all }
depth b { when kind == b and size >= 10  reach shallow, deep at 0.5 }
retain dated { when has erase_on  until erase_on }
retain twice { when kind == b  at most 3 exposures }
memorization tired { when fatigue > 0.5  cap deep at 0 }
"""
RECORDS: dict[str, dict[str, Any]] = {
    "one": {"kind": "a", "size": 1},
    "two": {"kind": "b", "size": 10, "erase_on": "2030-01-01"},
    "three": {"kind": "b", "size": 9},
    "four": {"kind": "c", "size": 100},
    "five": {"kind": "nonsense", "size": 3},
}


@pytest.fixture
def run(lab: Any) -> Any:
    """A run of eight steps over all records, of which one is refused."""
    with lab.governor(lab.program(POLICY)) as governor:
        for number in range(8):
            signals = {"fatigue": [0.9, 0.1, 2.0, 0.2, 0.2]} if number == 2 else {}
            lab.step(
                governor, list(RECORDS.items()), signals=signals, scale=float("nan") if number == 4 else 1.0
            )
    assert lab.verify().status == "OK"
    return lab


def data(lab: Any, records: dict[str, dict[str, Any]] = RECORDS, name: str = "run") -> OpenedData:
    """The records as two pieces of a manifest."""
    names = {key for record in records.values() for key in record}
    pieces = []
    for part in (list(records)[:2], list(records)[2:]):
        pieces.append((part, {key: [records[one].get(key) for one in part] for key in names}))
    return OpenedData(Committer.load(Path(f"{lab.path(name)}.secret")), pieces)


def found(lab: Any, records: dict[str, dict[str, Any]] = RECORDS, name: str = "run") -> list[str]:
    audit = MetadataAudit(lab.path(name), data(lab, records))
    return [f"{finding.code}: {finding.message}" for finding in audit.findings()]


def test_true_metadata_fit_what_was_recorded(run: Any) -> None:
    audit = MetadataAudit(run.path(), data(run))
    assert list(audit.findings()) == []
    assert (audit.steps, audit.examples) == (8, 40)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("one", {"kind": "b"}, "example 0, `one`: its metadata are of another class"),
        ("two", {"size": 9}, "example 1, `two`: its metadata are of another class"),
        (
            "two",
            {"erase_on": "2031-01-01"},
            "example 1, `two`: its `erase_on` is another",
        ),
        (
            "five",
            {"kind": "a"},
            "example 4, `five`: its metadata are of another class",
        ),
    ],
)
def test_other_metadata_are_named(run: Any, name: str, change: dict[str, Any], told: str) -> None:
    [message] = found(run, {**RECORDS, name: {**RECORDS[name], **change}})
    assert message.startswith(f"wrong_metadata: step 0, {told}")


def test_an_example_that_is_not_of_the_data_is_named(run: Any) -> None:
    [message] = found(run, {name: record for name, record in RECORDS.items() if name != "four"})
    assert message == "unknown_example: step 0, example 3: the data set has no such example"


def test_the_secret_of_another_run_opens_nothing(run: Any) -> None:
    other = OpenedData(Committer(b"x" * 32), [(list(RECORDS), {"kind": ["a"] * 5, "size": [1] * 5})])
    assert [f.code for f in MetadataAudit(run.path(), other).findings()] == ["wrong_secret"]
    with pytest.raises(ExampleError, match="not the one of this run"):
        what_if(run.path(), other, run.program(POLICY))


@pytest.mark.parametrize("names", [["a", None], ["a", "a"]])
def test_a_data_set_without_distinct_ids_is_refused(names: list[Any]) -> None:
    with pytest.raises(ExampleError):
        OpenedData(Committer(b"x" * 32), [(names, {"kind": ["a", "a"]})])


def other(lab: Any, change: Callable[[str], str]) -> Difference:
    return what_if(lab.path(), data(lab), lab.program(change(POLICY)))


def test_the_same_policy_would_have_decided_the_same(run: Any) -> None:
    difference = other(run, lambda text: text.replace("version 1", "version 2"))
    assert (difference.steps, difference.uses, difference.steps_changed, difference.first) == (8, 40, 0, None)
    assert all(before == after for before, after in difference.bands.values())


def test_a_wider_policy_would_have_taught_more(run: Any) -> None:
    difference = other(run, lambda text: text.replace("size >= 10", "size >= 9"))
    # `three` joins in the three committed steps that its rule of retention leaves, and in the refused one.
    assert (difference.first, difference.admitted_only_before) == (0, 0)
    assert difference.admitted_only_after == 3
    assert difference.bands["shallow"][1] - difference.bands["shallow"][0] == 3_000_000


def test_exposures_are_those_that_the_other_policy_would_have_led_to(run: Any) -> None:
    difference = other(run, lambda text: text.replace("at most 3 exposures", "at most 1 exposures"))
    assert (difference.first, difference.admitted_only_before, difference.admitted_only_after) == (1, 2, 0)
    # Of the rules that had a part in these decisions, those that grant stop nobody.
    assert difference.refusing["twice"] >= 2
    assert set(difference.refusing) == {"twice", "tired"}


def test_a_signal_that_was_not_recorded_cannot_be_made_up(run: Any) -> None:
    with pytest.raises(ExampleError, match="the signal `haste`, which the run did not record"):
        other(
            run,
            lambda text: text.replace("default 0 }", "default 0  haste : number 0..1 default 0 }").replace(
                "fatigue > 0.5", "haste > 0.5"
            ),
        )


def test_a_resumed_run_is_read_to_its_end(lab: Any) -> None:
    program = lab.program(POLICY)
    governor = lab.governor(program)
    lab.step(governor, list(RECORDS.items()))
    governor.__exit__(RuntimeError, RuntimeError("stop"), None)
    with lab.governor(program) as governor:
        lab.step(governor, list(RECORDS.items())[::-1])
        governor.change_policy(lab.program(POLICY.replace("size >= 10", "size >= 9")))
        lab.step(governor, list(RECORDS.items()))
    audit = MetadataAudit(lab.path(), data(lab))
    assert (list(audit.findings()), audit.steps) == ([], 3)
    difference = what_if(lab.path(), data(lab), program)
    assert (difference.steps_changed, difference.first) == (1, 2)


@given(st.lists(st.sampled_from(list(RECORDS)), min_size=1, max_size=6, unique=True))
@settings(max_examples=20)
def test_commitments_find_their_rows(names: list[str]) -> None:
    committer = Committer(b"k" * 32)
    opened = OpenedData(committer, [(names[:2], {}), (names[2:], {})])
    assert [opened.row(committer.commit(name)) for name in names] == list(range(len(names)))
    assert opened.row(committer.commit("nobody")) is None
