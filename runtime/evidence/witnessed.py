"""How far witnesses vouch for a ledger, by the heads that they cosigned and that fit it.

Each witness has seen the ledger up to some head. It is witnessed up to the largest size that a quorum of them
has seen at least: of a quorum of N, the N-th largest. What lies beyond is self-attested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.evidence.trust import NOBODY, Quorum, Trust
from gradwarden.runtime.ledger.archived_head import compare_head
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.cosignature import Cosignature, cosignatures
from gradwarden.runtime.ledger.keys import WitnessKey


@frozen
class Sighting:
    """What one witness has seen: a head over so many entries, at a time by its own clock (since 1970)."""

    witness: WitnessKey
    size: int
    seconds: int


@frozen
class Assurance:
    """How far witnesses vouch for a log.

    sightings: the largest of each witness that has seen anything, by size. size: the entries that a quorum of
    them has seen.
    """

    sightings: tuple[Sighting, ...]
    quorum: Quorum
    size: int


def assurance(heads: Iterable[tuple[int, Sequence[Cosignature]]], quorum: Quorum) -> Assurance:
    """Add up what witnesses have cosigned. heads: sizes of heads that fit the log, and their cosignatures."""
    largest: dict[WitnessKey, Sighting] = {}
    for size, cosigned in heads:
        for one in cosigned:
            seen = largest.get(one.witness)
            if seen is None or (seen.size, seen.seconds) < (size, one.seconds):
                largest[one.witness] = Sighting(one.witness, size, one.seconds)
    sightings = sorted(largest.values(), key=lambda sighting: (-sighting.size, sighting.witness.name))
    enough = (
        seen.size
        for number, seen in enumerate(sightings, 1)
        if quorum.met([earlier.witness for earlier in sightings[:number]])
    )
    return Assurance(tuple(sightings), quorum, next(enough, 0))


@frozen
class Comparison:
    """What heads that were kept elsewhere say of a ledger.

    findings: what contradicts it, and `unwitnessed` where witnesses were asked for and do not vouch for all
    that is signed. assurance: None where no witness was asked for. own: of each head, whether it is of this
    ledger, by a given key.
    """

    findings: tuple[Finding, ...]
    assurance: Assurance | None
    own: tuple[bool, ...]

    def facts(self) -> dict[str, Any]:
        """Return how far witnesses vouch, for a report; nothing where none was asked for."""
        if self.assurance is None:
            return {}
        return {
            "assurance": "witnessed" if self.assurance.size else "self-attested",
            "witnessed_entries": self.assurance.size,
            "witnesses": [
                {"vkey": seen.witness.vkey, "entries": seen.size, "time": seen.seconds}
                for seen in self.assurance.sightings
            ],
        }


def compare_notes(ledger: Path, notes: Sequence[bytes], trust: Trust, facts: Mapping[str, Any]) -> Comparison:
    """Compare a ledger with signed heads of it, and add up the cosignatures of those that fit.

    facts: of its verification. Raises NoteError for a note that is no head.
    """
    trust = trust.after(facts["keys_used"])
    findings: list[Finding] = []
    fitting: list[tuple[int, Sequence[Cosignature]]] = []
    own: list[bool] = []
    for note in notes:
        head, contradiction = compare_head(ledger, note, trust.keys, facts.get("origin"))
        own.append(contradiction is None)
        if contradiction is not None:
            findings.append(contradiction)
            continue
        try:
            fitting.append((head.size, cosignatures(note, trust.witnesses)))
        except NoteError as error:
            message = f"the checkpoint proves nothing: {error.message}"
            findings.append(Finding("checkpoint_untrusted", 0, message))
    if trust.quorum == NOBODY:
        return Comparison(tuple(findings), None, tuple(own))
    found = assurance(fitting, trust.quorum)
    signed: int = facts["signed_entries"]
    if found.size < signed:
        message = f"{signed:,} entries are signed; {_vouching(found)}"
        findings.append(Finding("unwitnessed", found.size, message))
    return Comparison(tuple(findings), found, tuple(own))


def _vouching(found: Assurance) -> str:
    if found.size:
        return f"the witnesses asked for vouch for the first {found.size:,} only (needed: {found.quorum})"
    names = ", ".join(seen.witness.name for seen in found.sightings) or "none of the witnesses asked for"
    return f"cosigned by {names}; needed: {found.quorum}"
