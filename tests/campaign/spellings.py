"""Other spellings of a ledger's line: what a lenient reader of JSON would take for the same, or for less.

None of them may stand in a ledger, even where the chain is made anew over it and signed with the true key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+')
_KEY = re.compile(rb'"[a-z_]+":')


def _tokens(line: bytes, kind: bytes) -> list[re.Match[bytes]]:
    """Return the strings (`"`) or the numbers (`0`) of a line, keys not counted among the strings."""
    found = [m for m in _TOKEN.finditer(line) if m[0].startswith(b'"') == (kind == b'"')]
    return [m for m in found if line[m.end() : m.end() + 1] != b":"]


def _put(line: bytes, start: int, end: int, text: bytes) -> bytes:
    return line[:start] + text + line[end:]


def number(random: Random, line: bytes) -> bytes:
    """Spell one number otherwise, or too large."""
    token = random.choice(_tokens(line, b"0"))
    value = token[0]
    other = random.choice(
        (
            *(
                value + tail
                for tail in (b".0", b".00", b"e0", b"E0", b"e+0", b"E-0", b".", b"e", b"n", b"_0")
            ),
            *(head + value for head in (b"0", b"00", b"+", b"0x", b"--", b" ")),
            *(b"-0", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1e-400", b'"%b"' % value, b"0b1", b".5"),
            *(b"9" * random.choice((17, 20, 40, 309, 4_301)), b"9007199254740993", b"18446744073709551616"),
            *("１".encode(), "٣".encode(), "−1".encode(), b"1" + "\u200b".encode()),
        )
    )
    return _put(line, token.start(), token.end(), other if other != value else b"+" + value)


def text(random: Random, line: bytes) -> bytes:
    """Spell one character of a string otherwise, or put something there that UTF-8 or JSON forbids."""
    token = random.choice([m for m in _tokens(line, b'"') if len(m[0]) > 2 and b"\\" not in m[0]])
    at = random.randrange(token.start() + 1, token.end() - 1)
    while line[at] & 0xC0 == 0x80:  # not within a character
        at -= 1
    character = line[at : at + 1]
    escaped = b"\\u%04x" % character[0] if character[0] < 0x80 else b"\\ud800"
    other = random.choice(
        (
            *(escaped, escaped, b"\\/", b"\\x41", b"\\'"),
            *(b"\\ud800", b"\\udc00x", b"\\ud83d\\ude00", b"\\u00e9", b"\\uD83D", b"\\u12", b"\\U00000041"),
            *(b"\x00", b"\x1f", b"\x09", b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"),
            *(
                b"\xed\xa0\x80",
                b"\xed\xa0\xbd\xed\xb8\x80",
                b"\xf4\x90\x80\x80",
                b"\xc3\x28",
                b"\xfe\xff",
                b"\\ ",
            ),
        )
    )
    return _put(line, at, at + 1, other)


def key(random: Random, line: bytes) -> bytes:
    """Double a field, put fields out of order, or write a key otherwise."""
    keys = [m for m in _KEY.finditer(line) if b"\\" not in line[max(0, m.start() - 1) : m.start()]]
    chosen = random.choice(keys)
    doubled = chosen[0] + random.choice((b"0", b"null", b'""', b"[]", b"{}")) + b","
    match random.randrange(6):
        case 0:
            return _put(line, chosen.start(), chosen.start(), doubled)
        case 1:
            return line[:-1] + b',"%b":0}' % random.choice((b"index", b"prev", b"kind", b"body", b"x", b""))
        case 2:
            return _put(
                line, 1, 1, random.choice((b'"index":0,', b'"body":{},', b'"kind":"step",', b'"a":1,'))
            )
        case 3:
            body, index, kind = _parts(line)
            return b'{"index":%b,"body":%b,"kind":%b' % (index, body, kind)
        case 4:
            return _put(line, chosen.start() + 1, chosen.start() + 2, b"\\u%04x" % line[chosen.start() + 1])
        case _:
            return _put(line, chosen.start(), chosen.end(), chosen[0].replace(b'"', b"'"))


def _parts(line: bytes) -> tuple[bytes, bytes, bytes]:
    body, rest = line.removeprefix(b'{"body":').rsplit(b',"index":', 1)
    index, kind = rest.split(b',"kind":', 1)
    return body, index, kind


def space(random: Random, line: bytes) -> bytes:
    """Put white space, a mark of byte order, or a comment where none belongs."""
    other = random.choice(
        (b" ", b"\t", b"\r", b"\x0b", b"\x0c", b"\xc2\xa0", b"\xef\xbb\xbf", b"\x00", b"/**/")
    )
    places = [0, 1, len(line) - 1, len(line), *(m.end() for m in _KEY.finditer(line))]
    at = random.choice(places)
    if b"\\" in line[max(0, at - 2) : at]:
        at = len(line)
    return _put(line, at, at, other)


def shape(random: Random, line: bytes) -> bytes:
    """Nest too deeply, make too long, or leave out what belongs there."""
    body, index, kind = _parts(line)
    depth = random.choice((1, 3, 100, 1_000, 1_100, 5_000, 30_000))
    form = b'{"body":%b,"index":%b,"kind":%b'
    match random.randrange(9):
        case 0:
            return form % (b"[" * depth + b"]" * depth, index, kind)
        case 1:
            return form % (b'{"a":' * depth + b"1" + b"}" * depth, index, kind)
        case 2:
            return form % (
                b'{"text":"%b"}' % (b"x" * random.choice((65_536, 70_000, 1_100_000))),
                index,
                kind,
            )
        case 3:
            return line + b" " * random.choice((65_536, 1_048_577))
        case 4:
            return b"[%b]" % line
        case 5:
            return line + line
        case 6:
            return line[:-1]
        case 7:
            return form % (body[:-1] + (b"," if len(body) > 2 else b"") + b'"zzz":0}', index, kind)
        case _:
            return b'{"body":%b,"index":%b}' % (body, index)


SPELLINGS: dict[str, Callable[[Random, bytes], bytes]] = {
    "number": number,
    "text": text,
    "key": key,
    "space": space,
    "shape": shape,
}
"""Each gives a line that is no canonical entry any more."""


def composed(random: Random, line: bytes) -> bytes:
    """Write a letter of a text otherwise, in Unicode that JSON allows: canonical, and another text."""
    token = random.choice([m for m in _tokens(line, b'"') if len(m[0]) > 2 and b"\\" not in m[0]])
    at = random.randrange(token.start() + 1, token.end() - 1)
    other = random.choice(
        ("é", "e\u0301", "\u200b", "\ufeff", "\u202e", "Å", "\u212b", "ſ", "а", "\U0001f600")
    )
    while line[at] & 0xC0 == 0x80:
        at -= 1
    return _put(line, at, at, other.encode())
