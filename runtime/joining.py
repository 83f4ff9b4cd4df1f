"""Joins a run: makes of what the caller hands over what a governor holds until the run ends.

The processes join together: each checks its own part, and what fails on one raises on every one. Only then is
anything written (`begin_run`): a new ledger gets the run's opening, one with entries is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from gradwarden.policy.context import Context
from gradwarden.policy.program import Program
from gradwarden.runtime.binding import BoundModel, bind_model
from gradwarden.runtime.errors import LedgerError, MaskError, PrivacyError
from gradwarden.runtime.jobs.job import Job
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.program_signature import Approvers
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.maintenance import Maintainer, Standing
from gradwarden.runtime.memorization.measures import Measures
from gradwarden.runtime.options import Measuring, Privacy
from gradwarden.runtime.privacy.accounting import privacy_rules
from gradwarden.runtime.privacy.budget import BudgetBook
from gradwarden.runtime.privacy.draws import DrawWatch
from gradwarden.runtime.ranks.data_parallel import (
    ROOT,
    Ranks,
    check_equal,
    check_replica,
    names_digest,
    weights_digest,
)
from gradwarden.runtime.ranks.keeping import Began, Keeping, keeping_of
from gradwarden.runtime.ranks.reduction import Reduction
from gradwarden.runtime.ranks.reductions import reduction_of
from gradwarden.runtime.records.history import Counts, read_history
from gradwarden.runtime.records.known_weights import KnownWeights
from gradwarden.runtime.records.milestones import Milestones, whole_model
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.roster import Roster
from gradwarden.runtime.steps.gates import ForeignWatch
from gradwarden.runtime.steps.loss_scaling import LossScaling
from gradwarden.runtime.terms import RunTerms, committer_of

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import ProcessGroup

JOIN = "join the run"

WHOLE = "give every rank the whole model: the stages of a pipeline cannot be governed"


@dataclass(frozen=True, slots=True)
class Request:
    """What a governor was asked for, as far as it is fixed when a run begins; see `Governor`."""

    program: Program
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ledger: Ledger | None
    group: ProcessGroup | None
    job: Job | None
    normaliser: float | None
    clip_norm: float | None
    scaler: GradScaler | None
    privacy: Privacy
    measuring: Measuring
    dataset: Iterable[tuple[str, Mapping[str, Any]]] | None
    secret: Path | None
    approvers: Approvers
    signature: bytes | None
    today: Callable[[], date]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a governor holds from when it joined a run until that ends.

    bound: the first program, bound to the model. draws: what steps are held to, where there is a sampler. All
    else has a module of its own.
    """

    bound: BoundModel
    optimizer: torch.optim.Optimizer
    reduction: Reduction
    foreign: ForeignWatch
    keeping: Keeping
    ledger: Ledger | Unwritten
    terms: RunTerms
    approvers: Approvers
    signature: bytes | None
    scaling: LossScaling
    budgets: BudgetBook
    draws: DrawWatch | None
    roster: Roster
    measures: Measures
    recorder: Recorder
    maintainer: Maintainer
    milestones: Milestones

    @property
    def model(self) -> nn.Module:
        """The model without its wrapper."""
        return self.reduction.module

    @property
    def peers(self) -> Ranks:
        """The processes that train the model."""
        return self.keeping.peers

    @property
    def ranks(self) -> Ranks:
        """The processes that decide and record a step together."""
        return self.keeping.ranks

    def check_program(self, program: Program) -> None:
        """Raise MaskError where a program asks for what the model, as it is spread, cannot be given."""
        _check_spread(program, self.reduction, self.keeping)

    def private_units(self, context: Context) -> dict[int, tuple[str, str]]:
        """Return the privacy unit of every known example that a privacy rule covers, by row."""
        return _private_units(self.roster, self.budgets, context)

    def replica(self, program: Program) -> dict[str, str]:
        """Return what every rank must have alike."""
        facts = {
            "policy": program.digest,
            "normaliser": repr(self.terms.normaliser),
            "privacy terms": self.budgets.terms(),
            "scale": repr(self.scaling.scale),
        }
        if self.reduction.replicated:
            facts["weights"] = weights_digest(self.model)
        if self.keeping.apart and self.budgets:
            facts["data set"] = repr(self.terms.dataset)
        return facts

    def check_resumed(self, step: int) -> None:
        """Hold the weights of a run that is resumed against those that its ledger names.

        step: the one that comes next. Raises LedgerError, on all ranks, where the run has gone back and does
        not say so.
        """
        if self.peers.any("go on", self.milestones.names_weights):
            self.reduction.rest()
            self.milestones.check_resumed(step, whole_model(self.model))

    def give_up(self) -> None:
        """Leave what was opened for a run that could not begin; a ledger that was given stays open."""
        _give_up(self.keeping)

    def release(self) -> None:
        """Give the model back as it was."""
        self.measures.close()
        self.foreign.remove()
        self.reduction.close()


def join(request: Request) -> Joined:
    """Join a run, together with the other processes. Raises like the governor."""
    for name, value in (("normaliser", request.normaliser), ("clip norm", request.clip_norm)):
        if value is not None and not 0.0 < value < float("inf"):
            raise MaskError(f"a {name} is a number above 0, not `{value}`")
    _check_kinds(request)
    foreign = ForeignWatch()
    reduction = reduction_of(request.model, request.group, foreign)
    keeping = keeping_of(reduction.ranks, request.job)
    check_equal(keeping.peers, JOIN, lambda: {"parameters": names_digest(reduction.module)}, WHOLE)
    keeping.prepare(request.secret)
    joined: list[Joined] = []
    try:
        # Not as what is collected: that is sent to the other processes.
        keeping.peers.collect(JOIN, lambda: joined.append(_joined(request, reduction, foreign, keeping)))
    except BaseException:
        _give_up(keeping)
        raise
    return joined[0]


def _check_kinds(request: Request) -> None:
    """Raise MaskError or LedgerError where what stands before a program or a ledger was given for it."""
    if not isinstance(request.program, Program):
        raise MaskError(
            f"a governor executes a compiled program, and this is a `{type(request.program).__name__}`",
            help="give `compile_policy(load_policy(PATH), ModelMap.from_module(model))`",
        )
    if isinstance(request.ledger, str | os.PathLike):
        raise LedgerError(
            f"`{os.fspath(request.ledger)}` names a ledger, and is not an open one",
            help="give `Ledger.open(PATH, signer=Signer.load(KEY))`",
        )


def _joined(request: Request, reduction: Reduction, foreign: ForeignWatch, keeping: Keeping) -> Joined:
    """Check and make one process's own part of a run."""
    request.approvers.demand(request.program, request.signature)
    private = bool(privacy_rules(request.program))
    scaling = LossScaling(request.scaler, request.optimizer, private=private)
    ledger = keeping.open(request.ledger)
    check_replica(reduction.module, keeping.peers)
    bound = bind_model(request.program, reduction.module, request.optimizer)
    budgets = BudgetBook(bound.program, request.privacy, request.normaliser, keeping.peers.rank)
    _check_spread(bound.program, reduction, keeping)
    roster, terms = _roster(request, bound.program, budgets, keeping, ledger)
    recorder = Recorder(ledger, sparing=budgets.withholds)
    return Joined(
        bound=bound,
        optimizer=request.optimizer,
        reduction=reduction,
        foreign=foreign,
        keeping=keeping,
        ledger=ledger,
        terms=terms,
        approvers=request.approvers,
        signature=request.signature,
        scaling=scaling,
        budgets=budgets,
        draws=_draws(request, roster, budgets, keeping),
        roster=roster,
        measures=Measures(roster, request.measuring),
        recorder=recorder,
        maintainer=Maintainer(keeping.ranks, recorder, reduction.module, ledger.path),
        milestones=Milestones(keeping, ledger, recorder),
    )


def _check_spread(program: Program, reduction: Reduction, keeping: Keeping) -> None:
    if program.maintained and not reduction.whole:
        raise MaskError(
            f"`{program.maintained[0].name}` maintains bands, whose parameters are whole on no process",
            help="train bare replicas, or in DistributedDataParallel",
        )
    keeping.check(program)


def _roster(
    request: Request, program: Program, budgets: BudgetBook, keeping: Keeping, ledger: Ledger | Unwritten
) -> tuple[Roster, RunTerms]:
    """Return the examples that are known beforehand, and the terms of the run, which name them."""
    clusters, dataset = request.measuring.clusters, request.dataset
    if keeping.apart and clusters is not None:
        raise MaskError("a rank of a job cannot count copies on other ranks", help="leave `clusters` out")
    committer = committer_of(ledger, keeping.secret(request.secret))
    roster = Roster(program, committer, clusters)
    roster.add(dataset or ())
    withheld: Collection[int] = ()
    if dataset is not None and budgets.withholds:
        withheld = _private_units(roster, budgets, _at_first(request)).keys()
    terms = RunTerms(
        committer.secret_commitment,
        request.normaliser,
        request.clip_norm,
        budgets.declaration(),
        None if dataset is None else roster.digest(withheld),
    )
    return roster, terms


def _draws(request: Request, roster: Roster, budgets: BudgetBook, keeping: Keeping) -> DrawWatch | None:
    """Return what holds steps to their sampler, if there is one: on rank 0, or on each rank of a job."""
    sampler = request.privacy.sampler
    if keeping.apart and budgets and sampler is None:
        raise PrivacyError(
            "the ranks of a job cannot tell each other which private examples they have: a sampler must",
            help="give `Privacy` the `sampler`, of one seed on all ranks, and propose its `part`; or give "
            "rank 0 one ledger for all, without `job=`",
        )
    if sampler is None or not budgets or keeping.ranks.rank != ROOT:
        return None
    if request.dataset is None:
        raise PrivacyError(
            "steps cannot be held to a sampler whose rows are not known",
            help="pass `dataset=` with the examples in the order that the sampler numbers them",
        )
    units = _private_units(roster, budgets, _at_first(request))
    place = (keeping.peers.rank, keeping.peers.size) if keeping.apart else (ROOT, 1)
    return budgets.watch(sampler, len(roster.known()), units, place)


def _at_first(request: Request) -> Context:
    return Context(step=0, epoch=0, at=request.today())


def _private_units(roster: Roster, budgets: BudgetBook, context: Context) -> dict[int, tuple[str, str]]:
    admitted = roster.admit(np.arange(len(roster.known())), context)
    numbers = admitted.decision_ids.tolist()
    return {
        row: budgets.unit_of(admitted.decisions[numbers[row]], partial(roster.unit, row))
        for row in np.flatnonzero(budgets.covered(admitted)).tolist()
    }


def _give_up(keeping: Keeping) -> None:
    if keeping.apart:
        keeping.abandon(None)


def begin_run(joined: Joined, engine: str) -> Began:
    """Open the ledger's run, or resume it; return what it goes on from.

    engine: the name of the mask engine. Raises LedgerError for the ledger of another run.
    """
    program, recorder = joined.bound.program, joined.recorder
    known = KnownWeights()
    history = read_history(joined.ledger.path, joined.ledger.entries_on_open, known.apply)
    if history.opened is None:
        joined.maintainer.check(program, joined.bound.parameters)
        facts = {**joined.terms.opening(joined.ledger, engine), **joined.keeping.opening()}
        recorder.open(program, facts, joined.signature)
        return Counts(), None, joined.budgets.paid()
    history.resume()
    joined.keeping.check_opened(history.opened)
    joined.terms.check_against(history.opened)
    joined.roster.resume(history)
    joined.budgets.resume(history.private_steps)
    joined.milestones.go_on(history.branches, known)
    # Not the digest: a crash may have cut off the text of the very program that the ledger names.
    if history.program_text != program.to_json():
        recorder.change_policy(program, history.next_step, joined.signature)
        history.change_anchors()
    standing = Standing(history.anchors, history.former_anchors)
    return history.counts, standing, joined.budgets.paid()
