"""The receipt that the owner of one example gets of a job: what each of its ranks did with it.

A file in canonical JSON (RFC 8785) and a newline:

    {"format": "gradwarden/job-receipt/2", "id", "salt", "opened", "bound", "ranks"}

- id, salt (hex): as of a receipt of one ledger (`receipt`).
- opened, bound: C2SP tlog-proofs of entries of the log of logs: of how the job began, which says how many
  ranks it has, and of the parts of one binding, which has a signed head of each.
- ranks: by number, a receipt of the rank's ledger under the very head that was bound, without "format", "id"
  and "salt"; null for a rank whose ledger was not at hand, or does not hold that head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import open_commitment
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence.receipt import (
    Receipt,
    parse_canonical,
    receipt_from,
    salt_from,
    whole_receipt,
)
from gradwarden.runtime.ledger.entries import CANONICAL

FORMAT = "gradwarden/job-receipt/2"

_FIELDS = ("format", "id", "salt", "opened", "bound", "ranks")


@frozen
class JobReceipt:
    """A receipt of a job, see the module. ranks: by number; None for those without."""

    id: str
    salt: bytes
    opened: bytes
    bound: tuple[bytes, ...]
    ranks: Mapping[int, Receipt | None]

    @property
    def commitment(self) -> bytes:
        return open_commitment(self.salt, self.id)

    @property
    def withheld(self) -> tuple[int, ...]:
        """The ranks that it has nothing of."""
        return tuple(rank for rank, receipt in sorted(self.ranks.items()) if receipt is None)

    def encode(self) -> bytes:
        told = {
            "format": FORMAT,
            "id": self.id,
            "salt": self.salt.hex(),
            "opened": self.opened.decode(),
            "bound": [proof.decode() for proof in self.bound],
            "ranks": {
                str(rank): None if receipt is None else receipt.told() for rank, receipt in self.ranks.items()
            },
        }
        return orjson.dumps(told, option=CANONICAL) + b"\n"


def parse_any(data: bytes) -> Receipt | JobReceipt:
    """Read a receipt of one ledger, or of a job. Raises EvidenceError unless printing it gives the bytes."""
    return parse_canonical(data, _any_receipt)


def _any_receipt(told: Any) -> Receipt | JobReceipt:
    return _job_receipt(told) if told.get("format") == FORMAT else whole_receipt(told)


def _job_receipt(told: Mapping[str, Any]) -> JobReceipt:
    if set(told) != set(_FIELDS):
        raise EvidenceError("the file is no receipt of a job")
    example, salt = told["id"], salt_from(told["salt"])
    if type(example) is not str:
        raise ValueError
    return JobReceipt(
        example,
        salt,
        told["opened"].encode(),
        tuple(proof.encode() for proof in told["bound"]),
        {
            int(rank): None if own is None else receipt_from(example, salt, own)
            for rank, own in told["ranks"].items()
        },
    )
