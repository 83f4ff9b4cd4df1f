"""Recognises the usual lines of a ledger, steps and their outcomes, by one regular expression each.

Nearly all lines are of these two kinds, and `shapes` takes longer over one than the parser does. The type of
each field shows in the text, too: what stands between the brackets of a list and is made of digits and commas
is, in JSON, a list of whole numbers from 0 on. An expression settles that for a whole line; what remains is
whether the lists of a step fit each other. A line that is not recognised may be an entry all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_NATURAL = rb"[0-9]+"
_NATURALS = rb"\[[0-9,]*\]"
_TEXT = rb'"[ -!#-\[\]-~]*"'
_TEXTS = rb"\[(?:%b,?)*\]" % _TEXT
_BASE64 = rb'"[A-Za-z0-9+/]*={0,2}"'
_FRAME = rb'\{"body":\{%b\},"index":[0-9]+,"kind":"%b","prev":"[0-9a-f]{64}"\}'


def _fields(fields: Mapping[str, bytes]) -> bytes:
    return b",".join(b'"%b":%b' % (name.encode(), form) for name, form in sorted(fields.items()))


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

_step_line = re.compile(_FRAME % (_fields(_STEP), b"step")).fullmatch
_committed_line = re.compile(_FRAME % (_fields(_COMMITTED), b"committed")).fullmatch


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
