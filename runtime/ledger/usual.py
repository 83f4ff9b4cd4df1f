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
from typing import Any, TypeAlias

import orjson

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

_BATCH = rb'(?:,"batch":%b)?' % _NATURAL
"""A field that comes next after `active`, in the ledgers of a job's ranks only."""

_COMMITTED = {
    "step": _NATURAL,
    "active": _TEXTS + _BATCH,
    "norms": _named(rb"(?:null|%b)" % _TEXT),
    "loss": rb"(?:null|%b)" % _TEXT,
    "privacy": _named(rb'\{"epsilon":%b,"steps":%b\}' % (_TEXT, _NATURAL)),
}

_REFUSED = {
    "step": _NATURAL,
    "gate": rb'"(?:admission|gradient|commit)"',
    "reason": _TEXT,
    "detail": _TEXT,
}

_step_line = re.compile(_FRAME % (_fields(_STEP), _NATURAL, b"step")).fullmatch
_committed_line = re.compile(_FRAME % (_fields(_COMMITTED), _NATURAL, b"committed")).fullmatch


def _is_usual_step(line: bytes, body: Any) -> bool:
    if _step_line(line) is None:
        return False
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


def _is_usual_outcome(line: bytes, body: Any) -> bool:
    return _committed_line(line) is not None


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
_OUTCOME = rb"(?:(%b)|(%b))" % (_fields(_COMMITTED), _fields(_REFUSED))

STEP_FIELDS = (*sorted(_STEP), "index")
"""What the groups of `step_apart` hold; lists of numbers without brackets, `exposures` None for null."""

step_apart = re.compile(_FRAME % (_fields(_APART), _INDEX, b"step")).fullmatch
"""Takes a step apart that has all its commitments with it."""

outcome_apart = re.compile(_FRAME % (_OUTCOME, _INDEX, rb"(?(1)committed|refused)")).fullmatch
"""Takes an outcome apart: the body of a committed step, that of a refused one, and the index."""

# --- of one form --------------------------------------------------------------------------------------------

_WHOLE = rb"(?!0[0-9])[0-9]{1,15}+"
"""A canonical number; some larger ones are, too."""

_INTEGER = rb"(?!0[0-9])(?!-0)-?[0-9]{1,15}+"

_NAME = re.compile(_TEXT.replace(b'"[', b'"([', 1).replace(b']*"', b']*)"') + b":")

_EXACT_TEXTS = rb"\[(?:%b(?:,%b)*+)?+\]" % (_TEXT, _TEXT)


def _numbers(form: bytes, count: int) -> bytes:
    return b",".join([form] * count)


def _exact_names(names: Iterable[bytes], form: bytes) -> bytes:
    return rb"\{%b\}" % b",".join([b'"%b":%b' % (re.escape(name), form) for name in names])


Form: TypeAlias = Callable[[bytes, int], re.Match[bytes] | None]
"""Takes a line apart, from a place in it on; the groups are those of `step_apart` or `outcome_apart`."""

LONGEST = 64
"""Examples of a step beyond which an expression for just so many takes too long to make."""


def step_form(found: re.Match[bytes]) -> Form | None:
    """Return what recognises canonical steps of the form of one that `step_apart` has found.

    They have as many examples, and the same signals and slots. None where the form cannot be canonical, or is
    too long.
    """
    step = dict(zip(STEP_FIELDS, found.groups(), strict=True))
    signals, slots = (_NAME.findall(step[name]) for name in ("signals", "slots"))
    if len(step["count"]) > 3 or int(step["count"]) > LONGEST or not _ordered(signals) or not _ordered(slots):
        return None
    count = int(step["count"])
    naturals = rb"\[(%b)\]" % _numbers(_WHOLE, count)
    named = [
        _exact_names(names, rb"\[%b\]" % _numbers(form, count))
        for names, form in ((signals, _INTEGER), (slots, rb"(?:null|%b)" % _INTEGER))
    ]
    fields = {
        "step": b"(%b)" % _WHOLE,
        "epoch": b"(%b)" % _WHOLE,
        "today": rb"(null|%b)" % _WHOLE,
        "count": b"(%d)" % count,
        "commitments": rb'"([A-Za-z0-9+/]{%d}%b)"' % ((256 * count + 5) // 6, b"=" * (-32 * count % 3)),
        "classes": naturals,
        "exposures": rb"(?:null|((?!)))" if step["exposures"] is None else naturals,
        "signals": b"(%b)" % named[0],
        "slots": b"(%b)" % named[1],
        "spent": b"(%b)" % _EXACT_TEXTS,
        "decision": naturals,
        "verdict": _APART["verdict"],
    }
    return re.compile(_FRAME % (_fields(fields), b"(%b)" % _WHOLE, b"step")).fullmatch


def outcome_form(found: re.Match[bytes]) -> Form | None:
    """Return what recognises canonical outcomes of the form of one that `outcome_apart` has found.

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
    fields = {
        "step": _WHOLE,
        "active": _EXACT_TEXTS + (rb',"batch":%b' % _WHOLE if "batch" in body else b""),
        "norms": _exact_names(norms, rb"(?:null|%b)" % _TEXT),
        "loss": rb"(?:null|%b)" % _TEXT,
        "privacy": _exact_names(privacy, rb'\{"epsilon":%b,"steps":%b\}' % (_TEXT, _WHOLE)),
    }
    return re.compile(_FRAME % (b"(%b)()" % _fields(fields), b"(%b)" % _WHOLE, b"committed")).fullmatch


def _ordered(names: Sequence[bytes]) -> bool:
    """Whether names stand as in a canonical mapping: in order, and none twice."""
    return list(names) == sorted(set(names))
