"""Checks receipts offline, with public keys and without the ledger.

What is told, as faults (`Fault.code`), beside those of the proofs in it (`proof_check`):

- `other_heads`: its proofs lead to different heads, or are of other entries than they must be
- `wrong_leaf`: the leaf is not of this example, malformed, or contradicts itself
- `not_listed`: the path does not lead from the leaf to the tally's root
- `not_absent`: the neighbours do not show that the commitment is missing
- `wrong_use`: the entries of a step do not name the example, or do not belong together
- `incomplete`: the entries of a step are missing that the tally lists
- `used_after` (by the function of that name): the model learned from the example after a step, or may have
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import SIZE, unpacked
from gradwarden.runtime.evidence.proof_check import Fault, TrustedHead, trust_head
from gradwarden.runtime.evidence.receipt import Place, Receipt, UseEntries, exposed_in
from gradwarden.runtime.evidence.receipt_proofs import Body, FaultError, Under, closes, inclusion, proved
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.merkle import leaf_hash, verify_inclusion


@frozen
class StepUse:
    """A step that proposed the example, as its entries say. outcome: None where the head covers none."""

    step: int
    entry: int
    times: int
    outcome: str | None


@frozen
class ReceiptReport:
    """What a receipt shows. It holds if there are no faults; the rest is then what the ledger says.

    opened: how the run began. examples: how many the tally has; None where there is none. closed: whether no
    step came after it. used: whether the example is among them. leaf: what became of it. steps: where the
    receipt has their entries.
    """

    head: TrustedHead
    faults: tuple[Fault, ...]
    opened: Body
    examples: int | None
    closed: bool
    used: bool
    leaf: Body | None
    steps: tuple[StepUse, ...] | None

    @property
    def ok(self) -> bool:
        return not self.faults


def check_receipt(receipt: Receipt, trust: Trust) -> ReceiptReport:
    """Check a receipt. Raises EvidenceError or NoteError where a proof in it is malformed."""
    first = inclusion(receipt.opened)
    head = trust_head(first.note, trust)
    under = Under(head.checkpoint, first.note)
    opened: Body = {}
    tally: Body | None = None
    closed = False
    leaf: Body | None = None
    steps: tuple[StepUse, ...] | None = None
    faults: list[Fault] = []
    try:
        opened = proved(receipt.opened, under, "opened")[1]
        if receipt.tallied is not None:
            index, tally, _ = proved(receipt.tallied, under, "tallied")
            closed = closes(receipt.closing, index, under)
        leaf = _check_place(receipt, tally)
        if receipt.entries is not None:
            steps = tuple(_uses(receipt, under))
            _check_complete(steps, leaf, tally)
    except FaultError as error:
        faults.append(error.fault)
    return ReceiptReport(
        head,
        tuple(dict.fromkeys([*head.faults, *faults])),
        opened,
        None if tally is None else tally["examples"],
        closed,
        leaf is not None or bool(steps),
        leaf,
        steps,
    )


def used_after(reports: Iterable[ReceiptReport], step: int, *, salt_known: bool) -> Fault | None:
    """Return what is wrong with saying that nothing was learned from an example after a step.

    reports: of the run, or of all ranks of a job; each holds. Steps that proposed the example and let nothing
    of it through are no use. Where a run went on after its tally, or has none, nothing is shown of it.
    salt_known: whether the checker had the salt beforehand; under any other the example may stand in the same
    ledger once more, or not at all.
    """
    checked = tuple(reports)
    told = [report.leaf["exposed"] for report in checked if report.leaf is not None]
    last = max((exposed[1] for exposed in told if exposed is not None), default=-1)
    if last > step:
        return Fault("used_after", f"the model learned from it in step {last}, after step {step}")
    if not all(report.closed for report in checked):
        why = "the run was not sealed right behind a tally"
    elif not salt_known:
        why = "under another salt other steps may name it; give the one that you had before (--salt)"
    else:
        return None
    return Fault("used_after", f"it is not shown that nothing was learned from it after step {step}: {why}")


def _check_place(receipt: Receipt, tally: Body | None) -> Body | None:
    """Return what the tally says of the example, None where it is shown not to have it, or there is none."""
    if tally is None:
        if receipt.listed is not None or receipt.absent is not None:
            raise FaultError("other_heads", "the receipt names places in a tally and proves none")
        return None
    if (receipt.listed is None) == (receipt.absent is None):
        raise FaultError("not_listed", "the receipt must say either that it is listed or that it is absent")
    if receipt.listed is not None:
        return _check_listed(receipt.listed, receipt.commitment, tally)
    assert receipt.absent is not None, "one of the two is there"
    _check_absent(*receipt.absent, receipt.commitment, tally)
    return None


def _check_listed(place: Place, commitment: bytes, tally: Body) -> Body:
    if not _stands(place, tally, "uses"):
        raise FaultError("not_listed", "the path does not lead from the example's leaf to the tally's root")
    try:
        leaf: Body = orjson.loads(place.leaf)
        same = orjson.dumps(leaf, option=CANONICAL) == place.leaf and leaf["commitment"] == commitment.hex()
        right = same and _is_leaf(leaf)
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise FaultError("wrong_leaf", "the leaf in the tally is not of this example")
    return leaf


def _is_leaf(leaf: Body) -> bool:
    """Whether data have the form of a leaf of a tally, and do not contradict themselves.

    Raises KeyError, TypeError or AttributeError.
    """
    exposed, uses = leaf["exposed"], leaf["uses"]
    if type(uses) is not list or not all(map(_is_use, uses)):
        return False
    same: bool = exposed == exposed_in(uses)
    return same


def _is_use(use: Any) -> bool:
    decision, learned, other = use["decision"], use["learned"], use["other"]
    return (
        type(learned) is type(other) is list
        and _all_are(int, (*learned, *other, *decision["weights"].values()))
        and _all_are(str, (decision["policy"], decision["verdict"], *decision["rules"]))
        and learned == sorted(learned)
        and other == sorted(other)
        and (use["exposures"], use["times"]) == (len(learned), len(learned) + len(other))
    )


def _all_are(kind: type, values: Iterable[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _check_absent(before: Place | None, after: Place | None, commitment: bytes, tally: Body) -> None:
    size = tally["examples"]
    at = 0 if before is None else before.index + 1
    neighbours = [place for place in (before, after) if place is not None]
    if (
        (after is None) != (at == size)
        or (after is not None and after.index != at)
        or not all(len(place.leaf) == SIZE and _stands(place, tally, "commitments") for place in neighbours)
        or (before is not None and before.leaf >= commitment)
        or (after is not None and after.leaf <= commitment)
    ):
        raise FaultError("not_absent", "the neighbours do not show that the commitment is missing")


def _stands(place: Place, tally: Body, tree: str) -> bool:
    root = bytes.fromhex(tally[tree])
    return verify_inclusion(place.index, tally["examples"], leaf_hash(place.leaf), place.path, root)


def _uses(receipt: Receipt, under: Under) -> Iterator[StepUse]:
    """Yield the steps of a receipt, each checked."""
    assert receipt.entries is not None, "asked only where there are entries"
    proofs = receipt.entries.proofs
    last = -1
    for use in receipt.entries.uses:
        if use.step <= last:
            raise FaultError("wrong_use", "the steps are not in order")
        last = use.step

        def of(index: int, *kinds: str) -> tuple[int, Body, str]:
            if index not in proofs:
                raise FaultError("wrong_use", f"the receipt lacks the proof of entry {index:,}")
            found = proved(proofs[index], under, *kinds)
            if found[0] != index:
                raise FaultError("wrong_use", f"the proof is of entry {found[0]:,}, not of {index:,}")
            return found

        yield _check_use(use, receipt.commitment, of)


def _check_use(use: UseEntries, commitment: bytes, proved: Any) -> StepUse:
    _, step, _ = proved(use.step, "step")
    texts = [proved(index, "examples")[1] for index in use.examples]
    times = unpacked(body["commitments"] for body in (*texts, step)).count(commitment)
    if not times or any(body["step"] != step["step"] for body in texts):
        raise FaultError("wrong_use", f"step {step['step']:,} does not name the example")
    outcome = None
    if use.outcome is not None:
        index, body, outcome = proved(use.outcome, "committed", "refused", "resumed")
        if index <= use.step or body.get("step", step["step"]) != step["step"]:
            raise FaultError("wrong_use", f"entry {index:,} is not the outcome of step {step['step']:,}")
    return StepUse(step["step"], use.step, times, outcome)


def _check_complete(steps: tuple[StepUse, ...], leaf: Body | None, tally: Body | None) -> None:
    """Check that no step is missing that the tally lists."""
    if tally is None or leaf is None:
        return
    found = {step.step: step.times for step in steps}
    listed = Counter(step for use in leaf["uses"] for step in (*use["learned"], *use["other"]))
    missing = sorted(step for step, times in listed.items() if found.get(step, 0) < times)
    if missing:
        message = f"the receipt lacks the entries of step {missing[0]:,}, which the tally lists"
        raise FaultError("incomplete", message)
