"""Who keeps the record where several processes train one model.

`Keeping`: rank 0 keeps one ledger for all. Every step is gathered first; all ranks decide the batch of all.
`KeepingApart`: each rank of a job keeps its own, and decides its own part of a step. A step then costs no
message but those without which no gradient can be summed (`agreement`, and `meeting` where the model is
sharded); all else that ranks tell each other comes before the first step, with checkpoints and changes of
policy, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.errors import LedgerError, RankError
from gradwarden.runtime.jobs.job import Job
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.maintenance import Standing
from gradwarden.runtime.ranks.agreement import Agreement, Stance, agree
from gradwarden.runtime.ranks.apart import check_apart, homes
from gradwarden.runtime.ranks.data_parallel import OneRank, Ranks, check_equal, weights_digest
from gradwarden.runtime.ranks.meeting import Meeting, RankPart
from gradwarden.runtime.records.history import Counts
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.steps.gates import Finding
from gradwarden.runtime.terms import ledger_of

T = TypeVar("T")

Began = tuple[Counts, Standing | None, Mapping[str, int]]
"""What a run goes on from: its counts, its anchors, and the steps that privacy rules have paid for."""


class Keeping:
    """One ledger for all processes, of which rank 0 has it.

    peers: the processes that train the model. ranks: those that decide and record a step together.
    """

    apart = False

    def __init__(self, peers: Ranks) -> None:
        self.peers = self.ranks = peers

    def prepare(self, secret: Path | None) -> None:
        """Get ready for `open`, together. secret: where that of the commitments is to be."""

    def open(self, ledger: Ledger | None) -> Ledger | Unwritten:
        """Return where this rank writes. Raises LedgerError for a ledger too many, or none."""
        return ledger_of(ledger, self.peers.rank)

    def secret(self, given: Path | None) -> Path | None:
        """Return where the secret of the commitments is; None: beside the ledger."""
        return given

    def check(self, program: Program) -> None:
        """Raise MaskError for what cannot be decided so."""

    def lead(self, what: str, produce: Callable[[], T]) -> T:
        """Run this where the ledger is, on every rank that has one; return what came of it there."""
        return self.peers.lead(what, produce, lambda: None)

    def begin(self, produce: Callable[[], Began], recorder: Recorder) -> Began:
        """Open the run in the ledger, or go on with it; return what it goes on from."""
        return self.lead("join the run", produce)

    def look_at(self, model: nn.Module, ledger: Ledger | Unwritten) -> None:
        """Take note, together, of what a ledger's opening will say of the model."""

    def opening(self) -> Mapping[str, Any]:
        """Return further fields of a ledger's opening."""
        return {}

    def check_opened(self, opened: Mapping[str, Any]) -> None:
        """Raise LedgerError where a ledger that is to be resumed is not this one's."""
        if "job" in opened:
            raise LedgerError(
                "the ledger is that of a rank of a job", help="resume the job with `job=`, on all its ranks"
            )

    def at_home(self, commitments: bytes) -> npt.NDArray[np.bool_]:
        """Return which examples, by their joined commitments, this rank may propose."""
        return np.ones(len(commitments) // SIZE, dtype=np.bool_)

    def save(self, write: Callable[[], T], record: Callable[[T], None], ledger: Ledger | Unwritten) -> T:
        """Have weights written once, and recorded; return what is known of them."""

        def both() -> T:
            saved = write()
            record(saved)
            ledger.flush()
            return saved

        return self.lead("save a checkpoint", both)

    def meet(self, step: int, epoch: int, bands: int, parts: Sequence[RankPart]) -> Sequence[RankPart]:
        """Return what the examples of all ranks weigh in each part that they run together."""
        return parts

    def desert(self, stance: Stance, met: bool) -> None:
        """Tell the others that this rank comes no further in a step. met: whether no `meet` is due before."""

    def settle(self, recorder: Recorder) -> LedgerError | None:
        """Wait, where no other rank does, until the intent is durable; return why it cannot be."""
        return None

    def agree(self, stance: Stance, unsaid: LedgerError | None) -> Agreement:
        """Return what this rank knows of the step: everything. unsaid: what `settle` returned."""
        return Agreement(None, tuple(stance.active), tuple(stance.weights), stance.graded, stance.finding)

    def stepped(self, step: int) -> None:
        """Take note that the step before `step` has its outcome."""

    def close(self, ledger: Ledger | Unwritten, totals: Mapping[str, int]) -> None:
        """Seal the record of the run. Raises LedgerError."""
        ledger.close(totals)

    def abandon(self, ledger: Ledger | Unwritten | None) -> None:
        """Leave the record unsealed, with everything written. ledger: None before it was opened."""
        if ledger is not None:
            ledger.close()


class KeepingApart(Keeping):
    """A ledger for each rank of a job."""

    apart = True

    def __init__(self, peers: Ranks, job: Job) -> None:
        super().__init__(peers)
        self.ranks = OneRank()
        self._job = job
        self._name = self._weights = ""
        self._meeting = Meeting(peers)

    def prepare(self, secret: Path | None) -> None:
        job, size = self._job, self.peers.size
        terms = {"placement": job.placement, "interval": str(job.every), "lag": str(job.lag)}
        check_equal(self.peers, "open the job", lambda: terms)
        self._name = self.peers.lead("open the job", lambda: self._job.begin(size, secret), lambda: None)

    def open(self, ledger: Ledger | None) -> Ledger | Unwritten:
        if ledger is not None:
            raise LedgerError("a rank of a job was given a ledger", help="pass `ledger=None` beside `job=`")
        return self._job.join(self._name, self.peers.rank, self.peers.size)

    def secret(self, given: Path | None) -> Path | None:
        return self._job.secret(given)

    def check(self, program: Program) -> None:
        check_apart(program, self._job.placement)

    def lead(self, what: str, produce: Callable[[], T]) -> T:
        return self.peers.collect(what, produce)[self.peers.rank]

    def begin(self, produce: Callable[[], Began], recorder: Recorder) -> Began:
        """As above; a rank that a crash left behind leaves out the steps that others have begun.

        Budgets have paid for what they have on the rank that counts most: a step may have moved the model
        where any rank holds that it may.
        """
        found = self.peers.collect("join the run", produce)
        counts, standing, own = found[self.peers.rank]
        latest = max(told.next_step for told, _, _ in found)
        paid = {rule: max(others[rule] for _, _, others in found) for rule in own}
        if counts.next_step < latest:
            recorder.event("skipped", {"step": counts.next_step, "until": latest})
        if paid != own:
            recorder.event("paid", {"step": latest, "rules": paid})
        self._job.sign()
        return replace(counts, next_step=latest), standing, paid

    def look_at(self, model: nn.Module, ledger: Ledger | Unwritten) -> None:
        """As above. The pieces of a sharded model are gathered for it, so none or all ranks do this."""
        if self.peers.any("open the ledgers", not ledger.entries_on_open):
            self._weights = weights_digest(model)

    def opening(self) -> Mapping[str, Any]:
        return {"job": self._job.member(self._weights)}

    def check_opened(self, opened: Mapping[str, Any]) -> None:
        self._job.check_member(opened)

    def at_home(self, commitments: bytes) -> npt.NDArray[np.bool_]:
        if self._job.placement == "anywhere":
            return super().at_home(commitments)
        own: npt.NDArray[np.bool_] = homes(commitments, self.peers.size) == self.peers.rank
        return own

    def save(self, write: Callable[[], T], record: Callable[[T], None], ledger: Ledger | Unwritten) -> T:
        """As above; rank 0 writes, every rank records, and all are bound up to there."""
        saved = self.peers.lead("save a checkpoint", write, lambda: None)

        def keep() -> None:
            record(saved)
            self._job.sign()
            ledger.flush()

        self.peers.collect("record a checkpoint", keep)
        self.peers.lead("bind a checkpoint", self._job.bind, lambda: None)
        return saved

    def meet(self, step: int, epoch: int, bands: int, parts: Sequence[RankPart]) -> Sequence[RankPart]:
        return self._meeting.hold(step, epoch, bands, parts)

    def desert(self, stance: Stance, met: bool) -> None:
        if met:
            agree(self.peers, stance)
        else:
            self._meeting.leave(stance.step, stance.epoch, len(stance.active))

    def settle(self, recorder: Recorder) -> LedgerError | None:
        try:
            recorder.settle()
        except LedgerError as error:
            return error
        return None

    def agree(self, stance: Stance, unsaid: LedgerError | None) -> Agreement:
        """Come to one outcome with the others. Raises RankError, or what kept this rank from recording."""
        try:
            return agree(self.peers, stance)
        except RankError as error:
            raise unsaid or error from None

    def stepped(self, step: int) -> None:
        self._job.stepped(step)

    def close(self, ledger: Ledger | Unwritten, totals: Mapping[str, int]) -> None:
        try:
            self.peers.collect("seal the ledgers", lambda: ledger.close(totals))
            self.peers.lead("seal the job", self._job.seal, lambda: None)
        finally:
            self._job.close()

    def abandon(self, ledger: Ledger | Unwritten | None) -> None:
        try:
            super().abandon(ledger)
        finally:
            self._job.close()


def keeping_of(peers: Ranks, job: Job | None) -> Keeping:
    return Keeping(peers) if job is None else KeepingApart(peers, job)


def deserting(step: int, epoch: int, bands: int, parameters: int, finding: Finding) -> Stance:
    """Return the stance of a rank that does not come to a step at all."""
    return Stance(step, epoch, 0, [False] * bands, [0] * bands, 0, parameters, finding, leaving=True)
