"""Entries that a receipt proves: all of one ledger under the same head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence.proof_check import Fault
from gradwarden.runtime.evidence.proof_file import InclusionProof, parse_proof
from gradwarden.runtime.ledger.entries import OPENINGS, MalformedLineError, decode
from gradwarden.runtime.ledger.merkle import leaf_hash, verify_inclusion
from gradwarden.runtime.ledger.note import Checkpoint

Body = Mapping[str, Any]


@frozen
class Under:
    """The head to which all proofs of a ledger's entries must lead, and its note."""

    checkpoint: Checkpoint
    note: bytes


class FaultError(Exception):
    """Something in a receipt that does not hold."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(code, message)


def inclusion(text: bytes) -> InclusionProof:
    """Read the proof of an entry. Raises EvidenceError."""
    proof = parse_proof(text)
    if not isinstance(proof, InclusionProof):
        raise EvidenceError("the receipt holds a proof that is of no entry")
    return proof


def proved(text: bytes, under: Under, *kinds: str) -> tuple[int, Body, str]:
    """Return index, body and kind of an entry that is proved under the receipt's head, of one of some kinds.

    Raises FaultError where that does not hold, EvidenceError for what is no proof.
    """
    proof, checkpoint = inclusion(text), under.checkpoint
    if proof.note != under.note:
        raise FaultError("other_heads", "the proofs of the receipt lead to different heads")
    line = proof.line
    if line is None or not verify_inclusion(
        proof.index, checkpoint.size, leaf_hash(line), proof.path, checkpoint.root
    ):
        raise FaultError(
            "wrong_path", f"the path does not lead from entry {proof.index:,} to the head's root"
        )
    try:
        index, kind, _, body = decode(line)
    except MalformedLineError as error:
        raise FaultError("not_an_entry", f"what is proved is no entry of a ledger: {error}") from None
    if index != proof.index:
        raise FaultError("wrong_index", f"the entry says that it is entry {index:,}, not {proof.index:,}")
    if kind not in kinds or (kind in OPENINGS and index != 0):
        raise FaultError("other_heads", f"the proof is of a `{kind}` entry, not of `{kinds[0]}`")
    return index, body, kind


def closes(closing: Sequence[bytes], tally: int, under: Under) -> bool:
    """Return whether a run was sealed right after its tally: nothing but heads stand between.

    closing: proofs of the entries from there on. Raises FaultError where they are of others.
    """
    kind = ""
    for due, proof in enumerate(closing, tally + 1):
        index, _, kind = proved(proof, under, "head", "sealed")
        if index != due or (kind == "sealed") != (due == tally + len(closing)):
            raise FaultError("other_heads", f"entry {index:,} does not close the run after its tally")
    return kind == "sealed"
