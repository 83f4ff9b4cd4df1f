"""The files in which proofs travel.

An inclusion proof is a C2SP `tlog-proof` (https://c2sp.org/tlog-proof, section "Format"):

    c2sp.org/tlog-proof@v1
    extra base64 of the entry's line
    index 1024
    base64 of a hash of the path, one a line, from the leaf's sibling to the root's child

    the checkpoint: a signed note, verbatim

That section leaves `extra` to the application and does not authenticate it. Here it is the ledger's line,
from which the leaf hash is made, so that the file needs nothing beside it; it is believed only once the path
leads from its hash to the signed root. A proof without that line shows the inclusion of an entry that the
reader has from elsewhere.

C2SP has no file for a consistency proof. What is used is the body of a request to a witness
(https://c2sp.org/tlog-witness, section "add-checkpoint"), so that any witness takes it as it stands:

    old 512
    base64 of a hash of the proof, one a line

    the checkpoint: a signed note, verbatim

It holds the size of the old head and not the head itself: that one is what the reader kept.

Readers are strict: what is read is printed again and must be the same bytes.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.ledger.merkle import HASH_SIZE

PROOF_HEADER = "c2sp.org/tlog-proof@v1"

MAX_PROOF = 2 << 20
"""The longest proof that is read, in bytes."""

MAX_PATH = 63
"""The most hashes of a proof (tlog-witness, section "add-checkpoint"); sizes are below 2**63."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@frozen
class InclusionProof:
    """That an entry stands in a tree.

    index: of the entry. path: hashes of 32 bytes, from the leaf's sibling to the root's child. note: the
    signed head of the tree. line: the entry as it is stored, without its newline; None: it is withheld.
    """

    index: int
    path: tuple[bytes, ...]
    note: bytes
    line: bytes | None

    def encode(self) -> bytes:
        extra = [] if self.line is None else [f"extra {b64encode(self.line).decode()}"]
        return _encode([PROOF_HEADER, *extra, f"index {self.index}", *_hashes(self.path)], self.note)


@frozen
class ConsistencyProof:
    """That a tree begins with all of an older one.

    old_size: entries of the older one. path: hashes of 32 bytes. note: the signed head of the newer one.
    """

    old_size: int
    path: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        return _encode([f"old {self.old_size}", *_hashes(self.path)], self.note)


Proof: TypeAlias = InclusionProof | ConsistencyProof


def parse_proof(data: bytes) -> Proof:
    """Read a proof of either kind. Raises EvidenceError unless printing it again gives the same bytes."""
    if len(data) > MAX_PROOF:
        raise EvidenceError(f"a proof has at most {MAX_PROOF:,} bytes")
    head, blank, note = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise EvidenceError("the proof is not text") from None
    if not blank:
        raise EvidenceError("the proof has no blank line before its signed head")
    if lines[0] == PROOF_HEADER:
        proof: Proof = _parse_inclusion(lines[1:], note)
    elif lines[0].startswith("old "):
        proof = ConsistencyProof(_number("old", lines[:1]), _path(lines[1:]), note)
    else:
        raise EvidenceError(
            "the file is no proof", help=f"a proof begins with `{PROOF_HEADER}`, or with `old` and a size"
        )
    if proof.encode() != data:
        raise EvidenceError("the proof is not in canonical form")
    return proof


def _parse_inclusion(lines: Sequence[str], note: bytes) -> InclusionProof:
    line = None
    if lines and lines[0].startswith("extra "):
        line = _decode(lines[0].removeprefix("extra "))
        lines = lines[1:]
    return InclusionProof(_number("index", lines[:1]), _path(lines[1:]), note, line)


def _number(word: str, lines: Sequence[str]) -> int:
    """Return the number on a line `word number`; `lines` has at most that line."""
    found, _, number = lines[0].partition(" ") if lines else ("", "", "")
    if found != word or not _NUMBER.fullmatch(number) or int(number) >= 1 << 63:
        raise EvidenceError(f"the proof lacks its line `{word}` with a number")
    return int(number)


def _path(lines: Sequence[str]) -> tuple[bytes, ...]:
    if len(lines) > MAX_PATH:
        raise EvidenceError(f"the proof has more than {MAX_PATH} hashes")
    path = tuple(map(_decode, lines))
    if any(len(node) != HASH_SIZE for node in path):
        raise EvidenceError(f"the hashes of a proof have {HASH_SIZE} bytes each")
    return path


def _decode(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise EvidenceError("the proof holds a line that is not base64") from None


def _hashes(path: Sequence[bytes]) -> list[str]:
    return [b64encode(node).decode() for node in path]


def _encode(lines: Sequence[str], note: bytes) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode() + b"\n" + note
