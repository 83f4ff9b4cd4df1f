"""Reads and writes DER (ITU-T X.690, section 10), as far as time stamps need it.

Lengths are definite and as short as can be, tags have one byte; all else is refused. Nothing is recursive:
who wants to look inside an element reads its content.
"""

from __future__ import annotations

from gradwarden.policy.frozen import frozen

BOOLEAN, INTEGER, BITS, OCTETS, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
TIME, SEQUENCE, SET = 0x18, 0x30, 0x31
FIRST, SECOND = 0xA0, 0xA1
"""The tags [0] and [1], constructed: of fields that are told by their numbers."""


class DerError(ValueError):
    """What was read is no DER, or another element than expected."""


@frozen
class Element:
    """A tag and its content. whole: with tag and length, as it stood."""

    tag: int
    content: bytes
    whole: bytes

    def children(self) -> Children:
        """Return the elements of which the content consists. Raises DerError."""
        return Children(self.content)

    def integer(self) -> int:
        """Return the value of an INTEGER. Raises DerError."""
        if self.tag != INTEGER or not self.content:
            raise DerError("no integer")
        return int.from_bytes(self.content, "big", signed=True)


class Children:
    """The elements of a content, taken one after another. Raises DerError for what is none."""

    def __init__(self, content: bytes) -> None:
        self._left = content

    def __bool__(self) -> bool:
        return bool(self._left)

    def maybe(self, *tags: int) -> Element | None:
        """Take the next element where it has one of these tags."""
        return self.take() if self._left and self._left[0] in tags else None

    def take(self, *tags: int) -> Element:
        """Take the next element, which must have one of these tags, where any are given."""
        element = _read(self._left)
        if tags and element.tag not in tags:
            raise DerError(f"the tag {element.tag:#04x} where others were expected")
        self._left = self._left[len(element.whole) :]
        return element

    def end(self) -> None:
        """Raise DerError where anything is left."""
        if self._left:
            raise DerError("more elements than expected")


def read(data: bytes, tag: int) -> Element:
    """Return the one element that data consist of. Raises DerError."""
    children = Children(data)
    element = children.take(tag)
    children.end()
    return element


def _read(data: bytes) -> Element:
    if len(data) < 2 or data[0] & 0x1F == 0x1F:
        raise DerError("no element")
    length, start = data[1], 2
    if length & 0x80:
        octets = length & 0x7F
        start += octets
        length = int.from_bytes(data[2:start], "big")
        if not 1 <= octets <= 4 or len(data) < start or data[2] == 0 or length < 0x80:
            raise DerError("a length that is not in its shortest form")
    if len(data) < start + length:
        raise DerError("an element that is cut short")
    return Element(data[0], data[start : start + length], data[: start + length])


def write(tag: int, *contents: bytes) -> bytes:
    """Return an element with these contents, one behind the other."""
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def oid(dotted: str) -> bytes:
    """Return the content of an OBJECT IDENTIFIER (X.690, section 8.19)."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for number in (40 * first + second, *rest):
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.append(0x80 | (number & 0x7F))
        out += bytes(reversed(octets))
    return bytes(out)
