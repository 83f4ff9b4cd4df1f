"""What a challenge is drawn from: a text of the verifier's own, or a signed head of the ledger. No torch.

A note is believed only so far: it must be a head of this ledger, signed by a known key, and cover all
segments that it chooses from, since whoever knows the seed before a segment is recorded can forge around it.
What is drawn from is never the file itself, to which anybody may add lines, but what is signed: the text of
the head, and of each witness that the verifier trusts its cosignature, which the trainer cannot foresee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError, NoteError
from gradwarden.runtime.evidence.trust import NOBODY, Trust
from gradwarden.runtime.ledger.archived_head import compare_head
from gradwarden.runtime.ledger.cosignature import cosignatures
from gradwarden.runtime.ledger.note import parse_note
from gradwarden.runtime.reexecution.segments import Segment


@frozen
class Challenge:
    """Bytes that choose. witnesses: the names of those whose cosignatures are among them."""

    seed: bytes
    witnesses: tuple[str, ...] = ()


def challenge_of_note(
    ledger: Path, note: bytes, trust: Trust, facts: Mapping[str, Any], segments: Sequence[Segment]
) -> Challenge:
    """Return the challenge that a signed head gives. facts: of the ledger's verification.

    Raises NoteError for what is no note or badly signed; EvidenceError where it is no head of the ledger by a
    known key, does not cover all segments, or is not cosigned by the witnesses that are asked for.
    """
    trust = trust.after(facts["keys_used"])
    head, contradiction = compare_head(ledger, note, trust.keys, facts.get("origin"))
    if contradiction is not None:
        raise EvidenceError(f"the challenge is no head of the ledger: {contradiction.message}")
    beyond = [segment for segment in segments if segment.entries[1] >= head.size]
    if beyond:
        raise EvidenceError(
            f"the challenge covers {head.size:,} entries, and segment {beyond[0].number} ends after them: it "
            "could have been forged by who knew the challenge",
            help="take a head that was signed, and cosigned, after the last checkpoint",
        )
    try:
        found = cosignatures(note, trust.witnesses)
    except NoteError as error:
        raise EvidenceError(f"the challenge proves nothing: {error.message}") from error
    if trust.quorum != NOBODY and not trust.quorum.met([one.witness for one in found]):
        raise EvidenceError(f"the challenge is not cosigned by the witnesses asked for: {trust.quorum}")
    parsed = parse_note(note)
    # Of several lines in the name of a witness only the first was verified; anybody may add others.
    first = {(line.name, line.key_id): line.signature for line in reversed(parsed.signatures)}
    drawn = sorted(first[one.witness.name, one.witness.key_id] for one in found)
    return Challenge(b"".join([parsed.text.encode(), *drawn]), tuple(one.witness.name for one in found))
