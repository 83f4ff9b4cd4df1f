"""Proposes the declaration of attributes from records that were seen, in one pass and bounded memory.

A column is what is known of one attribute so far: which kinds of values occurred, their ranges, and the
distinct texts while they are few. What is proposed takes in every value that was seen; ranges are padded to
round ones. Cells of CSV are texts that the declared type gives a meaning; each type is tried in turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any

from gradwarden.policy.checking.check_schema import MAX_NAME
from gradwarden.policy.checking.types import EXACT, MAX_PLACES, MAX_SET_VALUES, MAX_STRING, RESERVED
from gradwarden.policy.evaluation.values import Fault, encode_date, shown

MAX_LISTED = 32
"""The most distinct texts that are proposed as an enumeration."""

MAX_WORD = 64
"""The longest text, in characters, that is proposed as a value of an enumeration or a set."""

REPEATED = 3
"""How often a distinct text must occur, on average, for an enumeration to be proposed."""

NO_MEMBER = "none_seen"
"""The member of a set of which only empty ones were seen: a set has at least one."""

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
_CODE = re.compile(r"\s*[+-]?0[0-9]", re.ASCII)


@dataclass(slots=True)
class _Numbers:
    """Numbers seen: their range, and the decimal places that the longest needs (at most `MAX_PLACES`)."""

    lo: Decimal | None = None
    hi: Decimal | None = None
    places: int = 0

    def see(self, values: Iterable[int | float | Decimal]) -> None:
        exact = {Decimal(repr(value) if isinstance(value, float) else value) for value in set(values)}
        if exact:
            self.places = max(self.places, *map(_places, exact))
            self.lo = min(exact if self.lo is None else (self.lo, *exact))
            self.hi = max(exact if self.hi is None else (self.hi, *exact))

    @property
    def ends(self) -> tuple[Decimal, Decimal]:
        """The least and the greatest; there must be some."""
        assert self.lo is not None
        assert self.hi is not None
        return self.lo, self.hi

    @property
    def fit(self) -> bool:
        """Whether all are computed exactly."""
        return all(abs(end) <= EXACT for end in self.ends)


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int), "only finite numbers are seen"
    return min(MAX_PLACES, max(0, -exponent))


@dataclass(slots=True)
class Column:
    """What was seen of one attribute.

    cells: whether values are cells of CSV. strange: kinds of values that no type holds, in words.
    """

    name: str
    cells: bool = False
    records: int = 0
    present: int = 0
    bools: int = 0
    dates: int = 0
    texts: int = 0
    lists: int = 0
    numbers: int = 0
    strange: dict[str, None] = field(default_factory=dict)
    _range: _Numbers = field(default_factory=_Numbers)
    _days: list[date] = field(default_factory=list)
    _words: dict[str, None] | None = field(default_factory=dict)
    _members: dict[str, None] | None = field(default_factory=dict)
    _longest: int = 0
    _undated: bool = False
    _unflagged: bool = False
    _uncounted: bool = False
    _separated: bool = False

    def see(self, values: Sequence[Any]) -> None:
        """Note the values of a piece; None is an absent one."""
        kinds: dict[type, list[Any]] = {}
        for value in values:
            kinds.setdefault(type(value), []).append(value)
        self.records += len(values)
        self.present += len(values) - len(kinds.pop(type(None), []))
        for kind, found in kinds.items():
            self._see(kind, found)

    def _see(self, kind: type, found: list[Any]) -> None:
        if kind is str:
            self.texts += len(found)
            self._see_texts(set(found))
        elif kind is bool:
            self.bools += len(found)
        elif issubclass(kind, int | float | Decimal):
            self.numbers += len(found)
            finite = [value for value in found if isinstance(value, int) or math.isfinite(value)]
            if len(finite) < len(found):
                self.strange["a number that is not finite"] = None
            self._range.see(finite)
        elif issubclass(kind, date) and not issubclass(kind, datetime):
            self.dates += len(found)
            self._see_days(found)
        elif kind is list:
            self.lists += len(found)
            self._see_members(member for value in found for member in value)
        else:
            self.strange[_kind(kind)] = None

    def _see_texts(self, found: set[str]) -> None:
        self._longest = max(self._longest, *map(len, found))
        if self._words is not None:
            self._words |= dict.fromkeys(found)
            if len(self._words) > MAX_LISTED or any(not listable(word) for word in found):
                self._words = None
        if not self._undated:
            self._see_dates(found)
        if self.cells:
            self._see_cells(found)

    def _see_dates(self, found: set[str]) -> None:
        try:
            for text in found:
                encode_date(text)
        except Fault:
            self._undated = True
        else:
            self._see_days(map(date.fromisoformat, found))

    def _see_cells(self, found: set[str]) -> None:
        self._unflagged |= any(cell.lower() not in ("true", "false") for cell in found)
        if not self._uncounted:
            numbers = [read_number(cell) for cell in found]
            self._uncounted = None in numbers
            self._range.see(number for number in numbers if number is not None)
        self._separated |= any(";" in cell for cell in found)
        self._see_members(part.strip() for cell in found for part in cell.split(";") if part.strip())

    def _see_days(self, found: Iterable[date]) -> None:
        every = [*self._days, *found]
        self._days = [min(every), max(every)]

    def _see_members(self, members: Iterable[Any]) -> None:
        if self._members is None:
            return
        for member in members:
            if not isinstance(member, str):
                if not self.cells:
                    self.strange["a list that holds more than texts"] = None
                continue
            self._members[member] = None
            if len(self._members) > MAX_SET_VALUES or not listable(member):
                self._members = None
                return

    # --- proposals ------------------------------------------------------------------------------------------

    def fault(self) -> str | None:
        """Return why no type holds the values, None where one does."""
        kinds = {
            "true and false": self.bools,
            "numbers": self.numbers,
            "texts": self.texts,
            "dates": self.dates,
            "lists": self.lists,
        }
        seen = [name for name, count in kinds.items() if count] + list(self.strange)
        if len(seen) > 1 or self.strange:
            return f"it holds {' and '.join(seen)}"
        if self.lists and self._members is None:
            return f"its lists hold more than {MAX_SET_VALUES} distinct texts, or texts that cannot be listed"
        if self.numbers and not self._range.fit:
            return f"it holds numbers beyond {EXACT:,}, which are not computed exactly"
        if self._longest > MAX_STRING:
            return f"it holds texts of {self._longest:,} characters, and metadata have at most {MAX_STRING:,}"
        return None

    def declaration(self) -> str:
        """Return the line of an `examples` block, with what was seen. The column must have no fault."""
        kind, seen = self._type()
        # An empty cell is an absent value, but the empty set where a set is required.
        absent = self.present < self.records and not (self.cells and kind.startswith("set of"))
        missing = f"; absent in {self.records - self.present:,} of {self.records:,}" if absent else ""
        return f"{self.name} : {kind}{' optional' if absent else ''}  # {seen}{missing}"

    def _type(self) -> tuple[str, str]:
        if not self.present:
            return "string", "no value seen"
        if self.bools or (self.cells and not self._unflagged):
            return "bool", "true or false"
        if self.numbers or (self.cells and not self._uncounted and self._range.fit):
            return self._number()
        if self.dates or (self.texts and not self._undated):
            return "date", f"seen {self._days[0]} to {self._days[1]}"
        if self.lists or (self.cells and self._looks_like_sets()):
            members = sorted(self._members or (NO_MEMBER,))
            return f"set of {', '.join(map(word, members))}", f"{len(self._members or ()):,} members seen"
        if self._words is not None and self.texts >= REPEATED * len(self._words):
            return f"one of {', '.join(map(word, sorted(self._words)))}", f"{len(self._words):,} values seen"
        return "string", f"texts of at most {self._longest:,} characters seen"

    def _looks_like_sets(self) -> bool:
        """Whether cells are lists: some cell has several members, and all have few, which come again."""
        few = self._members is not None and self.texts >= REPEATED * len(self._members)
        return self._separated and few

    def _number(self) -> tuple[str, str]:
        least, greatest = self._range.ends
        lo, hi = round_down(least), round_up(greatest)
        places = self._range.places
        while places and max(abs(lo), abs(hi)) * 10**places > EXACT:
            places -= 1
        seen = f"seen {_text(least)} to {_text(greatest)}"
        if not self._range.places:
            return f"integer {lo}..{hi}", seen
        return f"number {lo}..{hi} places {places}", seen


def _text(value: Decimal) -> str:
    return str(int(value)) if value == int(value) else f"{float(value):.12g}"


def round_up(value: Decimal | int) -> int:
    """Return the least of 0, 1, 2, 5, 10, 20, 50, … that is no less than a value; of a negative one, 0."""
    if value <= 0:
        return 0
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= value:
                return min(digit * scale, EXACT)
        scale *= 10


def round_down(value: Decimal | int) -> int:
    return -round_up(-value)


def read_number(cell: str) -> int | float | None:
    """Return the number in a cell; None where it holds none, or a code with leading zeros such as `007`."""
    if not _NUMBER.fullmatch(cell) or _CODE.match(cell):
        return None
    try:
        return int(cell)
    except ValueError:
        number = float(cell)
        return number if math.isfinite(number) else None


def listable(text: str) -> bool:
    """Return whether a text can be written as a value of an enumeration or set."""
    return 0 < len(text) <= MAX_WORD and text.isprintable()


def word(text: str) -> str:
    """Return a value as a policy writes it: in quotes, unless it is a name and no word of the language."""
    if _PLAIN.fullmatch(text) and text not in _words_of_the_language():
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@cache
def _words_of_the_language() -> frozenset[str]:
    grammar = (files("gradwarden.grammars") / "policy.lark").read_text("utf-8")
    return RESERVED | frozenset(re.findall(r'"([a-z]+)"', grammar))


def name_fault(name: str) -> str | None:
    """Return why a name cannot be declared, None where it can."""
    if name in RESERVED:
        return "is a word of the language"
    if not _PLAIN.fullmatch(name):
        return "is not made of lower-case letters, digits and `_`"
    return f"has more than {MAX_NAME} characters" if len(name) > MAX_NAME else None


def suggested_name(name: str, taken: Iterable[str]) -> str:
    """Return a name that can be declared, and is not taken, from one that cannot."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # camelCase
    plain = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_") or "attribute"
    plain = f"_{plain}"[:MAX_NAME] if plain[0].isdigit() else plain[:MAX_NAME]
    known = {*taken, "id"} | RESERVED
    return next(candidate for candidate in _numbered(plain) if candidate not in known)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        ending = f"_{number}"
        yield name[: MAX_NAME - len(ending)] + ending
        number += 1


def _kind(kind: type) -> str:
    if issubclass(kind, datetime):
        return "instants (which day they are depends on the place)"
    return "objects" if kind is dict else f"values such as {shown(kind.__name__)}"
