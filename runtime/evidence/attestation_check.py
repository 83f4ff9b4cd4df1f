"""Checks attestations offline: with public keys, and without torch; with the ledger if it is at hand.

What is wrong with one (`Fault.code`):

- `untrusted`: no given key has signed the envelope
- `wrong_type`: it is of another kind than those that `gradwarden attest` makes
- `wrong_shape`: a field of the predicate is missing, or of another form than the published schema says
- `unknown_key`, `bad_signature`, `ambiguous_key`, `unwitnessed`, `wrong_origin`, `wrong_path`,
  `not_an_entry`, `wrong_index`: the head in it, or the proof of the ledger's entry about the weights, does
  not hold
- `wrong_claim`: what it says of its head or weights is not what the proved entry says; or, with the ledger,
  not what the ledger says
- `wrong_subject`: it is of other weights than the file in hand
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import EvidenceError, HeadMismatch, NoteError, ProofError
from gradwarden.runtime.evidence.dsse import envelope_signers, load_json, parse_envelope
from gradwarden.runtime.evidence.proof_check import Fault, ProofReport, check_inclusion
from gradwarden.runtime.evidence.proof_file import InclusionProof, parse_proof
from gradwarden.runtime.evidence.prover import read_head
from gradwarden.runtime.evidence.statement import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    make_predicate,
    predicate_schema,
    tensor_digests,
)
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.keys import PublicKey


@frozen
class AttestationReport:
    """What is known of an attestation; it holds if there are no faults.

    signers: the given keys that signed it. statement: None where none of them did, or it is of another kind.
    proof: of the ledger's entry about the weights. matched: how each file in hand is a subject: `file`, or
    `tensors` where all its tensors are and the file is another.
    """

    signers: tuple[PublicKey, ...]
    statement: Mapping[str, Any] | None
    proof: ProofReport | None
    matched: Mapping[str, str]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def predicate(self) -> Mapping[str, Any]:
        """The predicate of an attestation whose statement is known."""
        assert self.statement is not None
        found: Mapping[str, Any] = self.statement["predicate"]
        return found


def check_attestation(
    data: bytes, trust: Trust, weights: Sequence[Path] = (), attesters: Sequence[PublicKey] = ()
) -> AttestationReport:
    """Check an attestation. Raises EvidenceError for what is no envelope, OSError for unreadable weights.

    trust: the keys and witnesses of the ledger. weights: files that must be subjects of it. attesters: the
    keys that may sign it; none: those of the ledger.
    """
    envelope = parse_envelope(data)
    signers = envelope_signers(envelope, attesters or trust.keys)
    if not signers:
        fault = Fault("untrusted", "no given key has signed the attestation")
        return AttestationReport((), None, None, {}, (fault,))
    try:
        statement = _statement(envelope.payload_type, envelope.payload)
    except _UnfitError as error:
        return AttestationReport(signers, None, None, {}, (Fault(error.code, str(error)),))
    proof, faults = _check_proof(statement["predicate"], trust)
    faults += _claims(statement, proof)
    matched = {}
    for path in weights:
        how = _match(path, statement)
        if how is None:
            faults.append(Fault("wrong_subject", f"`{path}` is not among the weights attested"))
        else:
            matched[str(path)] = how
    return AttestationReport(signers, statement, proof, matched, tuple(faults))


class _UnfitError(ValueError):
    """A payload that is signed and is not ours to understand."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _statement(payload_type: str, payload: bytes) -> dict[str, Any]:
    """Read a Statement v1 (in-toto, spec/v1/statement.md, section "Fields") with a predicate of ours."""
    if payload_type != PAYLOAD_TYPE:
        raise _UnfitError("wrong_type", f"the payload is of the type `{payload_type}`, no in-toto statement")
    try:
        statement = load_json(payload, "the statement")
    except EvidenceError as error:
        raise _UnfitError("wrong_type", error.message) from None
    if type(statement) is not dict or statement.get("_type") != STATEMENT_TYPE:
        raise _UnfitError("wrong_type", "the payload is no in-toto statement of version 1")
    if statement.get("predicateType") != PREDICATE_TYPE:
        raise _UnfitError("wrong_type", "the statement is not about training under a policy")
    for rules, part in ((_SUBJECTS, "subject"), (predicate_schema(), "predicate")):
        fault = best_match(Draft202012Validator(rules).iter_errors(statement.get(part)))
        if fault is not None:
            where = fault.json_path.replace("$", part, 1)
            raise _UnfitError("wrong_shape", f"`{where}`: {fault.message[:200]}")
    return statement


_SUBJECTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "digest": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
        },
        "required": ["digest"],
    },
}


def _check_proof(predicate: Mapping[str, Any], trust: Trust) -> tuple[ProofReport | None, list[Fault]]:
    """Check the proof of the ledger's entry about the weights, and the head that it leads to."""
    try:
        proof = parse_proof(predicate["checkpoint"]["proof"].encode())
        if not isinstance(proof, InclusionProof):
            raise EvidenceError("it is no inclusion proof")
        report = check_inclusion(proof, trust)
    except (EvidenceError, NoteError, UnicodeEncodeError) as error:
        told = getattr(error, "message", "it is not text")
        return None, [Fault("wrong_path", f"the proof of the checkpoint cannot be read: {told}")]
    return report, list(report.faults)


def _claims(statement: Mapping[str, Any], proof: ProofReport | None) -> Iterator[Fault]:
    """Yield where the statement says something else than the head and the entry that were proved."""
    if proof is None or proof.entry is None:
        return
    predicate, head = statement["predicate"], proof.head.checkpoint
    told = predicate["ledger"]
    if (told["origin"], told["size"], told["root"]["sha256"]) != (head.origin, head.size, head.root.hex()):
        yield Fault("wrong_claim", "the head that it names is not the one that the proof leads to")
    _, kind, body = proof.entry
    saved = predicate["checkpoint"]
    if kind != "checkpoint":
        yield Fault("wrong_claim", f"the proof is of a `{kind}` entry, not of one about weights")
    elif (saved["step"], saved["file"], saved["digest"]["sha256"]) != (
        body["step"], body["file"], body["digest"],
    ):  # fmt: skip
        yield Fault("wrong_claim", "the weights that it names are not those of the ledger's entry")
    elif _file_subject(statement) is None:
        yield Fault("wrong_claim", "the file that the ledger names is not among its subjects")


def _file_subject(statement: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the subject that is the checkpoint file."""
    digest = statement["predicate"]["checkpoint"]["digest"]["sha256"]
    return next((s for s in statement["subject"] if s["digest"].get("sha256") == digest), None)


def _match(path: Path, statement: Mapping[str, Any]) -> str | None:
    """Say how a file is a subject: as itself, or by all of its tensors; None: it is not."""
    whole = _file_subject(statement)
    if whole is None:
        return None
    if whole["digest"]["sha256"] == file_digest(path):
        return "file"
    start = f"{whole.get('name', '')}#"
    named = ((subject.get("name", ""), subject["digest"].get("sha256")) for subject in statement["subject"])
    attested = {name.removeprefix(start): digest for name, digest in named if name.startswith(start)}
    found = tensor_digests(path)
    return "tensors" if found and found == attested else None


def compare_ledger(report: AttestationReport, ledger: Path, facts: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what an attestation says of its run that the ledger does not say.

    facts: of the ledger's verification, which has found nothing wrong.
    """
    if report.statement is None or report.proof is None:
        return
    claimed = dict(report.predicate)
    proof = parse_proof(claimed["checkpoint"]["proof"].encode())
    try:
        given = make_predicate(ledger, read_head(proof.note), facts)
    except (HeadMismatch, ProofError) as error:
        yield Fault("wrong_claim", f"the ledger in hand is another one: {error.message}")
        return
    different = sorted(name for name in given if name in claimed and claimed[name] != given[name])
    if different:
        told = ", ".join(f"`{name}`" for name in different)
        yield Fault("wrong_claim", f"the ledger says something else of {told}")
