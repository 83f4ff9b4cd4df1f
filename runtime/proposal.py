"""One proposed step: from admission to the optimizer's move, or to a refusal that leaves only a record.

The engine adds the masked gradient of the public examples. That of the private ones is clipped per unit,
noised and added by itself (`budget`).

Where several processes train together, each proposes its own part of the batch; the step is admitted,
recorded and concluded for the batch of all (`data_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwarden.policy.context import Context, FloatArray, IntArray
from gradwarden.policy.decision import VERDICTS, Decision, step_verdict
from gradwarden.policy.evaluation.admission import Admitted
from gradwarden.policy.program import SCALE
from gradwarden.runtime.data_parallel import ROOT, Part, Share, join_readings, join_signals
from gradwarden.runtime.depth_batches import by_depth
from gradwarden.runtime.errors import MaskError, PrivacyError
from gradwarden.runtime.gates import Finding, check_losses, raised
from gradwarden.runtime.maintenance import Measured
from gradwarden.runtime.memorization.gradient_gauge import GradientGauge
from gradwarden.runtime.memorization.holdout import holdout_mask
from gradwarden.runtime.memorization.measures import (
    DEPTH_SHARE,
    GRADIENT_NORM,
    LOSS,
    PARAMETER_NORM,
    TOKEN_SCORE,
)
from gradwarden.runtime.memorization.readings import StepReadings
from gradwarden.runtime.memorization.token_scores import IGNORED, token_scores
from gradwarden.runtime.parallelism import refuse_sequence_split
from gradwarden.runtime.privacy.clipping import Unit
from gradwarden.runtime.privacy.units import UnitSums
from gradwarden.runtime.rehearsal import short_of_rehearsal
from gradwarden.runtime.restore import Snapshot
from gradwarden.runtime.roster import Examples

if TYPE_CHECKING:
    from gradwarden.runtime.governor import Governor

Cut: TypeAlias = Callable[[FloatArray, int], list[IntArray]]
"""Divides rows with weights [B, bands] into parts of at most so many."""


class Proposal:
    """A step between its admission and its outcome. Made by `Governor.step`; use it as a context manager.

    decisions, weights (float64 [B, bands]), rows: of this process's own examples. All else is of the step as
    a whole. verdict: `admit` (every example at full weight), `limit` (something is masked or left out) or
    `refuse`. active: names of the bands that some example of the step reaches or that are noised for privacy;
    none once the step was refused. refusal: why a gate refused the step, None where it went through.
    maintained: how far maintained bands have drifted after a step that moved them.
    """

    def __init__(self, governor: Governor, examples: Examples, signals: Mapping[str, Any]) -> None:
        self._governor = governor
        self._examples = examples
        self._signals = signals
        self.refusal: Finding | None = None
        self.committed = False
        self.total = 0
        """In a job, the examples of all ranks, once these have agreed on the step."""
        self.maintained = Measured({})
        self._entered = False
        self.begun = False
        """Whether the reduction of gradients was begun for it."""

    # --- admission -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        governor = self._governor
        try:
            shares = governor.ranks.collect(governor.point, self._share)
            governor.maintainer.advance(governor.next_step)
            self.context: Context = governor.ranks.lead(
                governor.point, lambda: self._intend(shares), lambda: self._join(shares)
            )
        except BaseException as error:
            governor.withdraw(self, error)
            raise
        if governor.ranks.rank != ROOT:
            self._admit(self.context)
            governor.begin(self)
        try:
            for parameter in governor.every_parameter():
                parameter.grad = None
            governor.foreign.begin(governor.reduction.watched(governor.every_parameter()))
            self._arm()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _share(self) -> Share:
        """Look up this process's examples, and describe them for the others."""
        governor = self._governor
        governor.check_idle("a step cannot begin")
        governor.budgets.check_going()
        if self._entered:
            raise MaskError("a proposal is used once", help="call `governor.step` for every step")
        self._entered = True
        self.rows = governor.roster.rows(self._examples)
        governor.check_home(self.rows)
        governor.reduction.begin()
        self.begun = True
        examples = governor.roster.describe(self.rows) if governor.ranks.size > 1 else ()
        return Share(len(self.rows), examples, self._signals)

    def _join(self, shares: Sequence[Share]) -> None:
        """Make the examples of all ranks known, and put them in the order of ranks."""
        roster, own = self._governor.roster, self._governor.ranks.rank
        parts = [
            self.rows if rank == own else roster.rows(share.examples) for rank, share in enumerate(shares)
        ]
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.batch = np.concatenate(parts)

    def _intend(self, shares: Sequence[Share]) -> Context:
        """Decide and record the step; what was recorded on rank 0 stands for all."""
        self._join(shares)
        self._admit(self._governor.context(self.batch, join_signals(shares)))
        if self._governor.ranks.size > 1:
            self._demand_whole_units()
        self._governor.begin(self)
        return self.context

    def _admit(self, context: Context) -> None:
        governor = self._governor
        self.context = context
        self.admitted: Admitted = governor.roster.admit(self.batch, context)
        start = self._starts[governor.ranks.rank]
        self._own = slice(start, start + len(self.rows))
        self.weights: npt.NDArray[np.float64] = self.admitted.micro[self._own] / SCALE
        self._demand_rehearsal()
        self.verdict = step_verdict({VERDICTS[code] for code in self.admitted.verdicts.tolist()})
        self.norms: dict[str, float | None] = {}
        covered = governor.budgets.covered(self.admitted)
        governor.check_draw(self.batch, covered)
        self.recorded = ~covered | (not governor.budgets.withholds)
        self._private = governor.budgets.private_rows(self.decisions, self._unit)
        self._public = torch.from_numpy(self.weights.any(axis=1) & ~self._private.mask)
        self.active: tuple[str, ...] = self._active()
        self._readings = StepReadings()
        self._losses: list[float] = []
        self._gauge: GradientGauge | None = None
        self._done = np.zeros(len(self.rows), dtype=bool)
        self._held = self._hold_outs()
        self._masked = self._held == 0
        self._part: IntArray = np.arange(len(self.rows))
        self._number = 0
        self._together = governor.reduction.passes.collective
        self._classes: list[Tensor] = []
        self._clips: list[bool] = []
        self._shielded = covered & self.admitted.micro.any(axis=1)
        if self._together:
            self._expect([np.arange(len(self.batch))])
        self._snapshot = Snapshot(governor.model)

    def _demand_whole_units(self) -> None:
        """Raise PrivacyError where a privacy unit is on several processes."""
        governor, admitted = self._governor, self.admitted
        if not governor.budgets.covered(admitted).any():
            return
        governor.budgets.check_whole(
            [admitted.decisions[i] for i in admitted.decision_ids.tolist()],
            lambda place, attribute: governor.roster.unit(int(self.batch[place]), attribute),
            self._starts,
        )

    def _demand_rehearsal(self) -> None:
        """Refuse a step that rehearses too little; then no example of it has weight."""
        short = short_of_rehearsal(self._governor.program, self.context.step, self.admitted)
        if short is not None:
            band, detail = short
            self.refusal = Finding("admission", "rehearsal_short", detail, band)
            self.weights = np.zeros_like(self.weights)

    def _unit(self, place: int, attribute: str) -> str:
        return self._governor.roster.unit(int(self.rows[place]), attribute)

    @property
    def decisions(self) -> list[Decision]:
        return [self.admitted.decisions[i] for i in self.admitted.decision_ids[self._own].tolist()]

    def _hold_outs(self) -> IntArray:
        """Return of how many tokens each example must have one held out, 0 for none: int64 [rows].

        Of several rules the one that holds out most decides.
        """
        if not any(limit.hold_out for limit in self._governor.program.limits):
            return np.zeros(len(self.rows), dtype=np.int64)
        return np.array(
            [
                min((o.one_in for o in decision.obligations if o.one_in and any(decision.micro)), default=0)
                for decision in self.decisions
            ],
            dtype=np.int64,
        )

    def _active(self) -> tuple[str, ...]:
        if self.refusal is not None:
            return ()
        reached = [bool(column.any()) for column in self.admitted.micro.T]
        noised = self._governor.budgets.noised_bands
        return tuple(
            band
            for band, hit in zip(self._governor.program.band_names, reached, strict=True)
            if hit or band in noised
        )

    # --- gradients -----------------------------------------------------------------------------------------

    def micro_batches(self, size: int) -> Iterator[slice]:
        """Yield row slices of at most `size` for gradient accumulation; call `backward` once for each.

        A sharded model is run by all processes together, so each has as many slices as the one that has most:
        the last may be empty, and are run all the same. The rows of a privacy unit stay in one slice: it is
        clipped as a whole. Raises PrivacyError where they lie too far apart for that.
        """
        end = len(self.rows)
        for part in self._parts(_keeping(self._private.units) if self._private.units else _by_row, size):
            yield slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(end, end)

    def depth_batches(self, size: int) -> Iterator[IntArray]:
        """Yield the places of at most `size` examples that reach about equally deep; as `micro_batches`.

        Each is int64, an index into the batch. Examples that may shape nothing are left out: they need no
        forward pass. The step's gradient is the same as in one pass.
        """
        return self._parts(by_depth, size)

    def assign(self, owners: Tensor) -> None:
        """Say whose the rows of the next forward pass are, where they are not the examples one by one.

        owners: an integer tensor, the example of each row [R] or of each position of each row [R, T]: its
        number in this process's batch, or in the micro-batch at hand; -1 for what is nobody's, such as
        padding. Call it before the forward pass, on all processes or on none where the model is sharded.
        `backward` takes one loss per example as ever.

        Raises MaskError for owners that make no sense or come too late, and where the policy stops the flow
        through closed bands; PrivacyError for positions where it has privacy rules. Either refuses the step.
        """
        try:
            self._check_owners(owners)
            self._arm(owners)
        except BaseException as error:
            self.refusal = Finding("gradient", "no_gradient", raised("`assign`", error))
            raise

    def _check_owners(self, owners: Tensor) -> None:
        if self._done[self._part].any():
            raise MaskError("`assign` was called after `backward`", help="call it before the forward pass")
        if self._governor.budgets and self._together:
            raise PrivacyError(
                "rows that belong to examples are not available with privacy rules in a sharded model",
                help="give the model one row for each example, in the order of their losses",
            )
        if self._governor.budgets and owners.dim() > 1:
            raise PrivacyError(
                "packed sequences are not available with privacy rules: all that would keep private ones "
                "apart from others is an attention mask that comes anew with every batch",
                help="give each example rows of its own",
            )

    def _parts(self, cut: Cut, size: int) -> Iterator[IntArray]:
        """Cut this process's examples, and arm the engine for each part in turn."""
        own = self._common_parts(cut, size) if self._together else cut(self.weights, size)
        _check_units(self._private.units, own)
        for number, part in enumerate(own):
            self._part, self._number = part, number
            self._arm()
            yield part

    def _common_parts(self, cut: Cut, size: int) -> list[IntArray]:
        """Return as many parts as any process has; note what the examples of each weigh on all of them."""
        ranks = self._governor.ranks
        found = ranks.collect(f"cut step {self.context.step}", lambda: cut(self.weights, size))
        count = max(1, *map(len, found))
        parts = [cuts + [np.zeros(0, dtype=np.int64)] * (count - len(cuts)) for cuts in found]
        starts = self._starts[:-1]
        self._expect(
            [
                np.concatenate([start + cuts[k] for start, cuts in zip(starts, parts, strict=True)])
                for k in range(count)
            ]
        )
        return parts[ranks.rank]

    def _expect(self, places: Sequence[IntArray]) -> None:
        """Note what examples weigh in each part that all processes run together, and whether any is private.

        places: of the examples of each part in the batch of all.
        """
        micro = self.admitted.micro
        self._classes = [torch.from_numpy(np.unique(micro[rows], axis=0) / SCALE) for rows in places]
        self._clips = [bool(self._shielded[rows].any()) for rows in places]
        self._governor.reduction.expect(sum(bool(classes.any()) for classes in self._classes))

    def backward(self, losses: Tensor) -> None:
        """Add the masked gradient of one loss per example. losses: [B], attached to the graph.

        Raises MaskError where the shape is wrong or rows come twice. A loss that is not finite refuses the
        step when it is left, not here; so does an error raised here, even if the caller goes on after it.
        """
        count = len(self._part)
        if losses.dim() != 1 or losses.shape[0] != count:
            raise MaskError(
                f"`backward` takes one loss per example: shape [{count}], not {list(losses.shape)}",
                help="reduce the loss over everything but the batch, for example `loss.view(B, -1).mean(1)`",
            )
        if self._done[self._part].any():
            raise MaskError("`backward` was called twice for the same examples")
        self._done[self._part] = True
        if self._governor.peers.size > 1:
            refuse_sequence_split()
        if not self._due():
            return
        public = self._public[self._part]
        if not self.weights[~self._done].any():
            self._governor.reduction.last()
        try:
            if self.refusal is None:
                self.refusal = check_losses(losses, public.nonzero().flatten().tolist())
            if self.refusal is None and not self._masked[self._part].all():
                self.refusal = Finding(
                    "gradient", "tokens_not_held_out", "the policy holds out tokens: ask for `token_mask`"
                )
            if self.refusal is None:
                self._remember(losses.detach().double().cpu(), public)
                self._differentiate(losses, public)
                self._read(public)
            else:
                self._governor.reduction.decline()
        except BaseException as error:
            self.refusal = Finding("gradient", "no_gradient", raised("`backward`", error))
            raise

    def _remember(self, losses: Tensor, public: Tensor) -> None:
        """Note the losses of public examples. Those of private ones must not steer or show anywhere."""
        self._readings.add(LOSS, self._part, losses.numpy(), public.numpy())
        self._losses += losses[public].tolist()

    def _read(self, public: Tensor) -> None:
        """Note what the backward pass has shown of public examples."""
        outputs, gauge = self._governor.measures.outputs, self._gauge
        norms = None if outputs is None else outputs.norms()
        if norms is not None:
            self._readings.add(GRADIENT_NORM, self._part, norms, public.numpy())
        if gauge is not None:
            shares = gauge.shares(self._governor.deepest)
            self._readings.add(DEPTH_SHARE, self._part, shares, public.numpy())
            norms = gauge.norms() / self._governor.scaling.scale
            self._readings.add(PARAMETER_NORM, self._part, norms, public.numpy())

    def token_mask(self, tokens: Tensor) -> Tensor:
        """Return which tokens of the batch, or of the micro-batch at hand, are to be learned: bool [B, T].

        tokens: the token ids of each example, integers [B, T]. False where the policy holds a token out
        (`holdout_mask`): the loss of predicting it must not count. All tokens are True for examples that no
        such rule is about. A step whose policy holds out tokens is refused unless this was asked before
        `backward`. Raises MaskError for other shapes.
        """
        if len(tokens) != len(self._part):
            raise MaskError(
                f"a token mask needs one row per example: {len(self._part)}, not {len(tokens)}",
                help="mask sequences before several are packed in a row",
            )
        held = self._held[self._part]
        mask = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
        for one_in in np.unique(held[held > 0]).tolist():
            rows = torch.from_numpy(held == one_in).to(tokens.device)
            mask[rows] = holdout_mask(tokens[rows], one_in, key=self._governor.holdout_key)
        self._masked[self._part] = True
        return mask

    def observe_tokens(self, logits: Tensor, targets: Tensor, *, ignore: int = IGNORED) -> None:
        """Measure `token_score` for the examples of the batch, or of the micro-batch at hand.

        logits: [B, T, V], those that predict `targets`: int64 [B, T], `ignore` where nothing is predicted.
        Nothing happens where the policy does not declare the signal. Raises MaskError for other shapes.
        """
        if not self._governor.measures.wants(TOKEN_SCORE):
            return
        if len(logits) != len(self._part):
            raise MaskError(
                f"token scores need one row of logits per example: {len(self._part)}, not {len(logits)}",
                help="give sequences of their own to `observe_tokens` where several are packed in a row",
            )
        scores = token_scores(logits, targets, ignore=ignore)
        self._readings.add(TOKEN_SCORE, self._part, scores.numpy(), self._public[self._part].numpy())

    def _differentiate(self, losses: Tensor, public: Tensor) -> None:
        governor = self._governor
        if governor.measures.outputs is not None:
            governor.measures.outputs.follow(losses)
        # Gradients keep the forward pass's precision, whether `backward` is called inside autocast or not.
        with torch.autocast(losses.device.type, enabled=False):
            self._add_gradients(governor.scaling.scaled(losses), public)

    def _add_gradients(self, losses: Tensor, public: Tensor) -> None:
        governor = self._governor
        divisor = self.normaliser / governor.reduction.share
        if self._sink is not None:
            governor.engine.backward(losses, divisor, rows=public, sink=self._sink)
            governor.budgets.collect(self._sink)
        elif self._together or bool(public.any()):
            rows = None if bool((public | ~self._reached()).all()) else public
            governor.engine.backward(losses, divisor, rows=rows)

    def _due(self) -> bool:
        """Return whether this process has a backward pass to make now, or to decline."""
        if self._together:
            return bool(self._classes[self._number].any())
        return self.refusal is None and bool(self.weights[self._part].any())

    def _reached(self) -> Tensor:
        return torch.from_numpy(self.weights[self._part].any(axis=1))

    @property
    def normaliser(self) -> float:
        """What the sum of the examples' gradients is divided by."""
        governor = self._governor
        if governor.normaliser is not None:
            return governor.normaliser
        # In a job how many examples there are is known only when all gradients are: then they are divided.
        return 1.0 if governor.keeping.apart else float(len(self.batch))

    def _arm(self, owners: Tensor | None = None) -> None:
        weights = torch.from_numpy(self.weights[self._part])
        classes = self._classes[self._number] if self._together else None
        self._sink = self._collector()
        units = None if self._sink is None else self._sink.members()
        if bool((weights if classes is None else classes).any()):
            self._measure(owners)
            self._governor.engine.arm(weights, owners, classes=classes, units=units, gauge=self._gauge)
        else:
            self._governor.engine.disarm()

    def _measure(self, owners: Tensor | None) -> None:
        """Expect the next part to be measured."""
        governor, count = self._governor, len(self._part)
        outputs = governor.measures.outputs
        if outputs is not None:
            outputs.begin(count if owners is None else None)
        self._gauge = governor.measures.gauge(self.context.step, count)

    def _collector(self) -> UnitSums | None:
        """Return what takes the gradients of the private units in the part at hand, None where none is.

        Where processes run it together, all have one or none.
        """
        governor = self._governor
        place = {row: number for number, row in enumerate(self._part.tolist())}
        units = [
            replace(unit, rows=tuple(place[row] for row in unit.rows if row in place))
            for unit in self._private.units
        ]
        units = [unit for unit in units if unit.rows]
        if not (self._clips[self._number] if self._together else units):
            return None
        weights = self.weights[self._part]
        return governor.budgets.sink(governor.reduction, units, weights, governor.parameters)

    # --- outcome -------------------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: object,
    ) -> None:
        self._governor.engine.disarm()
        self._governor.conclude(self, error)

    def part(self, finding: Finding | None) -> Part:
        """Return what the other ranks need to know of this one. finding: of this rank."""
        graded = self._governor.reduction.graded(self._governor.every_parameter())
        return Part(finding, self._readings.joined(), graded)

    def finding(self, error: BaseException | None) -> Finding | None:
        """Return why this rank cannot let the step through. error: what broke the block, if any."""
        if error is not None:
            return Finding("gradient", "interrupted", raised("the step's block", error))
        if self.refusal is not None:
            return self.refusal
        foreign = self._governor.foreign.finding()
        if foreign is not None:
            return foreign
        if not self.active and not self._governor.keeping.apart:
            return Finding("admission", "nothing_admitted", "no example of the batch may shape any band")
        if self.weights[~self._done].any():
            return Finding("gradient", "no_backward", "`backward` was not called for every example")
        return None

    def take_losses(self, parts: Sequence[Part]) -> None:
        """Take what all ranks have measured for that of the step, and remember it by example."""
        readings = join_readings(parts, self._starts)
        self._losses = readings[LOSS][1].tolist() if LOSS in readings else []
        self._governor.measures.observe(self.batch, readings)

    def restore(self) -> None:
        """Put generators and buffers back as they were before the step; drop its gradients."""
        self._snapshot.restore()
        self.verdict = "refuse"
        self.active = ()

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of the public examples that shaped the step; None where there were none."""
        return sum(self._losses) / len(self._losses) if self._losses else None


def _keeping(units: Sequence[Unit]) -> Cut:
    """Return what divides rows as they come, at most so many at once, with each unit's rows in one part."""

    def cut(weights: FloatArray, size: int) -> list[IntArray]:
        open_at = np.ones(len(weights) + 1, dtype=bool)
        for unit in units:
            open_at[min(unit.rows) + 1 : max(unit.rows) + 1] = False
        parts: list[IntArray] = []
        start = 0
        while start < len(weights):
            ends = np.flatnonzero(open_at[start + 1 : start + size + 1])
            if not len(ends):
                raise PrivacyError(
                    f"a privacy unit does not fit in {size} rows of the batch: it is clipped as a whole",
                    help="put the rows of each unit next to each other, or take larger micro-batches",
                )
            parts.append(np.arange(start, start + 1 + int(ends[-1])))
            start = int(parts[-1][-1]) + 1
        return parts

    return cut


def _check_units(units: Sequence[Unit], parts: Sequence[IntArray]) -> None:
    """Raise PrivacyError where the rows of a unit, as far as they are run at all, are in several parts."""
    home = {row: number for number, part in enumerate(parts) for row in part.tolist()}
    if any(len({home[row] for row in unit.rows if row in home}) > 1 for unit in units):
        raise PrivacyError(
            "the rows of a privacy unit would be run in several parts: it is clipped as a whole",
            help="use `micro_batches`, which keeps them together",
        )


def _by_row(weights: FloatArray, size: int) -> list[IntArray]:
    """Return rows as they come, at most `size` at once."""
    if size < 1:
        raise MaskError(f"a micro-batch has at least one example, not {size}")
    return [np.arange(start, min(start + size, len(weights))) for start in range(0, len(weights), size)]
