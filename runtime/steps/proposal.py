"""One proposed step: from admission to the optimizer's move, or to a refusal that leaves only a record.

The engine adds the masked gradient of the public examples. That of the private ones is clipped per unit,
noised and added by itself (`budget`).

Where several processes train together, each proposes its own part of the batch; the step is admitted,
recorded and concluded for the batch of all (`data_parallel`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import Context, FloatArray, IntArray
from gradwarden.policy.decision import Decision
from gradwarden.policy.program import SCALE
from gradwarden.runtime.batching.depth_batches import by_depth
from gradwarden.runtime.errors import MaskError, PrivacyError
from gradwarden.runtime.jobs.shares import WholeBatch
from gradwarden.runtime.maintenance import Measured
from gradwarden.runtime.memorization.holdout import holdout_mask
from gradwarden.runtime.memorization.rounded_parts import rounded_parts
from gradwarden.runtime.memorization.step_measures import StepMeasures
from gradwarden.runtime.memorization.token_scores import IGNORED
from gradwarden.runtime.privacy.units import UnitSums
from gradwarden.runtime.ranks.data_parallel import ROOT, Part, Share, join_signals
from gradwarden.runtime.ranks.parallelism import refuse_sequence_split
from gradwarden.runtime.roster import Examples
from gradwarden.runtime.steps.admission_gate import admit, check_whole_units
from gradwarden.runtime.steps.batch_parts import BatchParts
from gradwarden.runtime.steps.dropped_gradients import DroppedGradients
from gradwarden.runtime.steps.gates import Finding, check_losses, raised
from gradwarden.runtime.steps.restore import Snapshot
from gradwarden.runtime.steps.starvation import Reach
from gradwarden.runtime.steps.step_gates import StepGates


class Proposal:
    """A step between its admission and its outcome. Made by `Governor.step`; use it as a context manager.

    decisions, weights (float64 [B, bands]), rows: of this process's own examples. All else is of the step as
    a whole. verdict: `admit` (every example at full weight), `limit` (something is masked or left out) or
    `refuse`. active: names of the bands that some example of the step reaches or that are noised for privacy;
    none once the step was refused. refusal: why a gate refused the step, None where it went through.
    maintained: how far maintained bands have drifted after a step that moved them.
    """

    def __init__(self, gates: StepGates, examples: Examples, signals: Mapping[str, Any]) -> None:
        self._gates = gates
        self._run = gates.run
        self._joined = gates.run.joined
        self._in_force = gates.run.in_force
        self._examples = examples
        self._signals = signals
        self.refusal: Finding | None = None
        self.committed = False
        self.whole: WholeBatch | None = None
        """In a job, the batch of all ranks, once these have agreed on the step."""
        self.reach = Reach((), {}, 0)
        """Of the step as a whole, once it is known."""
        self.norms: dict[str, float | None] = {}
        """Of each band's gradient, as the optimizer took it; None where it has none."""
        self.maintained = Measured({})
        self.moved: dict[str, float] | None = None
        """How far each band's parameters were moved by a step that records it."""
        self._entered = False
        self._dropped = DroppedGradients()
        self.begun = False
        """Whether the reduction of gradients was begun for it."""

    # --- admission -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        ranks, run = self._joined.ranks, self._run
        try:
            shares = ranks.collect(run.point, self._share)
            self._joined.maintainer.advance(run.progress.next_step)
            context = ranks.lead(run.point, lambda: self._intend(shares), lambda: self._join(shares))
        except BaseException as error:
            self._gates.withdraw(self, error)
            raise
        if ranks.rank != ROOT:
            self._admit(context)
            self._gates.begin(self)
        try:
            self._parts.meet()
            parameters = self._in_force.every_parameter()
            for parameter in parameters:
                parameter.grad = None
            self._joined.foreign.begin(self._joined.reduction.watched(parameters))
            self._begin_part()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _share(self) -> Share:
        """Look up this process's examples, and describe them for the others."""
        joined, roster = self._joined, self._joined.roster
        self._run.progress.check_idle("a step cannot begin")
        joined.budgets.check_going()
        if self._entered:
            raise MaskError("a proposal is used once", help="call `governor.step` for every step")
        self._entered = True
        self.rows = roster.rows(self._examples)
        self._run.check_home(self.rows)
        joined.reduction.begin()
        self.begun = True
        examples = roster.describe(self.rows) if joined.ranks.size > 1 else ()
        return Share(len(self.rows), examples, self._signals)

    def _join(self, shares: Sequence[Share]) -> None:
        """Make the examples of all ranks known, and put them in the order of ranks."""
        roster, own = self._joined.roster, self._joined.ranks.rank
        parts = [
            self.rows if rank == own else roster.rows(share.examples) for rank, share in enumerate(shares)
        ]
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.batch = np.concatenate(parts)

    def _intend(self, shares: Sequence[Share]) -> Context:
        """Decide and record the step; what was recorded on rank 0 stands for all."""
        self._join(shares)
        self._admit(self._run.context(self.batch, join_signals(shares)))
        if self._joined.ranks.size > 1:
            check_whole_units(self._run, self._admission, self.batch, self._starts)
        self._gates.begin(self)
        return self.context

    def _admit(self, context: Context) -> None:
        joined, run = self._joined, self._run
        start = self._starts[joined.ranks.rank]
        own = slice(start, start + len(self.rows))
        self._admission = admission = admit(run, context, self.batch, own)
        self.context, self.admitted, self.recorded = context, admission.admitted, admission.recorded
        self.weights, self.active = admission.weights, admission.active
        self.verdict: str = admission.verdict
        self.refusal = admission.refusal
        self._masked = admission.hold_outs == 0
        self._parts = BatchParts(admission, joined.reduction, joined.keeping, self._starts)
        self._measures = StepMeasures(joined.measures, self._in_force, self._parts, context.step)
        self._snapshot = Snapshot(joined.model)

    @property
    def decisions(self) -> Sequence[Decision]:
        return self._admission.decisions

    # --- gradients -----------------------------------------------------------------------------------------

    def micro_batches(self, size: int) -> Iterator[slice]:
        """Yield row slices of at most `size` for gradient accumulation; call `backward` once for each.

        A sharded model is run by all processes together, so each has as many slices as the one that has most:
        the last may be empty, and are run all the same. The rows of a privacy unit stay in one slice: it is
        clipped as a whole. Raises PrivacyError where they lie too far apart for that.
        """
        self._check_entered()
        end = len(self.rows)
        for part in self._armed(self._parts.in_order(size)):
            yield slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(end, end)

    def depth_batches(self, size: int) -> Iterator[IntArray]:
        """Yield the places of at most `size` examples that reach about equally deep; as `micro_batches`.

        Each is int64, an index into the batch. Examples that may shape nothing are left out: they need no
        forward pass. The step's gradient is the same as in one pass.
        """
        self._check_entered()
        return self._armed(self._parts.cut(by_depth, size))

    def _check_entered(self) -> None:
        if not self._entered:
            raise MaskError(
                "the step was not entered: nothing was decided or recorded of it yet",
                help="write `with governor.step(examples) as proposal:`",
            )

    def _armed(self, parts: Iterable[IntArray]) -> Iterator[IntArray]:
        """Arm the engine for each part in turn."""
        for part in parts:
            self._begin_part()
            yield part

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
        if self._parts.begun:
            raise MaskError("`assign` was called after `backward`", help="call it before the forward pass")
        if self._joined.budgets and self._parts.together:
            raise PrivacyError(
                "rows that belong to examples are not available with privacy rules in a sharded model",
                help="give the model one row for each example, in the order of their losses",
            )
        if self._joined.budgets and owners.dim() > 1:
            raise PrivacyError(
                "packed sequences are not available with privacy rules: all that would keep private ones "
                "apart from others is an attention mask that comes anew with every batch",
                help="give each example rows of its own",
            )

    def backward(self, losses: Tensor) -> None:
        """Add the masked gradient of one loss per example. losses: [B], attached to the graph.

        Raises MaskError where the shape is wrong or rows come twice. A loss that is not finite refuses the
        step when it is left, not here; so does an error raised here, even if the caller goes on after it.
        """
        self._check_entered()
        if not isinstance(losses, Tensor):
            raise MaskError(
                f"`backward` takes a tensor of losses, not a `{type(losses).__name__}`",
                help="give what the loss function returned: numbers alone have no gradient",
            )
        count = len(self._parts.rows)
        if losses.dim() != 1 or losses.shape[0] != count:
            raise MaskError(
                f"`backward` takes one loss per example: shape [{count}], not {list(losses.shape)}",
                help="reduce the loss over everything but the batch, for example `loss.view(B, -1).mean(1)`",
            )
        if self._parts.begun:
            raise MaskError(
                "`backward` was called twice for the same examples",
                help="add up losses before, or take the batch in parts by `proposal.micro_batches`",
            )
        self._parts.finish()
        if self._joined.peers.size > 1:
            refuse_sequence_split()
        if not self._due():
            return
        if not self._parts.left():
            self._joined.reduction.last()
        try:
            # To read losses is to wait for the device. Alone, and with nothing private at stake, that is done
            # once the backward pass is launched: what is not fit goes no further than `.grad`. Parts that are
            # run together are declined before, or the rest of the step would be waited for.
            alone = self._joined.peers.size == 1 and not self._parts.together
            later = self._sink is None and alone
            if self.refusal is None and not later:
                self._look_at(losses)
            if self.refusal is None:
                self._differentiate_and_look(losses) if later else self._differentiate(losses)
            else:
                self._joined.reduction.decline()
            if self.refusal is None:
                self._measures.read(self._joined.scaling.scale)
        except BaseException as error:
            self.refusal = Finding("gradient", "no_gradient", raised("`backward`", error))
            raise

    def _due(self) -> bool:
        """Return whether this process has a backward pass to make now, or to decline."""
        return self._parts.any_weight() and (self._parts.together or self.refusal is None)

    def _differentiate_and_look(self, losses: Tensor) -> None:
        try:
            self._differentiate(losses)
        except Exception:
            # Hooks, and anomaly detection, may raise for what losses that are not finite lead to.
            self._look_at(losses)
            if self.refusal is None:
                raise
        else:
            self._look_at(losses)

    def _look_at(self, losses: Tensor) -> None:
        """Remember losses, unless they are such that the step is to be refused."""
        read = losses.detach().double().cpu()
        self.refusal = self._unfit(read)
        if self.refusal is None:
            self._measures.remember(read)

    def _unfit(self, losses: Tensor) -> Finding | None:
        """Return why losses are not to be differentiated."""
        rows = self._parts.rows
        finding = check_losses(losses, self._parts.public[rows].nonzero().flatten().tolist())
        if finding is None and not self._masked[rows].all():
            return Finding(
                "gradient", "tokens_not_held_out", "the policy holds out tokens: ask for `token_mask`"
            )
        return finding

    def _differentiate(self, losses: Tensor) -> None:
        self._measures.follow(losses)
        # Gradients keep the forward pass's precision, whether `backward` is called inside autocast or not.
        with torch.autocast(losses.device.type, enabled=False):
            self._add_gradients(self._joined.scaling.scaled(losses))

    def _add_gradients(self, losses: Tensor) -> None:
        joined, engine, parts = self._joined, self._in_force.engine, self._parts
        self._dropped.look()
        divisor, public = self.normaliser / joined.reduction.share, parts.public[parts.rows]
        if self._sink is not None:
            engine.backward(losses, divisor, rows=public, sink=self._sink)
            if not joined.reduction.declined:
                joined.budgets.collect(self._sink)
        elif parts.together or bool(public.any()):
            rows = None if bool((public | ~parts.reached()).all()) else public
            engine.backward(losses, divisor, rows=rows)
        self._dropped.remember(self._in_force.every_parameter())

    @property
    def normaliser(self) -> float:
        """What the sum of the examples' gradients is divided by."""
        return self._run.divisor(len(self.batch))

    def _begin_part(self) -> None:
        """Arm the engine for the part at hand."""
        self._sink = self._collector()
        self._arm()

    def _arm(self, owners: Tensor | None = None) -> None:
        parts, engine = self._parts, self._in_force.engine
        if not parts.any_weight():
            engine.disarm()
            return
        self._measures.expect(owners)
        units = None if self._sink is None else self._sink.members()
        weights, gauge = torch.from_numpy(parts.weights), self._measures.gauge
        engine.arm(weights, owners, classes=parts.classes, units=units, gauge=gauge)

    def _collector(self) -> UnitSums | None:
        """Return what takes the gradients of the private units in the part at hand, None where none is.

        Where processes run it together, all have one or none.
        """
        units = self._parts.units()
        if units is None:
            return None
        joined, parameters = self._joined, self._in_force.parameters
        return joined.budgets.sink(joined.reduction, units, self._parts.weights, parameters)

    def token_mask(self, tokens: Tensor) -> Tensor:
        """Return which tokens of the batch, or of the micro-batch at hand, are to be learned: bool [B, T].

        tokens: the token ids of each example, integers [B, T]. False where the policy holds a token out
        (`holdout_mask`): the loss of predicting it must not count. All tokens are True for examples that no
        such rule is about. A step whose policy holds out tokens is refused unless this was asked before
        `backward`. Raises MaskError for other shapes.
        """
        rows = self._parts.rows
        if len(tokens) != len(rows):
            raise MaskError(
                f"a token mask needs one row per example: {len(rows)}, not {len(tokens)}",
                help="mask sequences before several are packed in a row",
            )
        held = self._admission.hold_outs[rows]
        mask = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
        for one_in in np.unique(held[held > 0]).tolist():
            places = torch.from_numpy(held == one_in).to(tokens.device)
            mask[places] = holdout_mask(tokens[places], one_in, key=self._run.holdout_key)
        self._masked[rows] = True
        return mask

    def observe_tokens(self, logits: Tensor, targets: Tensor, *, ignore: int = IGNORED) -> None:
        """Measure `token_score` for the examples of the batch, or of the micro-batch at hand.

        logits: [B, T, V], those that predict `targets`: int64 [B, T], `ignore` where nothing is predicted.
        Nothing happens where the policy does not declare the signal. Raises MaskError for other shapes.
        """
        self._measures.observe_tokens(logits, targets, ignore)

    # --- outcome -------------------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: object,
    ) -> None:
        self._in_force.engine.disarm()
        self._gates.conclude(self, error)

    def part(self, finding: Finding | None) -> Part:
        """Return what the other ranks need to know of this one. finding: of this rank."""
        graded = self._joined.reduction.graded(self._in_force.every_parameter())
        return Part(finding, self._measures.joined(), graded)

    def finding(self, error: BaseException | None) -> Finding | None:
        """Return why this rank cannot let the step through. error: what broke the block, if any."""
        if error is not None:
            return Finding("gradient", "interrupted", raised("the step's block", error))
        if self.refusal is not None:
            return self.refusal
        found = self._joined.foreign.finding() or self._dropped.finding()
        if found is not None:
            return found
        if not self.active and not self._joined.keeping.apart:
            return Finding("admission", "nothing_admitted", "no example of the batch may shape any band")
        if self._parts.left():
            return Finding("gradient", "no_backward", "`backward` was not called for every example")
        return None

    def take_losses(self, parts: Sequence[Part]) -> None:
        """Take what all ranks have measured for that of the step, and remember it by example."""
        self._measures.take(parts, self.batch, self._starts, self._admission.covered)

    def contributions(self) -> FloatArray | None:
        """Return the norm of what each example of the step added to each band's gradient.

        float64 [batch, bands], NaN for private examples; infinite where it is too large to measure. None
        where the step does not record it.
        """
        own = self._measures.own_gradients
        if own is None:
            return None
        divisor = self.normaliser
        if self.whole is not None and self._joined.terms.normaliser is None:
            divisor *= self.whole.count
        own = np.where(self.admitted.micro > 0, np.nan_to_num(own, nan=np.inf, posinf=np.inf), 0.0)
        added = own * (self.admitted.micro / SCALE) / divisor
        added = rounded_parts(added, self._summed_norms())
        return np.where(self._admission.covered[:, None], np.nan, added)

    def _summed_norms(self) -> list[float | None]:
        """Return the norm of each band's gradient, None where more is in it than this ledger's examples."""
        program, noised = self._in_force.program, self._joined.budgets.noised_bands
        others = {*noised, *program.pulled_bands}
        apart = self.whole is not None
        return [None if apart or band in others else self.norms.get(band) for band in program.band_names]

    def restore(self) -> None:
        """Put generators and buffers back as they were before the step; drop its gradients."""
        self._snapshot.restore()
        self.verdict = "refuse"
        self.active = ()

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of the public examples that shaped the step; None where there were none."""
        return self._measures.mean_loss
