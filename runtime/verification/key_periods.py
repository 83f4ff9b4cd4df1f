"""How long each key has signed a ledger: in entries, and in days as far as the ledger knows any.

A schedule of rotation is the verifier's: so many entries, or so many days, that one key may sign. Entries are
counted; days are those of the opening and of steps that read the calendar, which are the trainer's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from gradwarden.policy.context import EPOCH_DAY
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.authority import Change
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.key_changes import Rotation
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.turns import Turns


@frozen
class Schedule:
    """How long one key may sign: entries or days; None: as long as it likes."""

    entries: int | None = None
    days: int | None = None


class Calendar:
    """The days that a ledger tells of. A day is counted from 1970-01-01."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None
        self.at: dict[int, int | None] = {}
        """The last day before each entry that hands the ledger over, by index."""

    def accept(self, part: Part) -> None:
        """Take the next part of a ledger."""
        if isinstance(part, Turns):
            self._pass(max((day for day in set(part.todays) if day is not None), default=None))
        elif part.kind == "step":
            self._pass(part.body["today"])
        elif part.kind == "opened":
            self._pass(_day(part.body["at"]))
        elif part.kind == "rotated":
            self.at[part.index] = self.last

    def _pass(self, day: int | None) -> None:
        if day is None:
            return
        if self.first is None:
            self.first = day
        self.last = day if self.last is None else max(self.last, day)


def key_periods(changes: Sequence[Change], size: int, calendar: Calendar | None) -> list[dict[str, Any]]:
    """Return which key signed from which entry on, and for how long. calendar: None where no day is known."""
    days = calendar or Calendar()
    periods: list[dict[str, Any]] = []
    begin, since = 0, days.first
    hands = [(one.index, one.change) for one in changes if isinstance(one.change, Rotation)]
    for index, change in hands:
        periods.append(_period(change.old.name, begin, index, since, days.at.get(index)))
        begin, since = index, days.at.get(index)
    name = hands[-1][1].new.name if hands else ""
    return [*periods, _period(name, begin, size, since, days.last)]


def _period(key: str, begin: int, end: int, since: int | None, until: int | None) -> dict[str, Any]:
    days = None if since is None or until is None else until - since
    return {"key": key, "from": begin, "entries": end - begin, "days": days}


def overdue(periods: Sequence[Mapping[str, Any]], schedule: Schedule) -> Iterator[Finding]:
    """Yield a warning for each key that signed longer than a schedule allows: `rotation_overdue`."""
    for period in periods:
        who = f"`{period['key']}`" if period["key"] else "the key of the ledger"
        over = []
        if schedule.entries is not None and period["entries"] > schedule.entries:
            over.append(f"{period['entries']:,} entries, of {schedule.entries:,}")
        if schedule.days is not None and (period["days"] or 0) > schedule.days:
            over.append(f"{period['days']:,} days, of {schedule.days:,}")
        if over:
            message = f"{who} signed from entry {period['from']:,} on for {' and '.join(over)} allowed"
            yield Finding("rotation_overdue", period["from"] + period["entries"] - 1, message, "warning")


def _day(text: str) -> int | None:
    try:
        return (date.fromisoformat(text[:10]) - EPOCH_DAY).days
    except ValueError:
        return None
