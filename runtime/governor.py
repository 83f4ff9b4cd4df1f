"""The one object that a training loop holds: every step is proposed, admitted, masked, and recorded.

    with Governor(program, model, optimizer, ledger=ledger) as governor:
        for batch in loader:
            with governor.step(batch.examples) as proposal:
                losses = per_example_loss(model(batch.x), batch.y)
                proposal.backward(losses)

Between entering and leaving a step three gates are passed: admission, gradient, commit. A refusal at any of
them leaves parameters, optimizer, buffers and generators as they were. An error in a gate refuses the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradwarden.policy.evaluation.admission import Admitted
from gradwarden.policy.paces import next_turn, paces
from gradwarden.policy.program import Program
from gradwarden.runtime.average import holds_average
from gradwarden.runtime.binding import bind_model
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.in_force import Choice, InForce
from gradwarden.runtime.jobs.job import Job
from gradwarden.runtime.joining import JOIN, Joined, Request, begin_run, join
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.masks import Engine, LayerRules
from gradwarden.runtime.memorization.measures import Measures
from gradwarden.runtime.options import NOTHING_KNOWN, Measuring, Privacy
from gradwarden.runtime.privacy.accounting import JointPlan
from gradwarden.runtime.progress import Progress
from gradwarden.runtime.ranks.data_parallel import check_equal
from gradwarden.runtime.ranks.keeping import Began
from gradwarden.runtime.records.milestones import whole_model
from gradwarden.runtime.roster import Examples, Roster
from gradwarden.runtime.run import Run
from gradwarden.runtime.steps.proposal import Proposal
from gradwarden.runtime.steps.step_gates import StepGates

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import ProcessGroup


def utc_day() -> date:
    """Return the current day in UTC."""
    return datetime.now(UTC).date()


class Governor:
    """Trains a model under a program.

    What is trained:
    model: as the loop calls it: bare, in DistributedDataParallel or under `fully_shard`.
    ledger: an open ledger; a new one gets the run's opening, one with entries is resumed.

    How gradients are made:
    engine: `fused` (one backward pass), `split` (reference), or `auto` (fused where its probe passes).
    layers: how classes of one's own weigh their rows; see `make_engine`.
    normaliser: what gradients are divided by; None: the number of examples proposed in the step.
    scaler: keeps the scale of losses for training in float16. clip_norm: the greatest L2 norm of the step's
    whole gradient, after the caps of bands.

    What the policy may ask for:
    privacy: how the units of privacy rules are sampled and noised, as a plan or with what else `Privacy`
    says; then `normaliser` must be a constant. measuring: see `Measuring`. holdout_key: of the hash by which
    tokens are held out, see `holdout_mask`.

    Who the examples are:
    dataset: (id, metadata) of examples known beforehand; the ledger then opens with a salted digest of them.
    secret: the file with the secret of the example commitments, made where it is missing; None:
    `<ledger path>.secret`.

    Who approved the policy:
    approvers: who must have signed every program, as it is passed here. signature: the content of its
    `.note` (`gradwarden build --sign`), which the ledger keeps.

    Which processes train:
    group: those that train this model together, each with its own part of every batch; that of the wrapper
    where there is one. Rank 0 has the ledger, the others pass None. All of them call every method alike.
    job: in the place of the ledger, on all of them: each decides and records its own part, in a ledger of its
    own, and tells the others nothing of it (`Job`).

    clock: gives the calendar day of a step, by default in UTC. `epoch` is the caller's to advance.

    Raises MaskError for a model that cannot be masked exactly, PrivacyError for privacy terms that cannot be
    met, NoteError for a program that no trusted key signed, LedgerError for a ledger of another run,
    RankError where the processes lose each other.
    """

    def __init__(
        self,
        program: Program,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ledger: Ledger | None,
        engine: Choice = "auto",
        layers: LayerRules | None = None,
        normaliser: float | None = None,
        scaler: GradScaler | None = None,
        clip_norm: float | None = None,
        privacy: Privacy | JointPlan | None = None,
        measuring: Measuring = NOTHING_KNOWN,
        holdout_key: int = 0,
        dataset: Iterable[tuple[str, Mapping[str, Any]]] | None = None,
        secret: Path | None = None,
        approvers: Approvers = NOBODY,
        signature: bytes | None = None,
        group: ProcessGroup | None = None,
        job: Job | None = None,
        clock: Callable[[], date] = utc_day,
    ) -> None:
        self._joined = joined = join(
            Request(
                program=program,
                model=model,
                optimizer=optimizer,
                ledger=ledger,
                group=group,
                job=job,
                normaliser=normaliser,
                clip_norm=clip_norm,
                scaler=scaler,
                privacy=Privacy.of(privacy),
                measuring=measuring,
                dataset=dataset,
                secret=secret,
                approvers=approvers,
                signature=signature,
                today=clock,
            )
        )
        self._in_force = InForce(joined.bound, joined.reduction, engine, layers)
        self._run = Run(joined, self._in_force, Progress(joined), clock, holdout_key)
        self._gates = StepGates(self._run, self.abandon)
        joined.measures.follow(self.program, self.model)
        try:
            self._begin()
        except BaseException:
            self.engine.close()
            self._gates.watch.remove()
            joined.measures.close()
            joined.give_up()
            raise

    def _begin(self) -> None:
        """Begin the run together with the other processes, or go on with it."""
        joined = self._joined
        check_equal(joined.peers, JOIN, self._replica)
        joined.keeping.look_at(joined.model, joined.ledger)
        counts, anchored, paid = joined.keeping.begin(self._open, joined.recorder)
        joined.budgets.follow(paid)
        joined.maintainer.begin(self.program, self.parameters, counts.next_step, anchored)
        self._run.progress.go_on(counts)
        self._unseen = counts.next_step > 0

    def _check_resumed(self) -> None:
        """Once after a run was resumed, raise LedgerError where it has gone back and does not say so."""
        if self._unseen:
            self._joined.check_resumed(self.next_step)
            self._unseen = False

    def _open(self) -> Began:
        """Open the run in the ledger or resume it; return what it goes on from."""
        return begin_run(self._joined, self.engine.name)

    def _replica(self) -> dict[str, str]:
        return self._joined.replica(self.program)

    # --- what a run is made of -----------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program in force."""
        return self._in_force.program

    @property
    def parameters(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The parameters of each band."""
        return self._in_force.parameters

    @property
    def engine(self) -> Engine:
        return self._in_force.engine

    @property
    def model(self) -> nn.Module:
        """The model without its wrapper."""
        return self._joined.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._joined.optimizer

    @property
    def ledger(self) -> Ledger | Unwritten:
        return self._joined.ledger

    @property
    def roster(self) -> Roster:
        """The examples that are known."""
        return self._joined.roster

    @property
    def measures(self) -> Measures:
        """What is remembered of examples for the signals that the governor measures."""
        return self._joined.measures

    @property
    def joined(self) -> Joined:
        """All else that the run is made of."""
        return self._joined

    @property
    def epoch(self) -> int:
        return self._run.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._run.epoch = epoch

    @property
    def next_step(self) -> int:
        return self._run.progress.next_step

    @property
    def effective_steps(self) -> int:
        """How many steps led to the weights in hand: all before `next_step` but those that were abandoned."""
        return self._run.progress.effective_steps

    @property
    def committed(self) -> int:
        return self._run.progress.committed

    @property
    def refused(self) -> int:
        return self._run.progress.refused

    # --- steps ---------------------------------------------------------------------------------------------

    def step(self, examples: Examples, *, signals: Mapping[str, Any] | None = None) -> Proposal:
        """Propose a step on a batch; use the result as a context manager.

        examples: (id, metadata) pairs, mappings with an `id`, or known ids, in the order of the losses.
        signals: values by declared name, a number or one number per example. Raises LedgerError where a run
        that was resumed holds weights that it saved earlier and had left: `rewind` says so.
        """
        self._check_idle("a step cannot begin")
        self._check_resumed()
        return Proposal(self._gates, examples, signals or {})

    def foresee(
        self, examples: Examples, *, signals: Mapping[str, Any] | None = None, band: str | None = None
    ) -> Admitted:
        """Return what would be decided about examples if the next step began now.

        band: if the next step began in which this band may be moved, where the policy paces it. Later steps
        may decide otherwise where rules read the clock, exposures or signals. Nothing is proposed; examples
        that were not known become known.
        """
        self._check_idle("examples cannot be looked at")
        rows = self.roster.rows(examples)
        context = self._run.context(rows, signals or {})
        if band is not None:
            context = replace(context, step=next_turn(self.program, band, context.step))
        return self.roster.admit(rows, context)

    def reach(self, examples: Examples, *, signals: Mapping[str, Any] | None = None) -> npt.NDArray[np.bool_]:
        """Return which bands each example might shape if the next step began now: bool [N, bands].

        Bands are in the policy's order; one that has a pace is looked at in its next turn. The rest is as of
        `foresee`.
        """
        found = self.foresee(examples, signals=signals).micro > 0
        for band in paces(self.program):
            place = self.program.band_names.index(band)
            found[:, place] = self.foresee(examples, signals=signals, band=band).micro[:, place] > 0
        return found

    def at_home(self, examples: Examples) -> npt.NDArray[np.bool_]:
        """Return which examples this rank may propose: bool [N]. All of them, but in a job `by_example`.

        Raises ExampleError like `step`; examples that were not known become known.
        """
        return self._joined.keeping.at_home(self.roster.commitments(self.roster.rows(examples)))

    def _check_idle(self, what: str) -> None:
        self._run.progress.check_idle(what)

    # --- the run -------------------------------------------------------------------------------------------

    def change_policy(self, program: Program, signature: bytes | None = None) -> None:
        """Put another program in force from the next step on; what was decided before stays as it was.

        The terms of privacy rules cannot change within a run: a budget is kept or it is none. signature: as
        the constructor's, of this program. Raises like the constructor; then the old program stays in force.
        """
        self._check_idle("the policy cannot change")
        joined, next_step = self._joined, self.next_step
        joined.approvers.demand(program, signature)
        joined.reduction.rest()
        bound = bind_model(program, self.model, self.optimizer)
        joined.budgets.check_same_terms(bound.program)
        joined.check_program(bound.program)
        joined.maintainer.prepare(bound.program, bound.parameters, next_step)
        digest = {"policy": bound.program.digest}
        self._in_force.change(bound, lambda: check_equal(joined.peers, "change the policy", lambda: digest))
        joined.measures.follow(self.program, self.model)
        joined.budgets.adopt(self.program)
        self._run.progress.follow(self.program)
        joined.recorder.change_policy(self.program, next_step, signature)
        joined.maintainer.enter(next_step)
        joined.roster.change_program(self.program)
        if joined.draws is not None:
            units = joined.private_units(self._run.bare_context())
            joined.draws.cover(len(self.roster.known()), units)

    def checkpoint(self, path: Path | str, *, state: bool = False) -> str:
        """Save the model's weights (safetensors), record their digests, and return the file's (hex SHA-256).

        The hashes of their parts are saved too, as `NAME.leaves`, so that a difference can be located.

        state: save and record the state of training too, as `NAME.state`, so that what follows can be
        executed again (`reexecution`); for a single process.
        Of several processes rank 0 saves. Raises MaskError where their weights are no longer equal.
        """
        joined = self._joined
        if state and (joined.peers.size > 1 or not joined.reduction.whole):
            raise MaskError(
                "the state of training of several processes is not saved", help="leave `state` out"
            )
        self._check_idle("a checkpoint cannot be saved")
        self._check_resumed()
        joined.reduction.rest()
        check_equal(joined.peers, "save a checkpoint", self._replica)
        whole, target, step = whole_model(self.model), Path(path), self.next_step
        if state:
            joined.ranks.collect(
                "save the state of training",
                lambda: joined.milestones.training_state(step, self.optimizer, target),
            )
        averaged = holds_average(self._in_force.every_parameter())
        return joined.milestones.weights(step, whole, target, averaged=averaged)

    def supply(self, note: bytes) -> None:
        """Record, before the first step, what those who supply the data have signed.

        note: the content of `MANIFEST.note` (`gradwarden sign-data`); `verify --data` holds the manifest
        against it. Raises NoteError where it is no such note.
        """
        self._run.progress.check_first("a supply", "recorded")
        self._joined.milestones.supply(note)

    def derive(self, base: Path) -> None:
        """Record, before the first step, that training goes on from the weights that a ledger names last.

        base: the ledger of the run that made them; it is read, and left as it is.
        """
        self._run.progress.check_first("a base", "named")
        self._joined.milestones.derive(base)

    def rewind(self, checkpoint: Path | str) -> None:
        """Record that training goes on from weights that this run saved earlier, and the model holds again.

        The steps that led elsewhere are abandoned: they stay in the ledger, and what they spent (exposures,
        budgets) stays spent. Steps are numbered on. Call it after a crash, once the ledger is open again, or
        at any time between two steps. The state of the optimizer is the caller's to put back. Raises
        LedgerError where the ledger does not name the file, or the model holds other weights.
        """
        self._check_idle("a run cannot go back")
        joined = self._joined
        joined.reduction.rest()
        check_equal(joined.peers, "go back", self._replica)
        effective = joined.milestones.rewind(self.next_step, whole_model(self.model), Path(checkpoint))
        self._unseen = False
        self._run.progress.go_back(effective)

    def tally(self) -> None:
        """Record the tally of all examples so far, from which their owners get receipts (`evidence.tally`).

        The ledger is read once, so that this takes about as long as verifying its chain.
        """
        self._check_idle("the run cannot be tallied")
        self._joined.milestones.tally()

    def close(self) -> None:
        """Seal the ledger and give the model back as it was. Safe to repeat."""
        progress, joined = self._run.progress, self._joined
        if progress.over:
            return
        self._check_idle("the run cannot be closed")
        try:
            joined.peers.collect("close the run", lambda: None)
        except BaseException:
            self.abandon()
            raise
        self._release()
        joined.keeping.close(self.ledger, progress.totals)

    def abandon(self) -> None:
        """Leave the run unsealed, so that it can be resumed, with everything written. Safe to repeat."""
        self._release()
        self._joined.keeping.abandon(self.ledger)

    def _release(self) -> None:
        """End the run, and give the model back as it was."""
        self._run.progress.over = True
        self.engine.close()
        self._gates.watch.remove()
        self._joined.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()
