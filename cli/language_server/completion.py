"""What can be written at a place: keywords that the grammar allows there, and names that fit.

Keywords come from the parser, names from the declarations of the policy, those of its last text that parsed
included. What stands before the cursor in its declaration tells which names fit, so that the text around it
need not parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from gradwarden.cli.language_server.declarations import Declared
from gradwarden.policy.checking.clauses import ALLOWED
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.frozen import frozen
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.expected import Expected, declaration_start, expected_after
from gradwarden.policy.syntax.lexemes import Lexeme, lexemes
from gradwarden.policy.syntax.names import Kind, Symbol

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_IMPORT = re.compile(r'[ \t]*import[ \t]*"([^"\n]*)')
_NAME = re.compile(r"[a-z_][a-z0-9_]*")

_BEGINNINGS = {
    kind: frozenset("hold" if word == "hold out" else word for word in words)
    for kind, words in ALLOWED.items()
}
"""The keywords that clauses begin with, by the kind of rule that may have them; `at most` is one."""
_CLAUSES = frozenset().union(*_BEGINNINGS.values())
_GOING_ON = frozenset({"drift", "noise", "spent"})
"""Words that begin a clause, and that a word follows which may begin one elsewhere."""
_VALUED = frozenset({"==", "!=", "contains"})
MAX_WORD = 200
"""How far back the start of a word is looked for."""

_DURATIONS = ("days", "weeks")

_TERMS: tuple[tuple[Kind, str], ...] = (
    ("attribute", "attributes"),
    ("signal", "signals"),
    ("condition", "conditions"),
    ("entropy band", "entropy_bands"),
)


@frozen
class Proposal:
    """A word to offer: a declared symbol, a clock, or a keyword or unit (`symbol` and `clock` unset).

    `insert` is what is written, where it is more than the label.
    """

    label: str
    symbol: Symbol | None = None
    clock: bool = False
    insert: str = ""

    @property
    def text(self) -> str:
        return self.insert or self.label


@frozen
class Place:
    """Where a word is being written: its start, and the lexemes of its declaration before it."""

    start: int
    before: Sequence[Lexeme]

    def last(self, back: int = 1) -> str:
        """Return the text of the last lexeme, or of one further back; empty where there is none."""
        return self.before[-back].text if len(self.before) >= back else ""

    @property
    def kind(self) -> str:
        """What is being declared: `depth`, `examples`, …; empty between declarations."""
        opened = [index for index, x in enumerate(self.before) if x.text == "{" and x.kind == "sign"]
        closed = [index for index, x in enumerate(self.before) if x.text == "}" and x.kind == "sign"]
        if opened and closed and closed[-1] > opened[-1]:
            return ""
        words = (x.text for x in self.before if x.kind == "word" and x.text not in ("advisory", "hard"))
        return next(words, "")


def import_prefix(text: str, offset: int) -> str | None:
    """Return the part of an imported path that is written before an offset; None outside of one."""
    match = _IMPORT.fullmatch(text, text.rfind("\n", 0, offset) + 1, offset)
    return match[1] if match else None


def import_end(text: str, start: int) -> int:
    """Return where an imported path that starts at an offset ends."""
    end = re.compile(r'[^"\n]*').match(text, start)
    return end.end() if end else start


def word_around(text: str, offset: int) -> tuple[int, int]:
    """Return where the word at an offset starts and ends."""
    before = _WORD.search(text, max(0, offset - MAX_WORD), offset)
    after = re.compile(r"[A-Za-z0-9_]*").match(text, offset)
    return before.start() if before else offset, after.end() if after else offset


def place_at(text: str, offset: int) -> Place | None:
    """Return the place of an offset; None inside a comment or a string."""
    word = _WORD.search(text, max(0, offset - MAX_WORD), offset)
    start = word.start() if word else offset
    begin = declaration_start(text, start)
    before = lexemes(text[begin:start])
    if before and before[-1].kind == "comment" and "\n" not in text[begin + before[-1].start : start]:
        return None
    if any(x.kind == "sign" and x.text == '"' for x in before):
        return None
    return Place(start, [x for x in before if x.kind != "comment"])


def proposals(text: str, offset: int, declared: Declared) -> list[Proposal]:
    """Return what can be written at an offset, the most fitting first."""
    place = place_at(text, offset)
    if place is None:
        return []
    expected = expected_after(text[: place.start])
    found = {proposal.text: proposal for proposal in _names(place, expected, declared)}
    for word in sorted(_keywords(place, expected)):
        found.setdefault(word, Proposal(word))
    return list(found.values())


def _keywords(place: Place, expected: Expected) -> Iterator[str]:
    """Yield the keywords that fit, without the clauses that a rule of this kind cannot have."""
    allowed = _BEGINNINGS.get(place.kind)  # type: ignore[call-overload]  # any word may stand there
    for word in expected.keywords:
        misplaced = word in _CLAUSES and allowed is not None and word not in allowed
        goes_on = (word == "in" and "or" in expected.keywords) or place.last() in _GOING_ON
        if not word[0].isalpha() or (misplaced and not goes_on):
            continue
        if place.last() in _VALUED and word not in ("true", "false"):
            continue
        yield word


def _names(place: Place, expected: Expected, declared: Declared) -> Iterator[Proposal]:
    """Yield the names that fit a place."""
    last = place.last()
    clause = _clause(place)
    match clause, last:
        case (("reach" | "cap" | "within"), ("reach" | "cap" | "within" | ",")):
            yield from _symbols("band", declared.bands)
        case "scale", ("scale" | ","):
            yield from _symbols("band", declared.bands)
        case "scale", "by":
            yield from _symbols("signal", declared.signals)
        case "route", "to":
            yield from _symbols("band", [QUARANTINE])
        case (("until" | "from"), ("until" | "from")) if place.kind == "retain":
            yield from _symbols("attribute", _of_type(declared, "date"))
        case "rehearse", "rehearse":
            granting = [n for n, x in declared.rules.items() if isinstance(x, s.Rule) and x.kind == "depth"]
            yield from _symbols("rule", granting)
        case "unit", "unit":
            yield from _symbols("attribute", _of_type(declared, "string"))
        case "in", "in" if place.kind == "curriculum":
            yield from _symbols("phase", declared.phases)
        case "waive", "waive":
            yield from _symbols(
                "rule", [name for name, rule in declared.rules.items() if _can_be_waived(rule)]
            )
        case "starvation", "starvation":
            yield from _symbols("band", declared.bands)
        case "gradient", _ if expected.name and last != "gradient":
            yield from _symbols("band", declared.bands)
        case "never", "reach":
            yield from _symbols("band", declared.bands)
        case "at most", "in":
            yield from _symbols("band", declared.bands)
        case (("examples" | "signals"), _):
            yield from _units(place, declared)
        case ("condition", _):
            yield from _in_condition(place, expected, declared)
        case _:
            pass


def _clause(place: Place) -> str:
    """Return the clause that a place is in, `condition` where an expression is being written."""
    kind = place.kind
    if kind in ("waive", "starvation", "examples", "signals", "gradient") and "{" not in _texts(place):
        return kind
    if kind in ("examples", "signals", "gradient"):
        return kind
    if kind in ("let", "band"):
        return "condition" if "=" in _texts(place) else ""
    clauses = [*_clauses_of(place)]
    if clauses:
        return "condition" if clauses[-1] == "when" else clauses[-1]
    return "condition" if kind == "assert" and "{" in _texts(place) else ""


def _clauses_of(place: Place) -> Iterator[str]:
    """Yield the clauses of a rule or an assertion that begin before a place."""
    inside = False
    for before, lexeme in zip([None, *place.before], place.before, strict=False):
        inside = inside or lexeme.text == "{"
        if not inside or lexeme.kind != "word":
            continue
        if lexeme.text == "most":
            yield "at most"
        elif lexeme.text == "never" and place.kind == "assert":
            yield "never"
        elif place.kind == "assert" and lexeme.text not in ("when", "because"):
            continue
        elif lexeme.text in _CLAUSES and not _is_operator(before, lexeme, place):
            yield lexeme.text


def _is_operator(before: Lexeme | None, lexeme: Lexeme, place: Place) -> bool:
    """Whether a word that can begin a clause is part of one here: `x in [ … ]`, `by frustration from 1`."""
    if lexeme.text == "in":
        return place.kind != "curriculum" or (
            before is not None and before.kind == "word" and before.text == "not"
        )
    return lexeme.text == "from" and place.kind == "modulate"


def _texts(place: Place) -> list[str]:
    return [lexeme.text for lexeme in place.before]


def _can_be_waived(rule: s.Rule | s.Assertion) -> bool:
    return isinstance(rule, s.Rule) and rule.kind in ("suppress", "retain", "memorization", "curriculum")


# --- conditions ---------------------------------------------------------------------------------------------


def _in_condition(place: Place, expected: Expected, declared: Declared) -> Iterator[Proposal]:
    """Yield the names that fit a place in an expression."""
    last, subject = place.last(), _subject(place)
    if subject is not None:
        yield from _values(subject, declared)
        return
    if last == "has":
        optional = (name for name, field in declared.attributes.items() if field.optional)
        yield from _symbols("attribute", optional)
    elif last == "band" and place.kind != "band":
        yield from _symbols("entropy band", declared.entropy_bands)
    elif place.before and place.before[-1].kind == "number":
        yield from _units(place, declared)
    elif expected.name or not expected.keywords:
        for kind, group in _TERMS:
            yield from _symbols(kind, getattr(declared, group))
        yield from (Proposal(clock, clock=True) for clock in ("step", "epoch", "today", "exposures", "phase"))


def _subject(place: Place) -> str | None:
    """Return the attribute, or `phase`, whose values are to be written here; None for other places."""
    last = place.last()
    if last in _VALUED:
        return _name_at(place, 2)
    if last not in ("[", ","):
        return None
    back = next((n for n in range(1, len(place.before) + 1) if place.last(n) in ("[", "]", "{")), 0)
    if not back or place.last(back) != "[":
        return None
    if place.last(back + 1) in ("any", "all") and place.last(back + 2) == "has":
        return _name_at(place, back + 3)
    if place.last(back + 1) == "in":
        return _name_at(place, back + 3 if place.last(back + 2) == "not" else back + 2)
    return None


def _name_at(place: Place, back: int) -> str | None:
    name = place.last(back)
    return name if _NAME.fullmatch(name) else None


def _values(subject: str, declared: Declared) -> Iterator[Proposal]:
    if subject == "phase":
        yield from _symbols("phase", declared.phases)
    for word in declared.values(subject):
        yield Proposal(word.text, Symbol("value", word.text, subject), insert=word.span.text)


def _units(place: Place, declared: Declared) -> Iterator[Proposal]:
    """Yield units after a number: of the attribute that is compared, of other attributes, of durations."""
    if not (place.before and place.before[-1].kind == "number"):
        return
    units: dict[str, None] = {}
    compared = {lexeme.text for lexeme in place.before[-6:] if lexeme.kind == "word"}
    fields = sorted(declared.attributes.items(), key=lambda x: x[0] not in compared)
    for _, field in fields:
        if isinstance(field.type, s.RangeType) and field.type.unit:
            units.setdefault(field.type.unit)
    if _clause(place) == "condition":
        units.update(dict.fromkeys(_DURATIONS))
    yield from map(Proposal, units)


def _symbols(kind: Kind, names: Iterable[str]) -> Iterator[Proposal]:
    return (Proposal(name, Symbol(kind, name)) for name in names)


def _of_type(declared: Declared, type_: str) -> list[str]:
    return [name for name, field in declared.attributes.items() if field.type.kind == type_]
