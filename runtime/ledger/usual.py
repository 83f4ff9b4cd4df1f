"""Recognises the usual lines of a ledger, steps and their outcomes, by one regular expression each.

Nearly all lines are of these kinds, and `shapes` takes longer over one than the parser does. The type of
each field shows in the text, too: what stands between the brackets of a list and is made of digits and commas
is, in JSON, a list of whole numbers from 0 on. An expression settles that for a whole line; what remains is
whether the lists of a step fit each other. A line that is not recognised may be an entry all the same.

For `turns`, which reads many lines at once, the expressions also take a line apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen

_NATURAL = rb"[0-9]+"
_NATURALS = rb"\[[0-9,]*\]"
_TEXT = rb'"[ -!#-\[\]-~]*"'
_TEXTS = rb"\[(?:%b,?)*\]" % _TEXT
_BASE64 = rb'"[A-Za-z0-9+/]*={0,2}"'
_FRAME = rb'\{"body":%b,"index":%b,"kind":"%b","prev":"[0-9a-f]{64}"\}'


def _fields(fields: Mapping[str, bytes]) -> bytes:
    return rb"\{%b\}" % b",".join(b'"%b":%b' % (name.encode(), form) for name, form in sorted(fields.items()))


def _named(form: bytes) -> bytes:
    return rb"\{(?:%b:%b,?)*\}" % (_TEXT, form)


_STEP = {
    "step": _NATURAL,
    "epoch": _NATURAL,
    "today": rb"(?:null|-?[0-9]+)",
    "count": _NATURAL,
    "commitments": _BASE64,
    "classes": _NATURALS,
    "exposures": rb"(?:null|%b)" % _NATURALS,
    "signals": _named(rb"\[[-0-9,]*\]"),
    "slots": _named(rb"\[[-0-9,nul]*\]"),
    "spent": _TEXTS,
    "decision": _NATURALS,
    "verdict": _TEXT,
}

_COMMITTED = {
    "step": _NATURAL,
    "active": _TEXTS,
    "norms": _named(rb"(?:null|%b)" % _TEXT),
    "loss": rb"(?:null|%b)" % _TEXT,
    "privacy": _named(rb'\{"epsilon":%b,"steps":%b\}' % (_TEXT, _NATURAL)),
}

_COMMITTED_BY_RANK = _COMMITTED | {
    "active": rb'%b,"batch":%b' % (_COMMITTED["active"], _NATURAL),
    "privacy": rb'%b(?:,"shares":\[%b,%b\])?' % (_COMMITTED["privacy"], _NATURAL, _NATURAL),
}
"""In the ledgers of a job's ranks two fields come next after others, the second only beside the first."""

_COMMITTED_BODY = rb"(?:%b|%b)" % (_fields(_COMMITTED), _fields(_COMMITTED_BY_RANK))

_REFUSED = {
    "step": _NATURAL,
    "gate": rb'"(?:admission|gradient|commit)"',
    "reason": _TEXT,
    "detail": _TEXT,
}


class Expression:
    """An expression that is compiled when it is first used: that takes long, and the chain needs none."""

    def __init__(self, pattern: bytes) -> None:
        self._pattern = pattern

    @cached_property
    def match(self) -> Callable[[bytes], re.Match[bytes] | None]:
        """What matches a whole text."""
        return re.compile(self._pattern).fullmatch


_STEP_LINE = Expression(_FRAME % (_fields(_STEP), _NATURAL, b"step"))
_COMMITTED_LINE = Expression(_FRAME % (_COMMITTED_BODY, _NATURAL, b"committed"))
_STEP_BODY = Expression(_fields(_STEP))
_COMMITTED_BODIES = Expression(_COMMITTED_BODY)


def _is_usual_step(line: bytes, body: Any) -> bool:
    return _STEP_LINE.match(line) is not None and _adds_up(body)


def _is_usual_outcome(line: bytes, body: Any) -> bool:
    return _COMMITTED_LINE.match(line) is not None


def is_usual_body(kind: str, text: bytes, body: Any) -> bool:
    """Whether the canonical text of a body is recognised: as an entry of the kind has it.

    body: what the text was made of; a tuple is as good as a list there.
    """
    if kind == "step":
        # INVARIANT: what is a mapping of Python, and has this text, has all fields.
        recognised = type(body) is dict and _STEP_BODY.match(text) is not None
        return recognised and type(body["signals"]) is type(body["slots"]) is dict and _adds_up(body)
    return kind == "committed" and _COMMITTED_BODIES.match(text) is not None


def _adds_up(body: Any) -> bool:
    """Whether a step, whose text is recognised, has as many of everything as it says."""
    count, exposures, packed = body["count"], body["exposures"], body["commitments"]
    if not (
        len(body["classes"]) == count == len(body["decision"])
        and (exposures is None or len(exposures) == count)
        and (not packed or (len(packed) % 4 == 0 and len(packed.rstrip("=")) == (256 * count + 5) // 6))
    ):
        return False
    for columns in (body["signals"], body["slots"]):
        for values in columns.values():
            if len(values) != count:
                return False
    return True


USUAL: dict[str, Callable[[bytes, Any], bool]] = {"step": _is_usual_step, "committed": _is_usual_outcome}
"""By kind: whether a line of canonical JSON is recognised, given its body as parsed from it."""

# --- taken apart --------------------------------------------------------------------------------------------

_LIST = rb"\[([0-9,]*)\]"

_APART = {
    **{name: b"(%b)" % form for name, form in _STEP.items()},
    "commitments": rb'"([A-Za-z0-9+/]+={0,2})"',
    "classes": _LIST,
    "decision": _LIST,
    "exposures": rb"(?:null|%b)" % _LIST,
    "verdict": rb'"([ -!#-\[\]-~]*)"',
}
_INDEX = b"(%b)" % _NATURAL
_OUTCOME = rb"(?:(%b)|(%b))" % (_COMMITTED_BODY, _fields(_REFUSED))

STEP_FIELDS = (*sorted(_STEP), "index")
"""What the groups of `STEP_APART` hold; lists of numbers without brackets, `exposures` None for null."""

STEP_APART = Expression(_FRAME % (_fields(_APART), _INDEX, b"step"))
"""Takes a step apart that has all its commitments with it."""

OUTCOME_APART = Expression(_FRAME % (_OUTCOME, _INDEX, rb"(?(1)committed|refused)"))
"""Takes an outcome apart: the body of a committed step, that of a refused one, and the index."""

# --- of one form --------------------------------------------------------------------------------------------

_WHOLE = rb"(?!0[0-9])[0-9]{1,15}+"
"""A canonical number; some larger ones are, too."""

_NAME = re.compile(_TEXT.replace(b'"[', b'"([', 1).replace(b']*"', b']*)"') + b":")

_EXACT_TEXTS = rb"\[(?:%b(?:,%b)*+)?+\]" % (_TEXT, _TEXT)

_BEGIN = rb'\{"body":'

_ANY_LIST = rb"\[([^]]+)\]"
"""A list that holds no lists. To look at all its numbers elsewhere together takes a fraction of the time."""


def _exact_names(names: Iterable[bytes], form: bytes) -> bytes:
    return rb"\{%b\}" % b",".join([b'"%b":%b' % (re.escape(name), form) for name in names])


@frozen
class Form:
    """What recognises lines of one form, as far as the name of their index.

    one: matches such a line. all: matches any number of them, with a newline behind each.
    """

    one: re.Pattern[bytes]
    all: re.Pattern[bytes]

    @classmethod
    def of(cls, fields: Mapping[str, bytes]) -> Form:
        line = _BEGIN + _fields(fields)
        return cls(re.compile(line), re.compile(rb"(?:%b\n)*+" % line))

    def fit(self, lines: Sequence[bytes]) -> list[bool]:
        """Return which lines have the form."""
        # INVARIANT: no line has a newline in it.
        if self.all.fullmatch(b"\n".join([*lines, b""])) is not None:
            return [True] * len(lines)
        return [self.one.fullmatch(line) is not None for line in lines]


@frozen
class StepForm:
    """What recognises steps of one form, with the same signals, and exposures or none.

    line: takes a line apart, as far as the name of its index, into `FORM_FIELDS`, less `exposures` where it
    has none, and with the list of each signal. It is an entry if the numbers in the lists are canonical, the
    mapping of slots is, and there are as many of all as commitments (`steps`).
    """

    line: re.Pattern[bytes]
    signals: tuple[str, ...]
    exposed: bool

    def take(self, lines: Sequence[bytes]) -> list[tuple[bytes, ...] | None]:
        """Return what each line says that has the form."""
        found: list[tuple[bytes, ...]] = self.line.findall(b"\n".join(lines))
        # Each match begins and ends where a line does: as many as lines are one to a line.
        if len(found) == len(lines):
            return [*found]
        matches = map(self.line.fullmatch, lines)
        return [None if match is None else match.groups() for match in matches]


FORM_FIELDS = (
    *("classes", "commitments", "count", "decision", "epoch", "exposures"),
    *("signals", "slots", "spent", "step", "today", "verdict"),
)
"""What the groups of a `StepForm` hold, in order; of signals there is a group for each."""


def step_form(found: re.Match[bytes]) -> StepForm | None:
    """Return what recognises steps of the form of one that `STEP_APART` has found.

    None where the form cannot be canonical.
    """
    step = dict(zip(STEP_FIELDS, found.groups(), strict=True))
    signals = _NAME.findall(step["signals"])
    if not _ordered(signals):
        return None
    fields = {
        "step": b"(%b)" % _WHOLE,
        "epoch": b"(%b)" % _WHOLE,
        "today": rb"(null|%b)" % _WHOLE,
        "count": b"(%b)" % _WHOLE,
        "commitments": rb'"([^"]+)"',
        "classes": _ANY_LIST,
        "exposures": b"null" if step["exposures"] is None else _ANY_LIST,
        "signals": _exact_names(signals, _ANY_LIST),
        "slots": _APART["slots"],
        "spent": b"(%b)" % _EXACT_TEXTS,
        "decision": _ANY_LIST,
        "verdict": _APART["verdict"],
    }
    names = tuple(name.decode() for name in signals)
    line = re.compile(b"^%b$" % (_BEGIN + _fields(fields)), re.MULTILINE)
    return StepForm(line, names, step["exposures"] is not None)


def outcome_form(found: re.Match[bytes]) -> Form | None:
    """Return what recognises canonical outcomes of the form of one that `OUTCOME_APART` has found.

    They are of committed steps, with the norms of the same bands and the same budgets. None where the form
    cannot be canonical.
    """
    try:
        body = orjson.loads(found[1] or b"{}")
    except orjson.JSONDecodeError:
        return None
    if not body:
        return None
    norms, privacy = ([name.encode() for name in body[field]] for field in ("norms", "privacy"))
    if not _ordered(norms) or not _ordered(privacy):
        return None
    return Form.of(
        {
            "step": _WHOLE,
            "active": _EXACT_TEXTS + (rb',"batch":%b' % _WHOLE if "batch" in body else b""),
            "norms": _exact_names(norms, rb"(?:null|%b)" % _TEXT),
            "loss": rb"(?:null|%b)" % _TEXT,
            "privacy": _exact_names(privacy, rb'\{"epsilon":%b,"steps":%b\}' % (_TEXT, _WHOLE))
            + (rb',"shares":\[%b,%b\]' % (_WHOLE, _WHOLE) if "shares" in body else b""),
        }
    )


@cache
def refused_form() -> Form:
    """Return what recognises canonical outcomes of refused steps."""
    return Form.of(_REFUSED | {"step": _WHOLE})


def _ordered(names: Sequence[bytes]) -> bool:
    """Whether names stand as in a canonical mapping: in order, and none twice."""
    return list(names) == sorted(set(names))
