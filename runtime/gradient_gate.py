"""The gradient gate of a governed step: what becomes of the summed gradients before the optimizer sees them.

In this order: sum over the ranks, take the scale of losses off, add what is private with its noise, pull
maintained bands, check that all is finite and reaches no further than it may, cap norms. It fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from gradwarden.policy.program import Program
from gradwarden.runtime.errors import RankError
from gradwarden.runtime.gates import (
    Finding,
    apply_caps,
    band_norms,
    check_gradients,
    check_reach,
    clip_whole,
    divide,
    raised,
)
from gradwarden.runtime.loss_scaling import LossScaling
from gradwarden.runtime.maintenance import Maintainer
from gradwarden.runtime.privacy.budget import BudgetBook
from gradwarden.runtime.proposal import Proposal
from gradwarden.runtime.reduction import Reduction


@dataclass(frozen=True, slots=True)
class GradientGate:
    """Passes the gradients of one step under one program.

    parameters: of each band. normaliser: None where gradients are divided by the number of examples.
    clip_norm: the greatest L2 norm of the whole gradient, None where there is none. apart: whether each rank
    decides its own part of a step, this one `rank`.
    """

    program: Program
    parameters: Mapping[str, Sequence[nn.Parameter]]
    reduction: Reduction
    scaling: LossScaling
    budgets: BudgetBook
    maintainer: Maintainer
    normaliser: float | None
    clip_norm: float | None
    apart: bool
    rank: int

    def admit(self, proposal: Proposal, graded: int) -> Finding | None:
        """Return why the gradients cannot go through; otherwise leave them as the optimizer is to take them.

        graded: bit i is set where parameter i has a gradient on any rank. Sets the proposal's norms. An error
        on the way is a finding; apart, where the others cannot be told of it any more, a RankError.
        """
        try:
            self._sum(proposal, graded)
            finding = self._add_private(proposal)
            finding = finding or self.maintainer.pull(proposal.active)
            finding = finding or self._check(proposal)
            if finding is None:
                self._cap(proposal)
            return finding
        except Exception as error:
            if self.apart:
                raise RankError(f"rank {self.rank}: {raised('the gradient gate', error)}") from error
            return Finding("gradient", "gate_failed", raised("the gradient gate", error))

    def _sum(self, proposal: Proposal, graded: int) -> None:
        everything = [parameter for members in self.parameters.values() for parameter in members]
        self.reduction.settle(everything, graded)
        self.scaling.divide(everything)
        if self.apart and self.normaliser is None:
            divide(everything, proposal.total)

    def _add_private(self, proposal: Proposal) -> Finding | None:
        if not self.budgets:
            return None
        # Before anything private is added: a refused step is not paid for, so it may not tell of it.
        findings = check_gradients(self.parameters, band_norms(self.parameters, self.reduction.total))
        if findings:
            return findings[0]
        self.budgets.release(self.parameters, proposal.normaliser, self.reduction)
        return None

    def _check(self, proposal: Proposal) -> Finding | None:
        proposal.norms = band_norms(self.parameters, self.reduction.total)
        findings = check_gradients(self.parameters, proposal.norms)
        findings += check_reach(proposal.norms, proposal.active)
        return findings[0] if findings else None

    def _cap(self, proposal: Proposal) -> None:
        caps = {cap.band: float(cap.norm) for cap in self.program.gradient_caps}
        for band, factor in apply_caps(self.parameters, proposal.norms, caps).items():
            proposal.norms[band] = (proposal.norms[band] or 0.0) * factor
        if self.clip_norm is not None:
            proposal.norms = clip_whole(self.parameters, proposal.norms, self.clip_norm)
