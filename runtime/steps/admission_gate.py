"""The admission gate: what a step's examples may shape, decided before the model is run on any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import Context, IntArray
from gradwarden.policy.decision import VERDICTS, Decision, step_verdict
from gradwarden.policy.evaluation.admission import Admitted
from gradwarden.policy.program import SCALE
from gradwarden.runtime.privacy.budget import PrivateRows
from gradwarden.runtime.rehearsal import short_of_rehearsal
from gradwarden.runtime.run import Run
from gradwarden.runtime.steps.gates import Finding


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided of one step.

    Of the batch of all processes: admitted (the decisions), verdict, active (the bands that are reached or
    noised), recorded, covered and private (bool [N]: what the ledger mentions; what a privacy rule covers;
    what of that has weight). Of this process's examples, those in `own`: decisions, weights (float64
    [B, bands]), units (the private ones), hold_outs (int64 [B]: of how many tokens one is held out,
    0 for none). refusal: why the step cannot be let through, None where it can.
    """

    context: Context
    admitted: Admitted
    verdict: str
    active: tuple[str, ...]
    recorded: npt.NDArray[np.bool_]
    covered: npt.NDArray[np.bool_]
    private: npt.NDArray[np.bool_]
    own: slice
    decisions: Sequence[Decision]
    weights: npt.NDArray[np.float64]
    units: PrivateRows
    hold_outs: IntArray
    refusal: Finding | None


def admit(run: Run, context: Context, batch: IntArray, own: slice) -> Admission:
    """Decide a step. batch: the rows of all processes' examples. own: where this process's are among them.

    Raises PrivacyError where private examples are not those that the run's sampler drew.
    """
    joined, program = run.joined, run.in_force.program
    admitted: Admitted = joined.roster.admit(batch, context)
    weights: npt.NDArray[np.float64] = admitted.micro[own] / SCALE
    refusal = _short_of_rehearsal(run, context, admitted)
    if refusal is not None:
        weights = np.zeros_like(weights)
    covered = joined.budgets.covered(admitted)
    if joined.draws is not None:
        joined.draws.check(batch, covered)
    decisions = [admitted.decisions[i] for i in admitted.decision_ids[own].tolist()]
    rows = batch[own]
    units = joined.budgets.private_rows(
        decisions, lambda place, attribute: joined.roster.unit(int(rows[place]), attribute)
    )
    return Admission(
        context=context,
        admitted=admitted,
        verdict=step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()}),
        active=() if refusal is not None else _active(run, admitted),
        recorded=~covered | (not joined.budgets.withholds),
        covered=covered,
        private=covered & admitted.micro.any(axis=1),
        own=own,
        decisions=decisions,
        weights=weights,
        units=units,
        hold_outs=_hold_outs(decisions, any(limit.hold_out for limit in program.limits)),
        refusal=refusal,
    )


def check_whole_units(run: Run, admission: Admission, batch: IntArray, starts: Sequence[int]) -> None:
    """Raise PrivacyError where a privacy unit is on several processes.

    starts: the first row of each process in the batch, and the end.
    """
    budgets, roster, admitted = run.joined.budgets, run.joined.roster, admission.admitted
    if not budgets.covered(admitted).any():
        return
    budgets.check_whole(
        [admitted.decisions[i] for i in admitted.decision_ids.tolist()],
        lambda place, attribute: roster.unit(int(batch[place]), attribute),
        starts,
    )


def _short_of_rehearsal(run: Run, context: Context, admitted: Admitted) -> Finding | None:
    """Return why a step that rehearses too little is refused; then no example of it has weight."""
    short = short_of_rehearsal(run.in_force.program, context.step, admitted)
    if short is None:
        return None
    band, detail = short
    return Finding("admission", "rehearsal_short", detail, band)


def _active(run: Run, admitted: Admitted) -> tuple[str, ...]:
    reached = [bool(column.any()) for column in admitted.micro.T]
    noised = run.joined.budgets.noised_bands
    names = run.in_force.program.band_names
    return tuple(band for band, hit in zip(names, reached, strict=True) if hit or band in noised)


def _hold_outs(decisions: Sequence[Decision], asked: bool) -> IntArray:
    """Return of how many tokens each example must have one held out. asked: whether any rule does.

    Of several rules the one that holds out most decides.
    """
    if not asked:
        return np.zeros(len(decisions), dtype=np.int64)
    return np.array(
        [
            min((o.one_in for o in decision.obligations if o.one_in and any(decision.micro)), default=0)
            for decision in decisions
        ],
        dtype=np.int64,
    )
