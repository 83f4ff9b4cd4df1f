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

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.context import Context, IntArray
from gradwarden.policy.decision import VERDICTS, step_verdict
from gradwarden.policy.program import Program
from gradwarden.runtime.agreement import Agreement, Stance
from gradwarden.runtime.average import holds_average
from gradwarden.runtime.binding import bind_model
from gradwarden.runtime.data_parallel import (
    ROOT,
    check_equal,
    check_replica,
    first_finding,
    names_digest,
    weights_digest,
)
from gradwarden.runtime.errors import (
    ExampleError,
    LedgerError,
    MaskError,
    PrivacyError,
    RankError,
    StarvationHalt,
)
from gradwarden.runtime.expiry import ExpiryWatch
from gradwarden.runtime.gates import Finding, ForeignWatch, raised
from gradwarden.runtime.gradient_gate import GradientGate
from gradwarden.runtime.history import NOTHING_YET, Counts, read_history
from gradwarden.runtime.jobs.job import Job
from gradwarden.runtime.keeping import deserting, keeping_of
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.program_signature import Approvers
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.loss_scaling import LossScaling
from gradwarden.runtime.maintenance import Maintainer, Standing
from gradwarden.runtime.masks import Engine, LayerRules, make_engine
from gradwarden.runtime.memorization.measures import Measures
from gradwarden.runtime.milestones import Milestones, whole_model
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.privacy.budget import BudgetBook, PrivateWays
from gradwarden.runtime.privacy.clipping import Clipping
from gradwarden.runtime.privacy.conditions import Trust
from gradwarden.runtime.privacy.draws import DrawWatch
from gradwarden.runtime.privacy.sampling import MixedSampler, PoissonSampler
from gradwarden.runtime.proposal import Proposal
from gradwarden.runtime.recorder import Recorder
from gradwarden.runtime.reductions import reduction_of
from gradwarden.runtime.roster import Examples, Roster
from gradwarden.runtime.starvation import StarvationGuard
from gradwarden.runtime.terms import RunTerms, committer_of

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import ProcessGroup

WHOLE = "give every rank the whole model: the stages of a pipeline cannot be governed"


def utc_day() -> date:
    """Return the current day in UTC."""
    return datetime.now(UTC).date()


class Governor:
    """Trains a model under a program.

    ledger: an open ledger; a new one gets the run's opening, one with entries is resumed.
    engine: `fused` (one backward pass), `split` (reference), or `auto` (fused where its probe passes).
    layers: how classes of one's own weigh their rows; see `make_engine`.
    normaliser: what gradients are divided by; None: the number of examples proposed in the step.
    scaler: keeps the scale of losses for training in float16. clip_norm: the greatest L2 norm of the step's
    whole gradient, after the caps of bands.
    privacy: how the privacy rules' units are sampled and noised; then `normaliser` must be a constant.
    clock: gives the calendar day of a step, by default in UTC. secret: the file with the secret of the
    example commitments, made where it is missing; None: `<ledger path>.secret`. noise_seed: fixes the privacy
    noise, for tests. clipping: over what a privacy unit's gradient is clipped jointly, see `clip_groups`.
    secure_noise: draw the privacy noise so that its low bits give nothing away, see `SecureNoise`.
    sampler: what private examples are drawn by; each step is then held to its draw. Its rows are places in
    `dataset`. on_trust: conditions of the privacy claim that the caller answers for, see `Trust`.
    withhold_private: leave examples under privacy rules out of the ledger.
    dataset: (id, metadata) of examples known beforehand; the ledger then opens with a salted digest of them.
    model: as the loop calls it: bare, in DistributedDataParallel or under `fully_shard`.
    group: the processes that train this model together, each with its own part of every batch; that of the
    wrapper where there is one. Rank 0 has the ledger, the others pass None. All of them call every method
    alike. job: in the place of the ledger, on all of them: each decides and records its own part, in a ledger
    of its own, and tells the others nothing of it (`Job`).
    reference_losses, clusters, measure_every: for the signals that the governor measures itself
    (`gradwarden.policy.known_signals`): the loss of a model that never saw the example, by id; which
    examples are copies of one text, by id; how many steps come to one in which depth is measured.
    holdout_key: of the hash by which tokens are held out, see `holdout_mask`.
    trusted: where keys are given, every program must be signed by `signers` of them, as it is passed here.
    signature: the content of its `.note` (`gradwarden build --sign`), which the ledger keeps.

    `epoch` is the caller's to advance. Raises MaskError for a model that cannot be masked exactly,
    PrivacyError for privacy terms that cannot be met, NoteError for a program that no trusted key signed,
    LedgerError for a ledger of another run, RankError where the processes lose each other.
    """

    def __init__(
        self,
        program: Program,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ledger: Ledger | None,
        engine: Literal["auto", "fused", "split"] = "auto",
        layers: LayerRules | None = None,
        normaliser: float | None = None,
        scaler: GradScaler | None = None,
        clip_norm: float | None = None,
        privacy: JointPlan | None = None,
        clock: Callable[[], date] = utc_day,
        secret: Path | None = None,
        noise_seed: int | None = None,
        clipping: Clipping = "flat",
        secure_noise: bool = False,
        sampler: PoissonSampler | MixedSampler | None = None,
        on_trust: Collection[Trust] = (),
        withhold_private: bool = False,
        dataset: Iterable[tuple[str, Mapping[str, Any]]] | None = None,
        group: ProcessGroup | None = None,
        reference_losses: Mapping[str, float] | None = None,
        clusters: Mapping[str, str] | None = None,
        measure_every: int = 16,
        holdout_key: int = 0,
        trusted: Sequence[PublicKey] = (),
        signers: int = 1,
        signature: bytes | None = None,
        job: Job | None = None,
    ) -> None:
        for name, value in (("normaliser", normaliser), ("clip norm", clip_norm)):
            if value is not None and not 0.0 < value < float("inf"):
                raise MaskError(f"a {name} is a number above 0, not `{value}`")
        self.optimizer = optimizer
        self.foreign = ForeignWatch()
        self.reduction = reduction_of(model, group, self.foreign)
        self.keeping = keeping_of(self.reduction.ranks, job)
        self.ranks, self.peers = self.keeping.ranks, self.keeping.peers
        self.model = self.reduction.module
        self.normaliser, self.clip_norm = normaliser, clip_norm
        self.holdout_key = holdout_key
        self.epoch = 0
        self.next_step = 0
        self.committed = 0
        self.refused = 0
        self.exposed = 0
        self._abandoned = 0
        self._clock = clock
        self._engine_choice = engine
        self._layer_rules = layers
        self._closed = False
        self._open_step: Proposal | None = None
        self._expiries = ExpiryWatch()

        def join() -> None:
            self._approvers = Approvers(tuple(trusted), signers)
            self._approvers.demand(program, signature)
            self._signature = signature
            self.scaling = LossScaling(scaler, optimizer, private=bool(privacy_rules(program)))
            private = PrivateWays(
                noise_seed,
                clipping,
                secure_noise,
                frozenset(on_trust),
                sampler is not None,
                withhold_private,
                self.peers.rank,
            )
            self._attach(program, self.keeping.open(ledger), privacy, secret, private, dataset, clusters)
            self.measures = Measures(self.roster, reference_losses, measure_every)
            self.references = self.measures.references
            self._draws = self._watch_draws(sampler, dataset is not None)

        check_equal(self.peers, "join the run", lambda: {"parameters": names_digest(self.model)}, WHOLE)
        self.keeping.prepare(secret)
        try:
            self.peers.collect("join the run", join)
        except BaseException:
            self._give_up()
            raise
        self.engine = self._make_engine(self.program)
        self.measures.follow(self.program, self.model)
        try:
            check_equal(self.peers, "join the run", self._replica)
            standing, anchored = self.keeping.begin(self._begin, self.recorder)
            if self.budgets:
                self.budgets.follow(self.ranks.lead("join the run", self.budgets.paid, dict))
            self.maintainer.begin(self.program, self.parameters, standing[0], anchored)
        except BaseException:
            self.engine.close()
            self.measures.close()
            self._give_up()
            raise
        self.next_step, self.committed, self.refused, self.exposed, self._abandoned = standing

    def _give_up(self) -> None:
        """Leave what was opened for a governor that could not be made; a ledger that was given stays open."""
        if self.keeping.apart:
            self.keeping.abandon(None)

    def _attach(
        self,
        program: Program,
        ledger: Ledger | Unwritten,
        privacy: JointPlan | None,
        secret: Path | None,
        private: PrivateWays,
        dataset: Iterable[tuple[str, Mapping[str, Any]]] | None,
        clusters: Mapping[str, str] | None,
    ) -> None:
        self.ledger = ledger
        check_replica(self.model, self.peers)
        bound = bind_model(program, self.model, self.optimizer)
        self.program, self.parameters = bound.program, bound.parameters
        self.budgets = BudgetBook(self.program, privacy, self.normaliser, private)
        if self.budgets and self.keeping.apart:
            raise PrivacyError(
                "a rank of a job does not know which private examples others have",
                help="give rank 0 one ledger for all, without `job=`",
            )
        self._check_spread(self.program)
        if self.keeping.apart and clusters is not None:
            raise MaskError(
                "a rank of a job cannot count copies on other ranks", help="leave `clusters=` out"
            )
        committer = committer_of(self.ledger, self.keeping.secret(secret))
        self.roster = Roster(self.program, committer, clusters)
        self.roster.add(dataset or ())
        self._terms = RunTerms(
            committer.secret_commitment,
            self.normaliser,
            self.clip_norm,
            self.budgets.declaration(),
            None if dataset is None else self.roster.digest(self._withheld()),
        )
        self.starvation = StarvationGuard(self.program.starvation)
        self.recorder = Recorder(self.ledger, sparing=self.budgets.withholds)
        self.maintainer = Maintainer(self.ranks, self.recorder, self.model, self.ledger.path)
        self._milestones = Milestones(self.keeping, self.ledger, self.recorder)

    def _withheld(self) -> Collection[int]:
        """Return the rows of the data set that the ledger does not mention."""
        return self._units().keys() if self.budgets.withholds else ()

    def _units(self) -> dict[int, tuple[str, str]]:
        """Return the privacy unit of every known example that a privacy rule covers, by row."""
        rows = np.arange(len(self.roster.known()))
        context = Context(self.next_step, self.epoch, self._clock())
        admitted = self.roster.admit(rows, context)
        numbers = admitted.decision_ids.tolist()
        return {
            row: self.budgets.unit_of(admitted.decisions[numbers[row]], partial(self.roster.unit, row))
            for row in np.flatnonzero(self.budgets.covered(admitted)).tolist()
        }

    def _watch_draws(self, sampler: PoissonSampler | MixedSampler | None, known: bool) -> DrawWatch | None:
        if sampler is None or not self.budgets or self.ranks.rank != ROOT:
            return None
        if not known:
            raise PrivacyError(
                "steps cannot be held to a sampler whose rows are not known",
                help="pass `dataset=` with the examples in the order that the sampler numbers them",
            )
        return self.budgets.watch(sampler, len(self.roster.known()), self._units())

    def check_draw(self, rows: IntArray, covered: npt.NDArray[np.bool_]) -> None:
        """Hold a step to its sampler, if there is one; on rank 0 for all. covered: by a privacy rule."""
        if self._draws is not None:
            self._draws.check(rows, covered)

    def _check_spread(self, program: Program) -> None:
        """Raise MaskError where a program asks for what a sharded model cannot be given."""
        if program.maintained and not self.reduction.whole:
            raise MaskError(
                f"`{program.maintained[0].name}` maintains bands, whose parameters are whole on no process",
                help="train bare replicas, or in DistributedDataParallel",
            )
        self.keeping.check(program, self.reduction.whole)

    def _make_engine(self, program: Program) -> Engine:
        choice, passes = self._engine_choice, self.reduction.passes
        return make_engine(
            self.model, program.bands, choice, passes, layers=self._layer_rules, semantics=program.semantics
        )

    def _replica(self) -> dict[str, str]:
        """Return what every rank must have alike."""
        facts = {
            "policy": self.program.digest,
            "normaliser": repr(self.normaliser),
            "privacy terms": self.budgets.terms(),
            "scale": repr(self.scaling.scale),
        }
        if self.reduction.replicated:
            facts["weights"] = weights_digest(self.model)
        return facts

    def _begin(self) -> tuple[Counts, Standing | None]:
        """Open the ledger's run or resume it; return its steps and examples so far, and its anchors."""
        history = read_history(self.ledger.path, self.ledger.entries_on_open)
        if history.opened is None:
            self.maintainer.check(self.program, self.parameters)
            terms = self._terms.opening(self.ledger, self.engine.name)
            terms |= self.keeping.opening(self.model)
            self.recorder.open(self.program, terms, self._signature)
            return NOTHING_YET, None
        history.resume()
        self.keeping.check_opened(history.opened)
        self._terms.check_against(history.opened)
        self.roster.resume(history)
        self.budgets.resume(history.private_steps)
        # Not the digest: a crash may have cut off the text of the very program that the ledger names.
        if history.program_text != self.program.to_json():
            self.recorder.change_policy(self.program, history.next_step, self._signature)
            history.change_anchors()
        return history.counts, Standing(history.anchors, history.former_anchors)

    @property
    def effective_steps(self) -> int:
        """How many steps led to the weights in hand: all before `next_step` but those that were abandoned."""
        return self.next_step - self._abandoned

    # --- steps ---------------------------------------------------------------------------------------------

    def step(self, examples: Examples, *, signals: Mapping[str, Any] | None = None) -> Proposal:
        """Propose a step on a batch; use the result as a context manager.

        examples: (id, metadata) pairs, mappings with an `id`, or known ids, in the order of the losses.
        signals: values by declared name, a number or one number per example.
        """
        self.check_idle("a step cannot begin")
        return Proposal(self, examples, signals or {})

    def reach(self, examples: Examples, *, signals: Mapping[str, Any] | None = None) -> npt.NDArray[np.bool_]:
        """Return which bands each example might shape if the next step began now: bool [N, bands].

        Bands are in the policy's order. Later steps may decide otherwise where rules read the clock,
        exposures or signals. Nothing is proposed; examples that were not known become known.
        """
        self.check_idle("examples cannot be looked at")
        rows = self.roster.rows(examples)
        return self.roster.admit(rows, self.context(rows, signals or {})).micro > 0

    def at_home(self, examples: Examples) -> npt.NDArray[np.bool_]:
        """Return which examples this rank may propose: bool [N]. All of them, but in a job `by_example`.

        Raises ExampleError like `step`; examples that were not known become known.
        """
        return self.keeping.at_home(self.roster.commitments(self.roster.rows(examples)))

    def check_home(self, rows: IntArray) -> None:
        """Raise ExampleError where an example belongs to another rank."""
        if not self.keeping.apart:
            return
        own = self.keeping.at_home(self.roster.commitments(rows))
        if not own.all():
            name = self.roster.names(rows[~own][:1])[0]
            raise ExampleError(
                f"the example `{name}` belongs to another rank of the job",
                help="propose only what `governor.at_home` says: an example's exposures are in one ledger",
            )

    def check_idle(self, what: str) -> None:
        """Raise LedgerError where the governor is closed, MaskError while a step is open.

        what: what cannot be done then, in words.
        """
        if self._closed:
            raise LedgerError(f"{what}: the governor is closed")
        if self._open_step is not None:
            raise MaskError(f"{what} while a step is open", help="leave the step's `with` block first")

    def context(self, rows: IntArray, signals: Mapping[str, Any]) -> Context:
        """Return the context of the next step for the examples in `rows`."""
        self.budgets.check_signals(signals.keys())
        known = {**self.measures.signals(rows), **signals}
        return Context(
            step=self.next_step,
            epoch=self.epoch,
            at=self._clock(),
            exposures=self.roster.exposures(rows),
            signals=known,
            spent=self.budgets.spent(),
        )

    @property
    def point(self) -> str:
        """What a rank that enters a step would do: all ranks must be about to do the same."""
        return f"begin step {self.next_step} of epoch {self.epoch}"

    def every_parameter(self) -> list[nn.Parameter]:
        """Return the parameters in the order of bands."""
        return [parameter for members in self.parameters.values() for parameter in members]

    @property
    def deepest(self) -> int:
        """The number of the deepest band, the quarantine aside where there is another."""
        names = self.program.band_names
        return max((n for n, name in enumerate(names) if name != QUARANTINE), default=0)

    def begin(self, proposal: Proposal) -> None:
        """Record a proposal's intent. Called by the proposal."""
        self.recorder.classes(self.roster.new_classes())
        recorded = proposal.recorded
        admitted, verdict = proposal.admitted, proposal.verdict
        if not recorded.all():
            admitted = admitted.only(recorded)
            verdict = step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()})
        self.recorder.propose(
            admitted,
            self.roster.commitments(proposal.batch[recorded]),
            proposal.context,
            verdict,
        )
        self._open_step = proposal
        self.next_step += 1
        for rule, count in self._expiries.observe(admitted):
            self.recorder.event("expired", {"step": proposal.context.step, "rule": rule, "count": count})

    def withdraw(self, proposal: Proposal, error: BaseException) -> None:
        """Refuse a proposal that was recorded and that not every rank could enter. Called by the proposal."""
        if self.keeping.apart and not self._closed and self._open_step in (None, proposal):
            self._desert(proposal, error)
            return
        if self._open_step in (None, proposal):
            self.reduction.end()
        if self._open_step is proposal:
            self._open_step = None
            self._refuse(proposal, Finding("admission", "interrupted", raised("a rank's admission", error)))

    def conclude(self, proposal: Proposal, error: BaseException | None) -> None:
        """Take a proposal through the gradient and commit gates, or refuse it. Called by the proposal."""
        self._open_step = None
        step = proposal.context.step
        try:
            own = proposal.finding(error)
            if own is not None and error is not None and self.reduction.astray:
                # What others wait for comes no more. Their wait ends with this process, and so does its run.
                self._refuse(proposal, own)
                self._abandon()
                return
            unsaid = self.keeping.settle(self.recorder)
            if proposal.active or self.keeping.apart:
                self.reduction.finish(own is None and unsaid is None)
            parts = self.ranks.collect(f"leave step {step}", lambda: proposal.part(own))
            proposal.take_losses(parts)
            finding = first_finding([part.finding for part in parts])
            agreed = self._agree(proposal, finding, reduce(or_, (part.graded for part in parts)), unsaid)
            finding = agreed.finding
            if finding is None:
                passed = self.ranks.collect(
                    f"commit step {step}", lambda: self._gates(proposal, agreed.graded)
                )
                finding = first_finding(passed)
        except LedgerError:
            proposal.restore()
            self.budgets.forget()
            self.scaling.forget()
            raise
        except BaseException as fault:
            if self.keeping.apart:
                # What became of the step elsewhere is not known, so it gets no outcome here.
                proposal.restore()
                self._abandon()
                raise
            reason = "ranks_lost" if isinstance(fault, RankError) else "interrupted"
            self._refuse(proposal, Finding("commit", reason, raised("the step's end", fault)))
            raise
        finally:
            self.reduction.end()
        if finding is not None:
            self._refuse(proposal, finding)
            return
        self._commit(proposal)

    def _agree(
        self, proposal: Proposal, finding: Finding | None, graded: int, unsaid: LedgerError | None
    ) -> Agreement:
        """Come to one outcome with ranks that were not asked yet. unsaid: why the intent is not durable."""
        names = self.program.band_names
        stance = Stance(
            step=proposal.context.step,
            epoch=proposal.context.epoch,
            examples=len(proposal.batch),
            active=[name in proposal.active for name in names],
            graded=graded,
            parameters=len(self.every_parameter()),
            finding=finding,
            leaving=unsaid is not None,
        )
        agreed = self.keeping.agree(stance, unsaid)
        proposal.active = tuple(name for name, reached in zip(names, agreed.active, strict=True) if reached)
        proposal.total = agreed.examples
        return agreed

    def _desert(self, proposal: Proposal, error: BaseException) -> None:
        """Tell the other ranks of a job that this one does not come to the step; its run is over."""
        finding = Finding("admission", "interrupted", raised("the admission", error))
        bands, parameters = len(self.program.band_names), len(self.every_parameter())
        with suppress(RankError, MaskError):
            if not proposal.begun:
                self.reduction.begin()
            self.reduction.finish(False)
            self.keeping.agree(deserting(self.next_step, self.epoch, bands, parameters, finding), None)
        self.reduction.end()
        self._open_step = None
        self._abandon()

    def _gates(self, proposal: Proposal, graded: int) -> Finding | None:
        """Pass the gradient gate with the gradients of all ranks, then wait for a durable intent.

        graded: bit i is set where parameter i has a gradient on any rank.
        """
        gate = GradientGate(
            self.program,
            self.parameters,
            self.reduction,
            self.scaling,
            self.budgets,
            self.maintainer,
            self.normaliser,
            self.clip_norm,
            self.keeping.apart,
            self.peers.rank,
        )
        finding = gate.admit(proposal, graded)
        if finding is None and not self.keeping.apart:  # apart, ranks have waited before they agreed
            self.recorder.settle()
        return finding

    def _refuse(self, proposal: Proposal, finding: Finding) -> None:
        finding = self.scaling.refuse(finding)
        proposal.refusal = finding
        proposal.restore()
        self.budgets.forget()
        self.refused += 1
        self.recorder.refuse(proposal.context.step, finding.gate, finding.reason, finding.detail)
        self.keeping.stepped(self.next_step)

    def _commit(self, proposal: Proposal) -> None:
        step = proposal.context.step
        try:
            self.optimizer.step()
            proposal.maintained = self.maintainer.hold(proposal.active)
            self.scaling.commit()
        except BaseException:
            # How far it moved is unknown: the step gets no outcome, and nothing more is trained from here.
            self._abandon()
            raise
        proposal.committed = True
        self.committed += 1
        learned = proposal.admitted.micro.any(axis=1)
        self.roster.expose(proposal.batch[learned])
        self.exposed += int((learned & proposal.recorded).sum())
        norms = {band: _decimal(norm) for band, norm in proposal.norms.items()}
        loss = _decimal(proposal.mean_loss)
        self.maintainer.record(step, proposal.maintained)
        together = {"batch": proposal.total} if self.keeping.apart else {}
        self.recorder.commit(step, proposal.active, norms, loss, self.budgets.charge(), **together)
        self.keeping.stepped(self.next_step)
        for rule, steps in self.budgets.halting.items():
            self.recorder.event("halted", {"step": step, "rule": rule, "steps": steps})
        self._watch_starvation(step, proposal.active)
        self.budgets.check_going()

    def _watch_starvation(self, step: int, active: tuple[str, ...]) -> None:
        for rule in self.starvation.observe(active):
            body = {"step": step, "band": rule.band, "steps": rule.steps, "action": rule.action}
            self.recorder.event("starved", body)
            words = f"no example has reached the band `{rule.band}` for {rule.steps} steps"
            if rule.action == "report":
                warnings.warn(words, stacklevel=4)
            elif rule.action == "halt":
                raise StarvationHalt(words, help="widen a `depth` rule or accept it with `starvation`")

    # --- the run -------------------------------------------------------------------------------------------

    def change_policy(self, program: Program, signature: bytes | None = None) -> None:
        """Put another program in force from the next step on; what was decided before stays as it was.

        The terms of privacy rules cannot change within a run: a budget is kept or it is none. signature: as
        the constructor's, of this program. Raises like the constructor; then the old program stays in force.
        """
        self.check_idle("the policy cannot change")
        self._approvers.demand(program, signature)
        self.reduction.rest()
        bound = bind_model(program, self.model, self.optimizer)
        self.budgets.check_same_terms(bound.program)
        self._check_spread(bound.program)
        self.maintainer.prepare(bound.program, bound.parameters, self.next_step)
        self.engine.close()
        try:
            self.engine = self._make_engine(bound.program)
            check_equal(self.peers, "change the policy", lambda: {"policy": bound.program.digest})
        except BaseException:
            self.engine.close()
            self.engine = self._make_engine(self.program)
            raise
        self.program, self.parameters = bound.program, bound.parameters
        self.measures.follow(self.program, self.model)
        self.budgets.adopt(bound.program)
        self.starvation = StarvationGuard(self.program.starvation)
        self.recorder.change_policy(self.program, self.next_step, signature)
        self.maintainer.enter(self.next_step)
        self.roster.change_program(self.program)
        if self._draws is not None:
            self._draws.cover(len(self.roster.known()), self._units())

    def checkpoint(self, path: Path | str, *, state: bool = False) -> str:
        """Save the model's weights (safetensors), record their digests, and return the file's (hex SHA-256).

        The hashes of their parts are saved too, as `NAME.leaves`, so that a difference can be located.

        state: save and record the state of training too, as `NAME.state`, so that what follows can be
        executed again (`reexecution`); for a single process.
        Of several processes rank 0 saves. Raises MaskError where their weights are no longer equal.
        """
        if state and (self.peers.size > 1 or not self.reduction.whole):
            raise MaskError(
                "the state of training of several processes is not saved", help="leave `state` out"
            )
        self.check_idle("a checkpoint cannot be saved")
        self.reduction.rest()
        check_equal(self.peers, "save a checkpoint", self._replica)
        whole, target, step = whole_model(self.model), Path(path), self.next_step
        if state:
            self.ranks.collect(
                "save the state of training",
                lambda: self._milestones.training_state(step, self.optimizer, target),
            )
        averaged = holds_average(self.every_parameter())
        return self._milestones.weights(step, whole, target, averaged=averaged)

    def supply(self, note: bytes) -> None:
        """Record, before the first step, what those who supply the data have signed.

        note: the content of `MANIFEST.note` (`gradwarden sign-data`); `verify --data` holds the manifest
        against it. Raises NoteError where it is no such note.
        """
        self.check_idle("a supply cannot be recorded")
        if self.next_step:
            raise LedgerError("a supply is recorded before the first step", help="call `supply` earlier")
        self._milestones.supply(note)

    def derive(self, base: Path) -> None:
        """Record, before the first step, that training goes on from the weights that a ledger names last.

        base: the ledger of the run that made them; it is read, and left as it is.
        """
        self.check_idle("a base cannot be named")
        if self.next_step:
            raise LedgerError("a base is named before the first step", help="call `derive` earlier")
        self._milestones.derive(base)

    def rewind(self, checkpoint: Path | str) -> None:
        """Record that training goes on from weights that this run saved earlier, and the model holds again.

        The steps that led elsewhere are abandoned: they stay in the ledger, and what they spent (exposures,
        budgets) stays spent. Steps are numbered on. Call it after a crash, once the ledger is open again, or
        at any time between two steps. The state of the optimizer is the caller's to put back. Raises
        LedgerError where the ledger does not name the file, or the model holds other weights.
        """
        self.check_idle("a run cannot go back")
        self.reduction.rest()
        check_equal(self.peers, "go back", self._replica)
        effective = self._milestones.rewind(self.next_step, whole_model(self.model), Path(checkpoint))
        self._abandoned = self.next_step - effective

    def tally(self) -> None:
        """Record the tally of all examples so far, from which their owners get receipts (`evidence.tally`).

        The ledger is read once, so that this takes about as long as verifying its chain.
        """
        self.check_idle("the run cannot be tallied")
        self._milestones.tally()

    def close(self) -> None:
        """Seal the ledger and give the model back as it was. Safe to repeat."""
        if self._closed:
            return
        self.check_idle("the run cannot be closed")
        try:
            self.peers.collect("close the run", lambda: None)
        except BaseException:
            self._abandon()
            raise
        self._closed = True
        self._release()
        totals = {
            "steps": self.next_step,
            "committed": self.committed,
            "refused": self.refused,
            "examples": self.exposed,
        }
        self.keeping.close(self.ledger, totals)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._abandon()

    def _abandon(self) -> None:
        """Leave the run unsealed, so that it can be resumed, with everything written."""
        self._closed = True
        self._release()
        self.keeping.abandon(self.ledger)

    def _release(self) -> None:
        """Give the model back as it was."""
        self.engine.close()
        self.measures.close()
        self.foreign.remove()
        self.reduction.close()


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
