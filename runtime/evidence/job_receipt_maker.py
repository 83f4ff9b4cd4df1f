"""Makes receipts of jobs (`job_receipt`): of each rank's ledger, under the head that is bound of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import EvidenceError, LedgerError
from gradwarden.runtime.evidence.job_receipt import JobReceipt
from gradwarden.runtime.evidence.prover import SignedHead, entries_of, head_over
from gradwarden.runtime.evidence.receipt import Receipt
from gradwarden.runtime.evidence.receipt_maker import make_receipt, read_under
from gradwarden.runtime.jobs.follower import RankHead, bound_heads
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.entries import JOB_OPENING
from gradwarden.runtime.ledger.reader import read_entries


@frozen
class MadeReceipt:
    """A receipt of a job, and why ranks are left out of it, by rank."""

    receipt: JobReceipt
    without: Mapping[int, str]


@frozen
class Binding:
    """The last whole binding that a head of the log of logs covers. parts: the indices of its entries."""

    ranks: int
    parts: tuple[int, ...]
    heads: Mapping[int, RankHead]


def make_job_receipt(
    folder: Path, example: str, committer: Committer, head: SignedHead, *, entries: bool = False
) -> MadeReceipt:
    """Return the receipt of one example of a job, under a head of its log of logs.

    entries: as of `make_receipt`. Raises HeadMismatch where the head is not the log's, EvidenceError where
    nothing is bound under it, or where no rank can have a receipt.
    """
    log = log_path(folder)
    binding = last_binding(log, head.checkpoint.size)
    read = read_under(log, head, binding.parts)
    made: dict[int, Receipt | None] = {}
    without: dict[int, str] = {}
    first: EvidenceError | None = None
    for rank in range(binding.ranks):
        try:
            made[rank] = _of_rank(rank_path(folder, rank), example, committer, binding.heads[rank], entries)
        except LedgerError as error:
            made[rank], without[rank] = None, error.message
            first = first or EvidenceError(f"rank {rank}: {error.message}", help=error.help)
    if first is not None and len(without) == binding.ranks:
        raise first
    receipt = JobReceipt(
        example, committer.salt(example), read.prove(0), tuple(map(read.prove, binding.parts)), made
    )
    return MadeReceipt(receipt, without)


def _of_rank(path: Path, example: str, committer: Committer, bound: RankHead, entries: bool) -> Receipt:
    """Return what a rank's ledger says of the example under the head that is bound of it."""
    if not path.exists():
        raise EvidenceError(f"its ledger, `{path.name}`, is missing")
    if not bound.size:
        raise EvidenceError("nothing of its ledger is bound")
    first = next(read_entries(path), None)
    if first is None:
        raise EvidenceError(f"its ledger, `{path.name}`, holds no entry")
    if first.body.get("secret_commitment") != committer.secret_commitment:
        raise EvidenceError("the secret is not that of its ledger")
    head = head_over(path, bound.size)
    if head.checkpoint.root.hex() != bound.root:
        raise EvidenceError(f"the first {bound.size:,} entries of its ledger are not those that were bound")
    salt, commitment = committer.salt(example), committer.commit(example)
    return make_receipt(path, example, salt, commitment, head, entries=entries)


def last_binding(log: Path, size: int) -> Binding:
    """Return the last whole binding among the first entries of a log of logs. Raises EvidenceError."""
    ranks, open_parts = 0, dict[int, Mapping[str, Any]]()
    last: dict[int, Mapping[str, Any]] = {}
    for index, kind, body in entries_of(log, {JOB_OPENING, "bound"}):
        if index >= size:
            break
        if kind == JOB_OPENING:
            ranks = body["ranks"]
            continue
        if body["part"] == 0:
            open_parts = {}
        open_parts[index] = body
        if len(open_parts) == body["parts"]:
            last = open_parts
    heads = bound_heads(iter(last.values()))
    if not ranks or heads.keys() != set(range(ranks)):
        raise EvidenceError(
            f"`{log.name}` binds no heads of all ranks", help="`gradwarden bind` binds what they have signed"
        )
    return Binding(ranks, tuple(last), heads)
