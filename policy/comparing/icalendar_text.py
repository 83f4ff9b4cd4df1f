"""Writes all-day events as iCalendar text (RFC 5545)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from unicodedata import category

PRODUCT = "-//gradwarden//calendar//EN"

LINE = 75
"""Octets of a content line, its line end not counted (RFC 5545, 3.1)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One all-day event. `key` names it among the events of all calendars, the same each time."""

    key: str
    day: date
    summary: str
    description: str = ""


def calendar_text(name: str, events: Iterable[Event], stamp: datetime) -> str:
    """Return a calendar. `stamp` is when it was made, in UTC; the same input gives the same text."""
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", f"PRODID:{PRODUCT}", "CALSCALE:GREGORIAN"]
    lines.append(f"X-WR-CALNAME:{escaped(name)}")
    for event in events:
        lines += _event(event, stamp)
    lines.append("END:VCALENDAR")
    return "".join(f"{part}\r\n" for line in lines for part in folded(line))


def _event(event: Event, stamp: datetime) -> Iterator[str]:
    yield "BEGIN:VEVENT"
    yield f"UID:{sha256(event.key.encode()).hexdigest()[:32]}@gradwarden"
    yield f"DTSTAMP:{_basic(stamp.date())}T{stamp:%H%M%S}Z"
    yield f"DTSTART;VALUE=DATE:{_basic(event.day)}"  # with no DTEND it lasts that day (3.6.1)
    yield f"SUMMARY:{escaped(event.summary)}"
    if event.description:
        yield f"DESCRIPTION:{escaped(event.description)}"
    yield "TRANSP:TRANSPARENT"
    yield "END:VEVENT"


def _basic(day: date) -> str:
    return day.isoformat().replace("-", "")


def escaped(text: str) -> str:
    """Return text as a TEXT value (RFC 5545, 3.3.11). Control characters, not allowed, are spaces."""
    plain = "".join(" " if category(c) == "Cc" and c != "\n" else c for c in text.replace("\r\n", "\n"))
    for character in "\\;,":
        plain = plain.replace(character, f"\\{character}")
    return plain.replace("\n", "\\n")


def folded(line: str) -> Iterator[str]:
    """Yield a content line in pieces of at most `LINE` octets; all but the first begin with a space."""
    piece, room = "", LINE
    for character in line:
        size = len(character.encode("utf-8", "replace"))
        if size > room:
            yield piece
            piece, room = " ", LINE - 1
        piece += character
        room -= size
    yield piece
