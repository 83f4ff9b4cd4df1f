"""The line of one ledger entry.

    {"body":{…},"index":N,"kind":"…","prev":"<64 hex digits>"}

One JSON object in canonical form (RFC 8785) and a newline. `index` counts from 0; `prev` is the leaf hash of
the line before (64 zeros for the first); a leaf hash is SHA-256(00 ‖ line without its newline). A line has at
most 65,535 bytes, so that an entry fits a C2SP tlog-tiles bundle.

Numbers are integers below 2**53 in magnitude and keys are ASCII. Within that subset every sorting of keys and
every printing of numbers agrees, so plain JSON with sorted keys *is* the canonical form. Readers parse, print
again and compare bytes: that refuses duplicate keys, stray white space, other escapes and other orders in one
stroke; the shapes of the kinds (`shapes`) refuse floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.ledger.shapes import SHAPES
from gradwarden.runtime.ledger.usual import USUAL, is_usual_body

MAX_LINE = 65_535
"""The longest line, without its newline."""

ENTRY_START = b'{"body":'
"""How every line begins: its keys are sorted."""

ZERO_HASH = "0" * 64
"""`prev` of the first entry."""

OPENING = "opened"
JOB_OPENING = "job_opened"
OPENINGS = frozenset({OPENING, JOB_OPENING})
"""Kinds that begin a ledger: of a run, or of a job of many ranks, which binds their ledgers."""

SEALED = "sealed"
RESUMED = "resumed"
ROTATED = "rotated"
REVOKED = "revoked"
HEAD = "head"

LANDMARKS = OPENINGS | {SEALED, HEAD, RESUMED, ROTATED, REVOKED}
"""Kinds that must fit the whole ledger before them."""

CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER

FIELDS = frozenset({"body", "index", "kind", "prev"})

_FRAME = len(b'{"body":,"index":,"kind":"","prev":""}') + 64 + 16


@frozen
class Entry:
    """One entry of a ledger. `line` is what was hashed: the stored bytes without the newline."""

    index: int
    kind: str
    body: dict[str, Any]
    line: bytes


class MalformedLineError(ValueError):
    """A line that is no entry; `problem` is a stable word for what is wrong with it.

    too_long, not_json, not_canonical, not_an_entry (fields of the line), unknown_kind, wrong_shape (body).
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


class OddBlockError(ValueError):
    """Lines that are not sound in themselves, or that only the slow way can judge."""


def encode_body(kind: str, body: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of a body. Raises EntryInvalid where it has not the shape of its kind."""
    shape = SHAPES.get(kind)
    if shape is None:
        raise EntryInvalid(f"`{kind}` is not a kind of entry")
    failure, encoded = "", b""
    try:
        encoded = orjson.dumps(body, option=CANONICAL)
    except (orjson.JSONEncodeError, RecursionError) as error:
        failure = f"the body of a `{kind}` entry cannot be written: {error}".lower()
    # To look at what is written takes a fraction of the time, and is enough for nearly all entries.
    if not (encoded and is_usual_body(kind, encoded, body)) and not shape(body):
        raise EntryInvalid(f"the body of a `{kind}` entry has the wrong shape: {explain(kind, body)}")
    if failure:
        raise EntryInvalid(failure)
    if len(encoded) + len(kind) + _FRAME > MAX_LINE:
        raise EntryInvalid(
            f"a `{kind}` entry of {len(encoded):,} bytes is too long",
            help=f"a line of the ledger holds at most {MAX_LINE:,} bytes; split the entry",
        )
    return encoded


def compose(kind: str, index: int, prev: str, body: bytes) -> bytes:
    """Return an entry's line, without the newline, from its encoded body."""
    return b'{"body":%b,"index":%d,"kind":"%b","prev":"%b"}' % (body, index, kind.encode(), prev.encode())


def decode(line: bytes) -> tuple[int, str, str, dict[str, Any]]:
    """Return (index, kind, prev, body) of a line without its newline. Raises MalformedLineError.

    The place in the chain is not checked here.
    """
    index, kind, prev, body = read_frame(line)
    if kind not in SHAPES:
        raise MalformedLineError("unknown_kind", "the entry is of an unknown kind")
    if not has_shape(line, kind, body):
        raise MalformedLineError("wrong_shape", f"the body of the `{kind}` entry has the wrong shape")
    return index, kind, prev, body


def read_frame(line: bytes) -> tuple[int, str, str, Any]:
    """Return (index, kind, prev, body) of a line, whatever the last is. Raises MalformedLineError."""
    if len(line) > MAX_LINE:
        raise MalformedLineError("too_long", f"the line is longer than {MAX_LINE:,} bytes")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise MalformedLineError("not_json", "the line is not JSON") from None
    try:
        canonical = orjson.dumps(value, option=CANONICAL)
    except orjson.JSONEncodeError:
        canonical = b""
    if canonical != line:
        raise MalformedLineError("not_canonical", "the line is not canonical JSON")
    if type(value) is not dict or value.keys() != FIELDS:
        raise MalformedLineError("not_an_entry", "the line has not the four fields of an entry")
    index, kind, prev = value["index"], value["kind"], value["prev"]
    if (
        type(index) is not int
        or index < 0
        or type(kind) is not str
        or type(prev) is not str
        or len(prev) != 64
    ):
        raise MalformedLineError("not_an_entry", "the fields of the entry have the wrong types")
    return index, kind, prev, value["body"]


def has_shape(line: bytes, kind: str, body: Any) -> bool:
    """Whether the body of a line of canonical JSON has the shape of its kind."""
    if kind in USUAL:
        return USUAL[kind](line, body) or SHAPES[kind](body)
    return kind in SHAPES and SHAPES[kind](body)


@cache
def schema() -> dict[str, Any]:
    """Return the published JSON Schema of an entry."""
    text = files("gradwarden.runtime").joinpath("schemas/ledger.schema.json").read_bytes()
    loaded: dict[str, Any] = orjson.loads(text)
    return loaded


def explain(kind: str, body: Any) -> str:
    """Say what the schema has against a body; slow, for messages."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    rules = {"$ref": f"#/$defs/{kind}", "$defs": schema()["$defs"]}
    error = best_match(Draft202012Validator(rules).iter_errors(body))
    if error is None:
        return "values must be plain integers, strings, lists and mappings that fit each other"
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return f"`{where.lstrip('.') or 'body'}`: {error.message}"
