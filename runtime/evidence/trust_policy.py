"""Reads trust policies: which keys sign logs, and which witnesses must have cosigned their heads.

The format is C2SP tlog-policy (https://c2sp.org/tlog-policy, section "Policy file syntax and structure"):

    log <vkey> [<url>]
    witness <name> <vkey> [<url>]
    group <name> all|any|<number> <name>...
    quorum <name>|none

One item to a line, parted by spaces and tabs; lines that begin with `#`, and empty ones, are passed over.
Names are bytes and share one space; what a line refers to stands before it; a name is a member of one group
at most; there is one quorum. Keys are Ed25519: vkeys of type 01 for logs and 04 for witnesses.

One thing is not held to that page: there the name of a log's key must be the origin of the log. A ledger has
an origin of its own and is signed by a key that may sign others; which one is meant is said apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gradwarden.runtime.errors import EvidenceError, KeyFileError
from gradwarden.runtime.evidence.trust import NOBODY, Quorum, Trust, check_witnesses
from gradwarden.runtime.ledger.keys import PublicKey, WitnessKey

MAX_POLICY = 1 << 20
"""The longest policy that is read, in bytes."""

MAX_DEFINED = 256
"""The most logs, and the most witnesses and groups together."""

_FOREIGN = re.compile(rb"[^\x09\x0a\x20-\x7e\x80-\xff]")
_SEVERAL = re.compile(rb"[1-9][0-9]{0,5}")


def parse_trust_policy(data: bytes) -> Trust:
    """Read a trust policy. Raises EvidenceError, which names the line at fault."""
    if len(data) > MAX_POLICY:
        raise EvidenceError(f"a trust policy has at most {MAX_POLICY:,} bytes")
    if _FOREIGN.search(data):
        raise EvidenceError("a trust policy holds no control characters but tabs and newlines")
    reader = _Reader()
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.replace(b"\t", b" ").split(b" ")
        words = [word for word in words if word]
        if words and not words[0].startswith(b"#"):
            try:
                reader.take(words)
            except (EvidenceError, KeyFileError) as error:
                raise EvidenceError(f"line {number} of the trust policy: {error.message}") from None
    return reader.trust()


class _Reader:
    """What the lines so far have defined."""

    def __init__(self) -> None:
        self._logs: list[PublicKey] = []
        self._witnesses: list[WitnessKey] = []
        self._defined: dict[bytes, WitnessKey | Quorum] = {}
        self._members: set[bytes] = set()
        self._quorum: Quorum | None = None

    def take(self, words: Sequence[bytes]) -> None:
        takers: dict[bytes, Callable[[Sequence[bytes]], None]] = {
            b"log": self._log,
            b"witness": self._witness,
            b"group": self._group,
            b"quorum": self._take_quorum,
        }
        taker = takers.get(words[0])
        if taker is None:
            raise EvidenceError(f"`{_shown(words[0])}` is not `log`, `witness`, `group` or `quorum`")
        taker(words[1:])

    def trust(self) -> Trust:
        if self._quorum is None:
            raise EvidenceError(
                "the trust policy has no `quorum` line", help="`quorum none` asks for no witness"
            )
        if not self._logs:
            raise EvidenceError(
                "the trust policy names no log", help="`log VKEY` names a key that signs ledgers"
            )
        return Trust(tuple(self._logs), self._quorum)

    def _log(self, words: Sequence[bytes]) -> None:
        _expect(words, 1, 2, "log <vkey> [<url>]")
        key = PublicKey.from_vkey(_text(words[0]))
        if any(key.raw == other.raw for other in self._logs):
            raise EvidenceError(f"the key `{key.name}` is listed twice")
        self._logs.append(key)
        self._check()

    def _witness(self, words: Sequence[bytes]) -> None:
        _expect(words, 2, 3, "witness <name> <vkey> [<url>]")
        key = WitnessKey.from_vkey(_text(words[1]))
        self._witnesses.append(key)
        self._define(words[0], key)
        self._check()

    def _group(self, words: Sequence[bytes]) -> None:
        _expect(words, 3, MAX_DEFINED + 2, "group <name> all|any|<number> <name>...")
        name, several, *names = words
        members = tuple(map(self._known, names))
        for member in names:
            if member in self._members:
                raise EvidenceError(f"`{_shown(member)}` is a member of a group already")
            self._members.add(member)
        number = {b"all": len(names), b"any": 1}.get(several)
        if number is None:
            number = int(several) if _SEVERAL.fullmatch(several) else 0
        if not 1 <= number <= len(names):
            raise EvidenceError(f"`{_shown(several)}` is not `all`, `any` or a number up to {len(names)}")
        self._define(name, Quorum(number, members))

    def _take_quorum(self, words: Sequence[bytes]) -> None:
        _expect(words, 1, 1, "quorum <name>|none")
        if self._quorum is not None:
            raise EvidenceError("there is a quorum already")
        if words[0] == b"none":
            self._quorum = NOBODY
            return
        found = self._known(words[0])
        self._quorum = found if isinstance(found, Quorum) else Quorum(1, (found,))

    def _known(self, name: bytes) -> WitnessKey | Quorum:
        if name not in self._defined:
            raise EvidenceError(f"no witness and no group `{_shown(name)}` is defined before")
        return self._defined[name]

    def _define(self, name: bytes, meaning: WitnessKey | Quorum) -> None:
        if name == b"none" or name in self._defined:
            raise EvidenceError(f"the name `{_shown(name)}` is taken")
        self._defined[name] = meaning

    def _check(self) -> None:
        check_witnesses(self._witnesses, self._logs)
        if max(len(self._logs), len(self._defined)) > MAX_DEFINED:
            raise EvidenceError(f"a trust policy defines at most {MAX_DEFINED} logs, witnesses and groups")


def _expect(words: Sequence[bytes], least: int, most: int, form: str) -> None:
    if not least <= len(words) <= most:
        raise EvidenceError(f"the line should read `{form}`")


def _text(word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise EvidenceError("a public key is UTF-8 text") from None


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")
