"""Tamperings of every kind are told as docs/threats.md says; the whole campaign is `make soak`'s."""

from __future__ import annotations

import sys
from collections import Counter
from random import Random
from typing import Any

import pytest

from gradwarden.runtime.ledger import links as links_module
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.verification.example_audit import ExampleAudit
from tests.campaign import tampering
from tests.campaign.genuine import WRITERS, genuine
from tests.campaign.spellings import SPELLINGS
from tests.campaign.tampering import KINDS, Campaign, run


def told(campaign: Campaign) -> list[tuple[str, int, str]]:
    return [(finding["kind"], finding["seed"], finding["what"]) for finding in campaign.findings]


def test_a_short_campaign_finds_nothing_and_reaches_every_kind() -> None:
    campaign = run(4 * len(KINDS), 1, [*KINDS])
    assert told(campaign) == []
    assert campaign.tallies.keys() == KINDS.keys()
    found = sum((tally.statuses + tally.kept for tally in campaign.tallies.values()), Counter[str]())
    assert found.keys() == {"OK", "TAMPERED", "UNTRUSTED", "INCOMPLETE", "VIOLATION", "FORK", "ROLLBACK"}


def test_the_genuine_ledgers_are_the_same_every_time() -> None:
    first = {name: genuine(name).content for name in WRITERS}
    genuine.cache_clear()
    assert {name: genuine(name).content for name in WRITERS} == first


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_line_has_other_spellings(name: str) -> None:
    for number, line in enumerate(line for ledger in WRITERS for line in genuine(ledger).lines):
        other = SPELLINGS[name](Random(number), line)
        assert other != line
        assert b"\n" not in other


def _no_root(self: Links, *_arguments: Any) -> None:
    """A verifier that does not compare roots."""


def _any_exposures(self: ExampleAudit, *_arguments: Any) -> bool:
    return True


BROKEN = {
    "roots are not compared": (Links, "_mismatch", _no_root, "chained anew"),
    "exposures are not counted": (ExampleAudit, "_check_exposures", _any_exposures, "exposures changed"),
    "the link before is not blamed": (Links, "settle", lambda *_: None, "digits"),
    "lines may be spelled otherwise": (links_module, "decode", None, "spelled otherwise and signed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_verifier_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, broken, kind = BROKEN[name]
    if broken is None:
        import json

        def lenient(line: bytes) -> tuple[int, str, str, dict[str, Any]]:
            value = json.loads(line)
            return value["index"], value["kind"], value["prev"], value["body"]

        broken = lenient
    for ledger in WRITERS:
        genuine(ledger)
    monkeypatch.setattr(where, attribute, broken)
    if kind == "exposures changed":
        monkeypatch.setattr(ExampleAudit, "_exposed", _any_exposures)
    campaign = run(40, 0, [kind])
    assert campaign.findings


def test_a_verifier_that_fails_or_takes_long_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise RecursionError

    monkeypatch.setattr(tampering.Judge, "from_outside", fail)
    assert {what for _, _, what in told(run(5, 0, ["bits"]))} == {"RecursionError"}
    monkeypatch.undo()
    monkeypatch.setattr(tampering, "SLOW", 0.0)
    assert "it took" in told(run(1, 0, ["bits"]))[0][2]


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_hundred_thousand_tamperings_are_told() -> None:
    campaign = run(100_000, 1, sweep=True)
    print("\n".join(tampering.table(campaign)), file=sys.stderr)
    assert told(campaign) == []
