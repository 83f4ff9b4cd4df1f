"""Checks receipts of jobs offline, with public keys and without any ledger.

The log of logs, which the given keys must have signed, says how many ranks there are and binds a head of
each; the receipt of a rank holds only under that very head. So a rank that is left out, was rewritten after
it was bound or lags shows in the receipt. Faults (`Fault.code`), beside those of receipts (`receipt_check`):

- `withheld_rank`: the receipt has nothing of a rank's ledger; whether the example was used there is not shown
- `unbound_rank`: what it has of a rank is not under the head that was bound, or is of another rank or job
- `lagging_rank`: the head that was bound of a rank is behind by more steps than the job allows
- `other_secret`: a rank's ledger commits to examples with another secret than the others
- `wrong_binding`: what is bound is not a head of each rank
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.evidence.job_receipt import JobReceipt
from gradwarden.runtime.evidence.proof_check import Fault, TrustedHead, trust_head
from gradwarden.runtime.evidence.receipt import Receipt, exposed_in
from gradwarden.runtime.evidence.receipt_check import ReceiptReport, check_receipt
from gradwarden.runtime.evidence.receipt_proofs import Body, FaultError, Under, inclusion, proved
from gradwarden.runtime.evidence.trust import NOBODY, Trust
from gradwarden.runtime.jobs.follower import RankHead
from gradwarden.runtime.jobs.layout import MOST_RANKS, rank_origin
from gradwarden.runtime.jobs.majority import odd_ranks
from gradwarden.runtime.ledger.entries import CANONICAL, JOB_OPENING


@frozen
class JobReceiptReport:
    """What the receipt of a job shows. It holds if there are no faults.

    head: of the log of logs. opened: how the job began. bound: the ranks of which a head is bound: all.
    ranks: what is shown of each whose receipt holds under that head. withheld: those of which nothing is.
    """

    head: TrustedHead
    faults: tuple[Fault, ...]
    opened: Body
    bound: tuple[int, ...]
    ranks: Mapping[int, ReceiptReport]
    withheld: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def used(self) -> bool | None:
        """Whether some rank named the example; None where that is not shown.

        That it was never named is shown by all ranks together: each is there, tallied, and sealed right
        behind its tally.
        """
        if any(report.used for report in self.ranks.values()):
            return True
        return False if self.ok and self.ranks and not self.open_ranks else None

    @property
    def open_ranks(self) -> tuple[int, ...]:
        """Ranks that may have named the example beside what is shown: not tallied, or gone on since."""
        return tuple(rank for rank, report in self.ranks.items() if not report.closed)

    @property
    def leaf(self) -> Body | None:
        """What became of the example on all ranks together, in the form of a leaf of one tally."""
        return _added([report.leaf for report in self.ranks.values() if report.leaf is not None])


def check_job_receipt(receipt: JobReceipt, trust: Trust) -> JobReceiptReport:
    """Check a receipt of a job. trust: of the log of logs; its head, which witnesses may cosign, binds all.

    Raises EvidenceError or NoteError where a proof in it is malformed.
    """
    first = inclusion(receipt.opened)
    head = trust_head(first.note, trust)
    under = Under(head.checkpoint, first.note)
    faults = list(head.faults)
    opened: Body = {}
    heads: Mapping[int, RankHead] = {}
    try:
        opened = proved(receipt.opened, under, JOB_OPENING)[1]
        heads = _bound(receipt.bound, opened, under)
    except FaultError as error:
        faults.append(error.fault)
    reports: dict[int, ReceiptReport] = {}
    for rank, bound in heads.items():
        own = receipt.ranks.get(rank)
        if own is not None:
            report = _check_rank(own, bound, opened, trust)
            faults += report.faults
            if report.ok and not head.faults:
                reports[rank] = report
        else:
            message = f"nothing of the ledger of rank {rank} is shown, nor whether the example was used there"
            faults.append(Fault("withheld_rank", message))
    faults += _lagging(heads, opened)
    for rank in odd_ranks({rank: report.opened["secret_commitment"] for rank, report in reports.items()}):
        message = f"rank {rank} commits to examples with another secret than the others"
        faults.append(Fault("other_secret", message))
        del reports[rank]
    withheld = tuple(rank for rank in heads if receipt.ranks.get(rank) is None)
    return JobReceiptReport(head, tuple(dict.fromkeys(faults)), opened, tuple(heads), reports, withheld)


def _bound(parts: Sequence[bytes], opened: Body, under: Under) -> dict[int, RankHead]:
    """Return the head that a binding has of each rank. Raises FaultError."""
    heads: list[RankHead] = []
    last, number = 0, None
    for part, text in enumerate(parts):
        index, body, _ = proved(text, under, "bound")
        if index <= last or (body["part"], body["parts"]) != (part, len(parts)):
            raise FaultError("wrong_binding", "the parts of the binding do not follow each other")
        if number not in (None, body["binding"]):
            raise FaultError("wrong_binding", "the receipt has parts of different bindings")
        last, number = index, body["binding"]
        heads += [RankHead(**head) for head in body["heads"]]
    ranks = range(min(opened["ranks"], MOST_RANKS + 1))
    due = [(rank, rank_origin(opened["origin"], rank)) for rank in ranks]
    if not 1 <= len(ranks) <= MOST_RANKS or [(head.rank, head.origin) for head in heads] != due:
        raise FaultError("wrong_binding", "what is bound is not a head of each rank")
    return {head.rank: head for head in heads}


def _check_rank(receipt: Receipt, bound: RankHead, opened: Body, trust: Trust) -> ReceiptReport:
    """Check what a receipt shows of one rank."""
    report = check_receipt(receipt, Trust(trust.keys, NOBODY, bound.origin))
    faults = [Fault(fault.code, f"rank {bound.rank}: {fault.message}") for fault in report.faults]
    head, member = report.head.checkpoint, report.opened.get("job") or {}
    place = {"id": opened["origin"], "rank": bound.rank, "ranks": opened["ranks"]}
    if (head.size, head.root.hex()) != (bound.size, bound.root):
        message = f"what is shown of rank {bound.rank} is not under the head that was bound of it"
        faults.append(Fault("unbound_rank", message))
    elif not faults and {name: member.get(name) for name in place} != place:
        faults.append(Fault("unbound_rank", f"what stands for rank {bound.rank} is of another rank or job"))
    return replace(report, faults=tuple(faults))


def _lagging(heads: Mapping[int, RankHead], opened: Body) -> Iterator[Fault]:
    most = max((head.step for head in heads.values()), default=0)
    for rank, head in heads.items():
        if most - head.step > opened["lag"]:
            message = f"rank {rank} is bound to step {head.step:,}, where others are at step {most:,}"
            yield Fault("lagging_rank", message)


def _added(leaves: Sequence[Body]) -> Body | None:
    """Add up the leaves of one example in several tallies."""
    if not leaves:
        return None
    uses: dict[bytes, dict[str, Any]] = {}
    for use in (use for leaf in leaves for use in leaf["uses"]):
        text = orjson.dumps(use["decision"], option=CANONICAL)
        before = uses.get(text)
        if before is not None:
            counts = {name: before[name] + use[name] for name in ("exposures", "times")}
            steps = {name: sorted(before[name] + use[name]) for name in ("learned", "other")}
            use = {"decision": use["decision"], **counts, **steps}
        uses[text] = use
    told = [use for _, use in sorted(uses.items())]
    return {
        "commitment": leaves[0]["commitment"],
        "exposed": exposed_in(told),
        "uses": told,
    }
