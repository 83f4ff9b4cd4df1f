"""Checks proofs offline: with public keys, and without the ledger that they are from.

What is told of a proof, as faults (`Fault.code`):

- `unknown_key`, `bad_signature`, `ambiguous_key`: nobody who is trusted has signed the head
- `unwitnessed`: fewer witnesses than asked for have cosigned the head
- `wrong_origin`: the head is of another log than the one that was asked about
- `wrong_path`: the path does not lead from the entry to the head's root
- `not_an_entry`, `wrong_index`: what was included is no ledger entry, or says that it stands elsewhere
- `wrong_entry`: the proof is of another entry than the one in hand
- `rollback`: the new head covers fewer entries than the old one
- `fork`: two signed heads of one size with different roots, which show by themselves that the log has two
  histories
- `inconsistent`: the proof does not show that the new tree begins with the old one
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError, NoteError
from gradwarden.runtime.evidence.proof_file import ConsistencyProof, InclusionProof
from gradwarden.runtime.evidence.trust import NOBODY, Trust
from gradwarden.runtime.ledger.cosignature import Cosignature, cosignatures
from gradwarden.runtime.ledger.entries import MalformedLineError, decode
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_note


@frozen
class Fault:
    """Why a proof does not hold."""

    code: str
    message: str


@frozen
class TrustedHead:
    """A head, the given keys whose signatures of it hold, and the cosignatures of it by given witnesses.

    Faults say why it is not to be believed.
    """

    checkpoint: Checkpoint
    signers: tuple[PublicKey, ...]
    cosignatures: tuple[Cosignature, ...]
    faults: tuple[Fault, ...]


@frozen
class ProofReport:
    """What a proof shows. It holds if there are no faults.

    head: the one that the proof leads to. entry: (index, kind, body) of an included entry, where the proof
    holds. old: the head that an inclusion needs none of.
    """

    kind: Literal["inclusion", "consistency"]
    head: TrustedHead
    faults: tuple[Fault, ...]
    entry: tuple[int, str, dict[str, Any]] | None = None
    leaf: bytes | None = None
    old: Checkpoint | None = None

    @property
    def ok(self) -> bool:
        return not self.faults


def trust_head(note: bytes, trust: Trust) -> TrustedHead:
    """Say what is known of a signed head. Raises NoteError (`malformed`) for a note that is no head."""
    checkpoint = parse_checkpoint(parse_note(note).text)
    faults = []
    signers: tuple[PublicKey, ...] = ()
    cosigned: tuple[Cosignature, ...] = ()
    try:
        signers = open_note(note, trust.keys).keys
        cosigned = cosignatures(note, trust.witnesses)
    except NoteError as error:
        faults.append(Fault(error.fault, error.message))
    else:
        if not trust.quorum.met([one.witness for one in cosigned]):
            found = ", ".join(one.witness.name for one in cosigned) or "none of the witnesses asked for"
            faults.append(Fault("unwitnessed", f"cosigned by {found}; needed: {trust.quorum}"))
    origin = trust.origin
    if origin is not None and checkpoint.origin != origin:
        faults.append(Fault("wrong_origin", f"the head is of `{checkpoint.origin}`, not of `{origin}`"))
    return TrustedHead(checkpoint, signers, cosigned, tuple(faults))


def check_inclusion(proof: InclusionProof, trust: Trust, *, line: bytes | None = None) -> ProofReport:
    """Check that an entry is covered by a head that is trusted.

    line: the entry in hand, without its newline; needed where the proof withholds it. Raises EvidenceError
    where neither is there, NoteError where the proof's note is no head.
    """
    included = proof.line if line is None else line
    if included is None:
        raise EvidenceError("the proof withholds its entry", help="give the entry's line with --entry")
    head = trust_head(proof.note, trust)
    leaf, checkpoint = leaf_hash(included), head.checkpoint
    faults = list(head.faults)
    if line is not None and proof.line not in (None, line):
        faults.append(Fault("wrong_entry", "the proof is of another entry than the one given"))
    elif not verify_inclusion(proof.index, checkpoint.size, leaf, proof.path, checkpoint.root):
        message = f"the path does not lead from entry {proof.index:,} to the root of the head"
        faults.append(Fault("wrong_path", message))
    faults += _entry_faults(proof.index, included)
    entry = None if faults else _entry(included)
    return ProofReport("inclusion", head, tuple(faults), entry=entry, leaf=leaf)


def _entry(line: bytes) -> tuple[int, str, dict[str, Any]]:
    index, kind, _, body = decode(line)
    return index, kind, body


def _entry_faults(index: int, line: bytes) -> Iterator[Fault]:
    try:
        found, _, _ = _entry(line)
    except MalformedLineError as error:
        yield Fault("not_an_entry", f"what is included is no entry of a ledger: {error}")
        return
    if found != index:
        yield Fault("wrong_index", f"the entry says that it is entry {found:,}, not {index:,}")


def check_consistency(proof: ConsistencyProof, old_note: bytes, trust: Trust) -> ProofReport:
    """Check that what a trusted head covers begins with all that an older head of the same log covers.

    old_note: the older head, as it was kept; it needs no witnesses, since its keeper is one. Raises
    EvidenceError where the proof is from another size than that head's, NoteError where either note is no
    head.
    """
    old = trust_head(old_note, replace(trust, quorum=NOBODY))
    new = trust_head(proof.note, replace(trust, origin=old.checkpoint.origin))
    if proof.old_size != old.checkpoint.size:
        raise EvidenceError(
            f"the proof is from {proof.old_size:,} entries; the head given with --old covers "
            f"{old.checkpoint.size:,}"
        )
    faults = [Fault(fault.code, f"the old head: {fault.message}") for fault in old.faults]
    faults += new.faults
    faults += compare_heads(old.checkpoint, new.checkpoint, proof.path)
    return ProofReport("consistency", new, tuple(faults), old=old.checkpoint)


def compare_heads(old: Checkpoint, new: Checkpoint, path: Sequence[bytes]) -> Iterator[Fault]:
    """Yield why the tree of one head is not shown to begin with that of an older one.

    path: a consistency proof (RFC 6962 section 2.1.2); it is empty from a tree without entries, of which
    every tree is a continuation.
    """
    if new.size < old.size:
        yield Fault("rollback", f"the new head covers {new.size:,} entries, the old one {old.size:,}")
    elif new.size == old.size and new.root != old.root:
        yield Fault("fork", f"two heads over {new.size:,} entries have different roots")
    elif old.size == 0:
        if path or old.root != EMPTY_ROOT:
            yield Fault("inconsistent", "a proof from a tree without entries is empty")
    elif not verify_consistency(old.size, new.size, old.root, new.root, path):
        message = f"the proof does not show that the {new.size:,} entries begin with the first {old.size:,}"
        yield Fault("inconsistent", message)
