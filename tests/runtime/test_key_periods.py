"""How long each key signed, and whether a schedule of rotation was kept."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from gradwarden.policy.context import EPOCH_DAY
from gradwarden.runtime.ledger.authority import Change
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.key_changes import Rotation
from gradwarden.runtime.ledger.note import Checkpoint
from gradwarden.runtime.verification.key_periods import Calendar, Schedule, key_periods, overdue
from gradwarden.runtime.verification.verify import verify_ledger
from tests.campaign.genuine import NEXT, RUN, genuine

BEGAN = (date(2026, 1, 31) - EPOCH_DAY).days


def handed_over(days: int | None) -> list[dict[str, object]]:
    """100 entries by one key, until some days after the beginning, then 20 by another, for 9 days."""
    calendar = Calendar()
    calendar.accept(Entry(0, "opened", {"at": "2026-01-31T12:00:00+00:00"}, b""))
    step = None if days is None else BEGAN + days
    calendar.accept(Entry(50, "step", {"today": step}, b""))
    calendar.accept(Entry(100, "rotated", {}, b""))
    calendar.accept(Entry(119, "step", {"today": None if step is None else step + 9}, b""))
    change = Rotation(Checkpoint("o", 100, bytes(32)), RUN.public, NEXT.public)
    return key_periods([Change(100, change)], 120, calendar)


def test_periods_are_counted_in_entries_and_days() -> None:
    assert handed_over(40) == [
        {"key": "run", "from": 0, "entries": 100, "days": 40},
        {"key": "next", "from": 100, "entries": 20, "days": 9},
    ]
    assert [one["days"] for one in handed_over(None)] == [0, 0]
    assert key_periods([], 7, None) == [{"key": "", "from": 0, "entries": 7, "days": None}]


@pytest.mark.parametrize(
    ("schedule", "late"),
    [
        (Schedule(days=40), []),
        (Schedule(days=39), [99]),
        (Schedule(days=8), [99, 119]),
        (Schedule(entries=100), []),
        (Schedule(entries=99), [99]),
        (Schedule(entries=19), [99, 119]),
        (Schedule(), []),
    ],
)
def test_a_key_that_signed_too_long_is_named(schedule: Schedule, late: list[int]) -> None:
    found = list(overdue(handed_over(40), schedule))
    assert [one.index for one in found] == late
    assert {one.severity for one in found} <= {"warning"}


def test_a_ledger_tells_how_long_each_key_signed(tmp_path: Path) -> None:
    base = genuine("changed")
    path = tmp_path / "run.ledger"
    path.write_bytes(base.content)
    periods = verify_ledger(path, base.keys).facts["key_periods"]
    rotated = next(at for at, line in enumerate(base.lines) if b'"kind":"rotated"' in line)
    assert [(one["key"], one["from"], one["days"]) for one in periods] == [
        ("run", 0, 0),
        ("next", rotated, 0),
    ]
    assert sum(one["entries"] for one in periods) == len(base.lines)
    assert json.dumps(periods)
