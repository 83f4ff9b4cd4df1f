"""What somebody can do to a ledger who has the file and no key: an outsider, an owner of data, a bad disk."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from random import Random

from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.ledger.entries import compose, decode, encode_body
from gradwarden.runtime.ledger.merkle import leaf_hash
from tests.campaign.genuine import Genuine, genuine, joined, relinked
from tests.campaign.spellings import SPELLINGS, composed

Change = Callable[[Random, Genuine], bytes]
"""Gives the content of the changed file."""


def bits(random: Random, base: Genuine) -> bytes:
    content = bytearray(base.content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def some_bytes(random: Random, base: Genuine) -> bytes:
    """Replace, insert, delete, double, move or blank some bytes."""
    content = base.content
    start = random.randrange(len(content))
    end = min(len(content), start + random.choice((1, 1, 2, 8, 64, 512, 4_096)))
    piece = content[start:end]
    match random.randrange(6):
        case 0:
            return content[:start] + random.randbytes(len(piece)) + content[end:]
        case 1:
            return content[:start] + random.randbytes(random.choice((1, 3, 40))) + content[start:]
        case 2:
            return content[:start] + content[end:]
        case 3:
            return content[:end] + piece + content[end:]
        case 4:
            at = random.randrange(len(content) - len(piece) + 1)
            rest = content[:start] + content[end:]
            return rest[:at] + piece + rest[at:]
        case _:
            return content[:start] + bytes(len(piece)) + content[end:]


def digits(random: Random, base: Genuine) -> bytes:
    """Change one digit or letter into another: the line stays well formed."""
    content = bytearray(base.content)
    places = [at for at, byte in enumerate(content) if chr(byte).isalnum()]
    at = random.choice(places)
    same = b"0123456789" if chr(content[at]).isdigit() else b"abcdefghijklmnopqrstuvwxyz"
    content[at] = random.choice(same)
    return bytes(content)


def some_lines(random: Random, base: Genuine) -> bytes:
    """Drop, double, swap, move, turn round or shuffle lines."""
    lines = base.lines
    start = random.randrange(len(lines))
    end = min(len(lines), start + random.choice((1, 1, 2, 5)))
    match random.randrange(7):
        case 0:
            del lines[start:end]
        case 1:
            lines[end:end] = lines[start:end]
        case 2:
            other = random.randrange(len(lines))
            lines[start], lines[other] = lines[other], lines[start]
        case 3:
            lines.insert(random.randrange(len(lines)), lines.pop(start))
        case 4:
            lines[start:end] = lines[start:end][::-1]
        case 5:
            lines[end:end] = lines[start:end] * random.choice((2, 50))
        case _:
            random.shuffle(lines)
    return joined(lines)


def line_ends(random: Random, base: Genuine) -> bytes:
    """Other ends of lines, blank lines, white space and marks of byte order."""
    content, lines = base.content, base.lines
    at = random.randrange(len(lines))
    match random.randrange(8):
        case 0:
            return content.replace(b"\n", b"\r\n")
        case 1:
            return joined([*lines[:at], lines[at] + b"\r", *lines[at + 1 :]])
        case 2:
            return joined([*lines[:at], b"", *lines[at:]])
        case 3:
            return b"\xef\xbb\xbf" + content
        case 4:
            return joined(lines[: at + 1])[:-1] + joined(lines[at + 1 :])
        case 5:
            return content + random.choice((b"\n", b" ", b"\r\n", b"\x00", b"\x1a", b"{}\n", b"\n\n\n"))
        case 6:
            return joined([*lines[:at], lines[at] + random.choice((b" ", b"\t")), *lines[at + 1 :]])
        case _:
            return content.replace(b"\n", random.choice((b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\x00\n")))


def cut(random: Random, base: Genuine) -> bytes:
    """Cut the file short between two lines or within one, with or without something written behind."""
    ends = [at for at, byte in enumerate(base.content) if byte == 10]
    at = random.choice((random.choice(ends) + 1, random.choice(ends), random.randrange(len(base.content))))
    return base.content[:at] + random.choice((b"", b"", b"", b"\n", b"\x00" * 40, b'{"body":', b"garbage\n"))


def spelled(random: Random, base: Genuine) -> bytes:
    """Spell a line otherwise; the next still links to the old spelling, or, chained anew, to the new one."""
    lines = base.lines
    at = random.randrange(len(lines))
    change = random.choice((*SPELLINGS.values(), composed))
    lines[at] = change(random, lines[at])
    return joined(chained(lines, at + 1) if random.randrange(2) else lines)


def chained(lines: Sequence[bytes], start: int) -> list[bytes]:
    """Give lines from one on the links that they must have, whatever stands before."""
    out = list(lines[:start])
    for index in range(start, len(lines)):
        _, kind, _, body = decode(lines[index])
        out.append(compose(kind, index, leaf_hash(out[-1]).hex(), encode_body(kind, body)))
    return out


def relinked_change(random: Random, base: Genuine) -> bytes:
    """Change, drop, add or move an entry, and number and chain all anew: only the signatures are missing."""
    lines = base.lines
    at = random.randrange(1, len(lines))
    match random.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(random.randrange(1, len(lines)), lines.pop(at))
        case 3:
            lines[at:] = [line for line in lines[at:] if decode(line)[1] != "head"]
        case _:
            _, kind, _, body = decode(lines[at])
            name = random.choice([*body])
            value = body[name]
            if type(value) is int:
                body[name] = abs(value + random.choice((-1, 1, 1_000)))
            elif type(value) is str:
                body[name] = value[::-1] if value != value[::-1] else f"{value}0"
            try:
                lines[at] = compose(kind, at, "0" * 64, encode_body(kind, body))
            except EntryInvalid:
                del lines[at]
    return joined(relinked(lines))


SPLICED = {"plain": ("sibling", "stranger"), "sibling": ("plain",), "stranger": ("plain", "changed")}


def splice(random: Random, base: Genuine) -> bytes:
    """Join the beginning of one genuine ledger and the end of another, of the same origin or not."""
    other = genuine(random.choice(SPLICED.get(base.name, ("plain", "open", "changed"))))
    lines, others = base.lines, other.lines
    at = random.randrange(1, len(lines))
    match random.randrange(4):
        case 0:
            mixed = lines[:at] + others[at:]
        case 1:
            mixed = lines[:at] + others[random.randrange(1, len(others)) :]
        case 2:
            mixed = [*lines[:at], others[min(at, len(others) - 1)], *lines[at + 1 :]]
        case _:
            mixed = lines + others
    return joined(relinked(mixed) if random.randrange(2) else mixed)


def note_of(random: Random, base: Genuine, note: str) -> str:
    """Change a signed note as somebody without a key can."""
    text, _, signatures = note.rpartition("\n\n")
    origin, size, root = [part for part in text.split("\n") if not part.endswith("/1")][:3]
    name, blob = signatures[2:].rstrip("\n").split(" ", 1)
    raw = bytearray(b64decode(blob.split("\n")[0]))
    heads = [head.decode() for head in base.heads.values()]
    stranger = f"— stranger {b64encode(random.randbytes(68)).decode()}\n"
    match random.randrange(12):
        case 0:
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            return f"{text}\n\n— {name} {b64encode(raw).decode()}\n"
        case 1:
            other = random.choice(
                (size + "0", "0" + size, "+" + size, "1e1", str(int(size) + 1), "٧", "-1", "")
            )
            return note.replace(f"\n{size}\n", f"\n{other}\n", 1)
        case 2:
            flipped = bytearray(b64decode(root))
            flipped[random.randrange(32)] ^= 1 << random.randrange(8)
            return note.replace(root, b64encode(flipped).decode(), 1)
        case 3:
            return note.replace(origin, random.choice((f"{origin}x", origin.upper(), "x", f" {origin}")), 1)
        case 4:
            return text + "\n\n" + random.choice(heads).rpartition("\n\n")[2]
        case 5:
            return random.choice(heads)
        case 6:
            return random.choice((note + stranger, f"{text}\n\n{stranger}{signatures}", note + signatures))
        case 7:
            return f"{text}\n\n{stranger}"
        case 8:
            return note.replace("— ", random.choice(("- ", "—", "– ", " — ", "—  ")), 1)
        case 9:
            return text + random.choice(("\nmore\n\n", "\n\n\n", "\n", "\r\n\r\n", "\n \n")) + signatures
        case 10:
            return note + stranger * random.choice((1, 15, 99, 200))
        case _:
            other = random.choice(
                (blob + "=", blob.rstrip("="), blob[:-4], blob.replace("+", "-"), f"{blob} x")
            )
            return f"{text}\n\n— {random.choice((name, 'run2', 'ru n', name + '+'))} {other}\n"


def heads(random: Random, base: Genuine) -> bytes:
    """Change the note of a signed head, or of a change of keys; the lines behind are chained anew or not."""
    lines = base.lines
    notes = [at for at, line in enumerate(lines) if decode(line)[1] in ("head", "rotated", "revoked")]
    at = random.choice(notes)
    _, kind, prev, body = decode(lines[at])
    changed = note_of(random, base, body["note"])
    lines[at] = compose(kind, at, prev, encode_body(kind, {"note": changed}))
    return joined(chained(lines, at + 1) if random.randrange(2) else lines)


CHANGES: dict[str, tuple[int, Change]] = {
    "bits": (14, bits),
    "bytes": (12, some_bytes),
    "digits": (10, digits),
    "lines": (10, some_lines),
    "line ends": (4, line_ends),
    "cut": (6, cut),
    "spelled": (10, spelled),
    "chained anew": (8, relinked_change),
    "spliced": (8, splice),
    "heads": (8, heads),
}
"""By name: how many of a hundred tamperings, and how the file is changed."""
