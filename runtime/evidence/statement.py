"""What an attestation says of a trained model: an in-toto Statement about its weights.

A Statement (https://github.com/in-toto/attestation, spec/v1/statement.md) binds a predicate to subjects,
which are matched by digest:

- subjects: the checkpoint file, and each of its tensors where it is a safetensors file, by the SHA-256 of the
  tensor's stored bytes; the same tensors in another file are so found, too
- predicate: the policies that governed the run, what it did, which of its steps led to these weights, what it
  spent of each privacy budget, and the head of its ledger; with it the inclusion proof of the ledger's
  `checkpoint` entry, which names the file's digest. So the weights are tied to a signed (and perhaps
  witnessed) head by hashes, not by the attester's word

The published JSON Schema of the predicate is `schemas/attestation.schema.json`. Names are in lowerCamelCase
as in-toto asks; decimals are strings; fields that a reader does not know are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import EvidenceError, ProofError, WeightsError
from gradwarden.runtime.evidence.prover import SignedHead, entries_of, prove_inclusion
from gradwarden.runtime.records.branches import REWOUND, Branches
from gradwarden.runtime.weights.stored import StoredWeights

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://gradwarden.dev/attestation/training/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

MAX_TENSORS = 100_000


def make_statement(
    ledger: Path, weights: Path, head: SignedHead, facts: Mapping[str, Any], assurance: str
) -> bytes:
    """Return the canonical JSON of the statement about weights that a verified ledger names last.

    facts: of the verification, which has found nothing wrong (`verify_ledger`). assurance: on whose word the
    ledger stands. Raises ProofError where the head does not cover the ledger's last checkpoint, HeadMismatch
    where it is not of the ledger, EvidenceError for weights that cannot be described.
    """
    predicate = make_predicate(ledger, head, facts)
    predicate["verification"] = {
        "status": "OK",
        "assurance": assurance,
        "decisionsReplayed": facts["decisions_replayed"],
        "budgetsRecomputed": facts["budgets_recomputed"],
        "verifier": f"gradwarden {version('gradwarden')}",
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subjects(weights),
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    try:
        return orjson.dumps(statement, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise EvidenceError(f"`{weights.name}` has names that cannot be written: {error}") from None


def subjects(weights: Path) -> list[dict[str, Any]]:
    """Return the subjects for a file of weights: itself, and the tensors in it."""
    found = [_subject(weights.name, file_digest(weights))]
    found += [_subject(f"{weights.name}#{name}", digest) for name, digest in tensor_digests(weights).items()]
    return found


def tensor_digests(weights: Path) -> dict[str, str]:
    """Return the hex SHA-256 of each tensor's stored bytes, by name; none where it is no safetensors file."""
    try:
        with StoredWeights([weights]) as stored:
            if len(stored.tensors) > MAX_TENSORS:
                raise EvidenceError(f"`{weights.name}` has more than {MAX_TENSORS:,} tensors")
            return {
                name: sha256(stored.data(tensor, 0, tensor.size)).hexdigest()
                for name, tensor in stored.tensors.items()
            }
    except (OSError, WeightsError):
        return {}


def _subject(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def make_predicate(ledger: Path, head: SignedHead, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a verified ledger says of its run, under one of its heads; all but `verification`."""
    opening: dict[str, Any] = {}
    policies: list[dict[str, Any]] = []
    saved: tuple[int, dict[str, Any]] | None = None
    branches = Branches()
    for index, kind, body in entries_of(ledger, {"opened", "policy_changed", "checkpoint", REWOUND}):
        branches.apply(kind, body)
        if kind == "opened":
            opening = body
        if kind == "checkpoint":
            saved = index, body
        elif kind != REWOUND:
            policies.append(_policy(body["policy"], body.get("step", 0)))
    if saved is None:
        raise ProofError("the ledger names no checkpoint")
    index, checkpoint = saved
    weights = branches.find(checkpoint)
    proof = prove_inclusion(ledger, index, head)
    size, root = head.checkpoint.size, head.checkpoint.root.hex()
    return {
        "run": opening["run"],
        "ledger": {"origin": head.checkpoint.origin, "size": size, "root": {"sha256": root}},
        "policies": policies,
        "modelMap": opening["model_map"] or None,
        "bands": opening["bands"],
        "checkpoint": {
            "step": checkpoint["step"],
            "file": checkpoint["file"],
            "digest": {"sha256": checkpoint["digest"]},
            "proof": proof.encode().decode(),
        },
        "effectiveSteps": [
            {"first": first, "last": end - 1} for first, end in ([] if weights is None else weights.leading)
        ],
        "steps": {
            "total": facts["steps"],
            "committed": facts["committed"],
            "refused": facts["refused"],
        },
        "decisions": dict(facts["verdicts"]),
        "privacy": [_spending(terms, facts["privacy"].get(terms["rule"])) for terms in opening["privacy"]],
    }


def _policy(policy: Mapping[str, Any], step: int) -> dict[str, Any]:
    return {
        "name": policy["name"],
        "version": policy["version"],
        "digest": {"sha256": policy["digest"]},
        "fromStep": step,
    }


def _spending(terms: Mapping[str, str], spent: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a privacy rule allows, and what was spent of it."""
    return {
        "rule": terms["rule"],
        "unit": terms["unit"],
        "clip": terms["clip"],
        "samplingRate": terms["sampling_rate"],
        "noiseMultiplier": terms["noise_multiplier"],
        "delta": terms["delta"],
        "epsilonAllowed": terms["epsilon"],
        "epsilonSpent": "0" if spent is None else spent["epsilon"],
        "steps": 0 if spent is None else spent["steps"],
    }


@cache
def predicate_schema() -> dict[str, Any]:
    """Return the published JSON Schema of the predicate."""
    text = files("gradwarden.runtime").joinpath("schemas/attestation.schema.json").read_bytes()
    loaded: dict[str, Any] = orjson.loads(text)
    return loaded
