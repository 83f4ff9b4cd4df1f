"""Takes each proposed step through its gates, together with the other ranks, to one outcome.

A proposal is begun when it was admitted. When its block is left, the ranks say what they found; the gradient
gate passes the gradients of all; the intent must be durable; then the optimizer moves. A refusal on the way
leaves parameters, optimizer, buffers and generators as they were; so does an error, which refuses the step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from gradwarden.runtime.errors import LedgerError, MaskError, RankError
from gradwarden.runtime.ranks.agreement import Agreement, Stance
from gradwarden.runtime.ranks.data_parallel import first_finding
from gradwarden.runtime.ranks.keeping import deserting
from gradwarden.runtime.run import Run
from gradwarden.runtime.steps.gates import Finding, raised
from gradwarden.runtime.steps.gradient_gate import GradientGate
from gradwarden.runtime.steps.moves import Moves
from gradwarden.runtime.steps.optimizer_watch import OptimizerWatch
from gradwarden.runtime.steps.starvation import Reach

if TYPE_CHECKING:
    from gradwarden.runtime.steps.proposal import Proposal


class StepGates:
    """The gates of one run. abandon: leaves it unsealed, where nothing more can be trained."""

    def __init__(self, run: Run, abandon: Callable[[], None]) -> None:
        self.run = run
        self._abandon = abandon
        self.watch = OptimizerWatch(run.joined.optimizer, lambda: run.progress.open is not None)

    def begin(self, proposal: Proposal) -> None:
        """Record the intent of a proposal that was admitted."""
        self.run.progress.propose(proposal)

    def withdraw(self, proposal: Proposal, error: BaseException) -> None:
        """Refuse a proposal that not every rank could enter, if its intent was recorded."""
        progress, joined = self.run.progress, self.run.joined
        if progress.open not in (None, proposal):
            return
        if joined.keeping.apart and not progress.over:
            self._desert(proposal, error)
            return
        joined.reduction.end()
        if progress.open is proposal:
            progress.open = None
            finding = Finding("admission", "interrupted", raised("a rank's admission", error))
            progress.refuse(proposal, finding)

    def conclude(self, proposal: Proposal, error: BaseException | None) -> None:
        """Take a proposal through the gradient and commit gates, or refuse it. error: of its block."""
        progress, joined = self.run.progress, self.run.joined
        progress.open = None
        try:
            own = proposal.finding(error)
            if own is not None and error is not None and joined.reduction.astray:
                # What others wait for comes no more. Their wait ends with this process, and so does its run.
                progress.refuse(proposal, own)
                self._abandon()
                return
            finding = self._pass(proposal, own)
        except LedgerError:
            proposal.restore()
            joined.budgets.forget()
            joined.scaling.forget()
            raise
        except BaseException as fault:
            if joined.keeping.apart:
                # What became of the step elsewhere is not known, so it gets no outcome here.
                proposal.restore()
                self._abandon()
                raise
            reason = "ranks_lost" if isinstance(fault, RankError) else "interrupted"
            progress.refuse(proposal, Finding("commit", reason, raised("the step's end", fault)))
            raise
        finally:
            joined.reduction.end()
        if finding is not None:
            progress.refuse(proposal, finding)
            return
        self._commit(proposal)

    def _pass(self, proposal: Proposal, own: Finding | None) -> Finding | None:
        """Return why the step cannot be taken, which all ranks then know. own: what this rank found."""
        joined, step = self.run.joined, proposal.context.step
        unsaid = joined.keeping.settle(joined.recorder)
        if proposal.active or joined.keeping.apart:
            joined.reduction.finish(own is None and unsaid is None)
        parts = joined.ranks.collect(f"leave step {step}", lambda: proposal.part(own))
        proposal.take_losses(parts)
        finding = first_finding([part.finding for part in parts])
        graded = reduce(or_, (part.graded for part in parts))
        agreed = self._agree(proposal, finding, graded, unsaid)
        if agreed.finding is not None:
            return agreed.finding
        passed = joined.ranks.collect(f"commit step {step}", lambda: self._gradients(proposal, agreed.graded))
        return first_finding(passed)

    def _agree(
        self, proposal: Proposal, finding: Finding | None, graded: int, unsaid: LedgerError | None
    ) -> Agreement:
        """Come to one outcome with ranks that were not asked yet. unsaid: why the intent is not durable."""
        in_force, recorded = self.run.in_force, proposal.recorded
        names = in_force.program.band_names
        stance = Stance(
            step=proposal.context.step,
            epoch=proposal.context.epoch,
            examples=int(recorded.sum()),
            active=[name in proposal.active for name in names],
            weights=proposal.admitted.micro[recorded].sum(axis=0).tolist(),
            graded=graded,
            parameters=len(in_force.every_parameter()),
            finding=finding,
            leaving=unsaid is not None,
            draw=0 if self.run.joined.draws is None else self.run.joined.draws.mark,
        )
        agreed = self.run.joined.keeping.agree(stance, unsaid)
        proposal.active = tuple(name for name, reached in zip(names, agreed.active, strict=True) if reached)
        proposal.whole = agreed.whole
        examples = stance.examples if agreed.whole is None else agreed.whole.count
        noised = self.run.joined.budgets.noised_bands
        weights = {name: w for name, w in zip(names, agreed.weights, strict=True) if name not in noised}
        proposal.reach = Reach(proposal.active, weights, examples)
        return agreed

    def _gradients(self, proposal: Proposal, graded: int) -> Finding | None:
        """Pass the gradient gate with the gradients of all ranks, then wait for a durable intent.

        graded: bit i is set where parameter i has a gradient on any rank.
        """
        joined = self.run.joined
        finding = GradientGate(joined, self.run.in_force).admit(proposal, graded)
        if finding is None and not joined.keeping.apart:  # apart, ranks have waited before they agreed
            joined.recorder.settle()
        return finding

    def _commit(self, proposal: Proposal) -> None:
        joined = self.run.joined
        try:
            moves = self._moves(proposal)
            with self.watch.taking():
                joined.optimizer.step()
            proposal.maintained = joined.maintainer.hold(proposal.active)
            proposal.moved = None if moves is None else moves.norms()
            joined.scaling.commit()
        except BaseException:
            # How far it moved is unknown: the step gets no outcome, and nothing more is trained from here.
            self._abandon()
            raise
        self.run.progress.commit(proposal)

    def _moves(self, proposal: Proposal) -> Moves | None:
        joined = self.run.joined
        if not joined.measures.records(proposal.context.step):
            return None
        return Moves(self.run.in_force.parameters, joined.reduction.total)

    def _desert(self, proposal: Proposal, error: BaseException) -> None:
        """Tell the other ranks of a job that this one does not come to the step; its run is over."""
        run, joined = self.run, self.run.joined
        finding = Finding("admission", "interrupted", raised("the admission", error))
        bands, parameters = len(run.in_force.program.band_names), len(run.in_force.every_parameter())
        together = joined.reduction.passes.collective  # then the others wait before their forward pass
        with suppress(RankError, MaskError):
            if not together:
                if not proposal.begun:
                    joined.reduction.begin()
                joined.reduction.finish(False)
            stance = deserting(run.progress.next_step, run.epoch, bands, parameters, finding)
            joined.keeping.desert(stance, met=not together)
        joined.reduction.end()
        run.progress.open = None
        self._abandon()
