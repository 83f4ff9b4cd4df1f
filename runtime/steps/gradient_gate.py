"""The gradient gate of a governed step: what becomes of the summed gradients before the optimizer sees them.

In this order: sum over the ranks, take the scale of losses off, add what is private with its noise, pull
maintained bands, check that all is finite and reaches no further than it may, cap norms. It fails closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradwarden.runtime.errors import RankError
from gradwarden.runtime.in_force import InForce
from gradwarden.runtime.joining import Joined
from gradwarden.runtime.steps.gates import (
    Finding,
    apply_caps,
    band_norms,
    check_gradients,
    check_reach,
    clip_whole,
    divide,
    raised,
)

if TYPE_CHECKING:
    from gradwarden.runtime.steps.proposal import Proposal


@dataclass(frozen=True, slots=True)
class GradientGate:
    """Passes the gradients of steps."""

    joined: Joined
    in_force: InForce

    def admit(self, proposal: Proposal, graded: int) -> Finding | None:
        """Return why the gradients cannot go through; otherwise leave them as the optimizer is to take them.

        graded: bit i is set where parameter i has a gradient on any rank. Sets the proposal's norms. An error
        on the way is a finding; apart, where the others cannot be told of it any more, a RankError.
        """
        try:
            self._sum(proposal, graded)
            finding = self._add_private(proposal)
            finding = finding or self.joined.maintainer.pull(proposal.active)
            finding = finding or self._check(proposal)
            if finding is None:
                self._cap(proposal)
            return finding
        except Exception as error:
            if self.joined.keeping.apart:
                rank = self.joined.peers.rank
                raise RankError(f"rank {rank}: {raised('the gradient gate', error)}") from error
            return Finding("gradient", "gate_failed", raised("the gradient gate", error))

    def _sum(self, proposal: Proposal, graded: int) -> None:
        joined, everything = self.joined, self.in_force.every_parameter()
        joined.reduction.settle(everything, graded)
        joined.scaling.divide(everything)
        if proposal.whole is not None and joined.terms.normaliser is None:
            divide(everything, proposal.whole.count)

    def _add_private(self, proposal: Proposal) -> Finding | None:
        budgets, reduction, parameters = self.joined.budgets, self.joined.reduction, self.in_force.parameters
        if not budgets:
            return None
        # Before anything private is added: a refused step is not paid for, so it may not tell of it.
        findings = check_gradients(parameters, band_norms(parameters, reduction.total))
        if findings:
            return findings[0]
        budgets.release(parameters, proposal.normaliser, reduction)
        return None

    def _check(self, proposal: Proposal) -> Finding | None:
        parameters = self.in_force.parameters
        proposal.norms = band_norms(parameters, self.joined.reduction.total)
        findings = check_gradients(parameters, proposal.norms)
        findings += check_reach(proposal.norms, proposal.active)
        return findings[0] if findings else None

    def _cap(self, proposal: Proposal) -> None:
        parameters, greatest = self.in_force.parameters, self.joined.terms.clip_norm
        caps = {cap.band: float(cap.norm) for cap in self.in_force.program.gradient_caps}
        for band, factor in apply_caps(parameters, proposal.norms, caps).items():
            proposal.norms[band] = (proposal.norms[band] or 0.0) * factor
        if greatest is not None:
            proposal.norms = clip_whole(parameters, proposal.norms, greatest)
