"""The privacy side of a run: which rows of a batch are private, their clipped and noised sum, the budgets.

Every step is noised and paid for, whether or not the sampler drew a private example: a step that did not
would say so. When a rule's budget is spent, its examples are refused at admission and the run goes on, or it
halts after the last step that was paid for, as the rule says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.admission import Admitted
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import BudgetHalt, PrivacyError
from gradwarden.runtime.options import Privacy
from gradwarden.runtime.privacy.accounting import (
    JointPlan,
    PrivacyRule,
    check_noise,
    epsilon_text,
    privacy_rules,
)
from gradwarden.runtime.privacy.clipping import (
    GradientSum,
    Group,
    Unit,
    check_clipping,
    clip_groups,
    zeros,
)
from gradwarden.runtime.privacy.conditions import (
    check_conditions,
    check_sampling,
    check_signals,
    check_trust,
    decides_by_epoch,
)
from gradwarden.runtime.privacy.draws import DrawWatch
from gradwarden.runtime.privacy.noise import (
    FastNoise,
    NoiseSource,
    SecureNoise,
    add_noise,
    add_to_gradients,
)
from gradwarden.runtime.privacy.sampling import MixedSampler, PoissonSampler
from gradwarden.runtime.privacy.units import UnitSums
from gradwarden.runtime.ranks.reduction import Reduction


@dataclass(frozen=True, slots=True)
class PrivateRows:
    """The private examples of one batch. mask: bool [B]. units: their rows, by privacy unit."""

    mask: npt.NDArray[np.bool_]
    units: tuple[Unit, ...]


class BudgetBook:
    """Keeps the budgets of a run's privacy rules; false where the policy has none.

    privacy: how the run treats the private units. rank: of this process among those that train together.

    Raises PrivacyError where the policy has privacy rules and the plan is not for them, or where `normaliser`
    is None: the size of a batch tells how many private examples it held.
    """

    def __init__(self, program: Program, privacy: Privacy, normaliser: float | None, rank: int = 0) -> None:
        rules = privacy_rules(program)
        check_clipping(privacy.clipping)
        check_trust(privacy.on_trust)
        check_conditions(program, privacy.on_trust)
        _check_plan(rules, privacy.plan, normaliser)
        if rules and rank == 0:  # the process that holds all to the draws
            check_sampling(privacy.sampler is not None, privacy.on_trust)
        self._privacy = privacy
        self._plan = privacy.plan
        self._bands = program.band_names
        self._epochs = decides_by_epoch(program)
        self._steps = {rule.name: 0 for rule in rules}
        seed = privacy.noise_seed
        self._seeded = seed is not None
        if privacy.secure_noise and self._seeded:
            raise PrivacyError("secure noise has no seed", help="leave one of the two out")
        self._noise: NoiseSource = SecureNoise() if privacy.secure_noise else FastNoise(seed, rank)
        self._sums: GradientSum = {}
        self._groups: dict[frozenset[tuple[int, int]], tuple[Group, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._plan.rules)

    def declaration(self) -> list[dict[str, str]]:
        """Return what the ledger's opening says of the privacy rules."""
        unchecked = {"sampling": self._privacy.sampler is None, "epochs": self._epochs}
        trusted = sorted({*self._privacy.on_trust, *(what for what, holds in unchecked.items() if holds)})
        ways = {
            "clipping": self._privacy.clipping,
            "on_trust": " ".join(trusted),
            "records": "public" if self.withholds else "all",
        }
        return [{**terms, **ways} for terms in self._plan.declaration()]

    def terms(self) -> str:
        """Return what must be the same on all processes, as text."""
        terms = self._privacy
        trusted = sorted(set(terms.on_trust))
        return repr((self._plan, terms.clipping, terms.secure_noise, terms.withhold, trusted))

    @property
    def withholds(self) -> bool:
        """Whether the ledger is to hold public examples alone."""
        return self._privacy.withhold and bool(self)

    def covered(self, admitted: Admitted) -> npt.NDArray[np.bool_]:
        """Return which examples of a batch a privacy rule covers, [B]."""
        if not self:
            return np.zeros(len(admitted), dtype=bool)
        used, index = np.unique(admitted.decision_ids, return_inverse=True)
        found = [bool(covering(admitted.decisions[number])) for number in used.tolist()]
        return np.array(found, dtype=bool)[index]

    def check_signals(self, given: Collection[str]) -> None:
        """Raise PrivacyError for signals that a caller hands over and does not answer for."""
        if self:
            check_signals(given, self._privacy.on_trust)

    def watch(
        self,
        sampler: PoissonSampler | MixedSampler,
        count: int,
        units: Mapping[int, Hashable],
        place: tuple[int, int] = (0, 1),
    ) -> DrawWatch:
        """Return what holds steps to a sampler; see `DrawWatch`."""
        return DrawWatch(sampler, self._plan, count, units, place)

    def unit_of(self, decision: Decision, unit: Callable[[str], str]) -> tuple[str, str]:
        """Return the attribute and the value that name the privacy unit of an example which is covered."""
        attribute = self._plan.unit(covering(decision))
        return attribute, unit(attribute)

    def check_same_terms(self, program: Program) -> None:
        """Raise PrivacyError where a program's privacy rules are not exactly those of this run."""
        check_conditions(program, self._privacy.on_trust)
        if privacy_rules(program) != tuple(plan.rule for plan in self._plan.rules):
            raise PrivacyError(
                "the terms of privacy rules cannot change within a run",
                help="begin a new run, with a new ledger, under the new terms",
            )
        if decides_by_epoch(program) and not self._epochs:
            raise PrivacyError(
                "the new policy decides on private examples by the epoch, and the ledger's opening does not "
                "say that this is taken on trust",
                help="exclude private examples there (`and not …`), or begin a new run",
            )

    def adopt(self, program: Program) -> None:
        """Go by the bands of another program with the same privacy terms."""
        self._bands = program.band_names

    def resume(self, steps: Mapping[str, int]) -> None:
        """Take over the steps that the ledger says were paid for.

        Raises PrivacyError where the noise has a fixed seed: it would repeat, and cancel out.
        """
        if self._seeded and self._plan.rules:
            raise PrivacyError("a run whose noise has a fixed seed cannot be resumed: the noise would repeat")
        self._steps |= {rule: count for rule, count in steps.items() if rule in self._steps}

    def paid(self) -> dict[str, int]:
        """Return how many steps each rule has paid for."""
        return dict(self._steps)

    def follow(self, steps: Mapping[str, int]) -> None:
        """Count as the process that has the ledger does."""
        self._steps = dict(steps)

    def spent(self) -> frozenset[str]:
        """Return the rules whose next step would exceed their budget."""
        return self._plan.spent(self._steps)

    @property
    def halting(self) -> dict[str, int]:
        """The rules whose budget is spent and on which the run halts, with the steps they paid for."""
        return {rule: self._steps[rule] for rule in self._plan.halting(self.spent())}

    def check_going(self) -> None:
        """Raise BudgetHalt where a budget is spent and its rule says that the run halts then."""
        for rule, steps in self.halting.items():
            raise BudgetHalt(
                f"the budget of `{rule}` is spent after {steps:,} steps, and the policy halts the run",
                help="save a checkpoint and close the run; a new run under new terms has a new budget",
            )

    @property
    def noised_bands(self) -> tuple[str, ...]:
        """Bands that are noised in every step as long as some budget lasts."""
        return self._plan.noised_bands(self.spent())

    # --- one step ------------------------------------------------------------------------------------------

    def private_rows(self, decisions: Sequence[Decision], unit_of: Callable[[int, str], str]) -> PrivateRows:
        """Sort out the private examples of a batch. unit_of: the unit of a batch position, by attribute."""
        mask = np.zeros(len(decisions), dtype=bool)
        if not self:
            return PrivateRows(mask, ())
        rows: dict[tuple[str, str], list[int]] = {}
        rules: dict[tuple[str, str], set[str]] = {}
        for row, decision in enumerate(decisions):
            named = covering(decision)
            if not named or not any(decision.micro):
                continue
            mask[row] = True
            attribute = self._plan.unit(named)
            key = (attribute, unit_of(row, attribute))
            rows.setdefault(key, []).append(row)
            rules.setdefault(key, set()).update(named)
        units = [Unit(tuple(members), self._plan.clip(rules[key])) for key, members in rows.items()]
        return PrivateRows(mask, tuple(units))

    def check_whole(
        self, decisions: Sequence[Decision], unit_of: Callable[[int, str], str], starts: Sequence[int]
    ) -> None:
        """Raise PrivacyError where the rows of a unit are on several processes, which would clip it in parts.

        decisions: of the batch of all. starts: the first row of each process, and the end.
        """
        for unit in self.private_rows(decisions, unit_of).units:
            first, last = (bisect_right(starts, row) for row in (min(unit.rows), max(unit.rows)))
            if first != last:
                raise PrivacyError(
                    f"the rows of a privacy unit are on the ranks {first - 1} and {last - 1}: it is clipped "
                    "as a whole",
                    help="deal out whole units, as the sampler's `part` does",
                )

    def sink(
        self,
        reduction: Reduction,
        units: Sequence[Unit],
        weights: npt.NDArray[np.float64],
        parameters: Mapping[str, Sequence[Tensor]],
    ) -> UnitSums:
        """Return what the engine hands the gradients of private units to. weights: [B, bands]."""
        columns = self._by_column(parameters)
        groups = self._grouped(reduction.module, columns)
        return UnitSums(units, torch.from_numpy(weights), columns, groups, reduction.origin)

    def _grouped(self, model: nn.Module, columns: Mapping[int, Sequence[Tensor]]) -> tuple[Group, ...]:
        """Return the groups to clip. Found once: in a step, modules may hold whole parameters for pieces."""
        trainable = ((band, id(p)) for band, members in columns.items() for p in members if p.requires_grad)
        key = frozenset(trainable)
        if key not in self._groups:
            self._groups = {key: clip_groups(model, columns, self._privacy.clipping)}
        return self._groups[key]

    def collect(self, sink: UnitSums) -> None:
        """Take the clipped sum of private units once the engine is done. Raises PrivacyError if it is not."""
        sink.check()
        for parameter, total in sink.sums.items():
            known = self._sums.get(parameter)
            self._sums[parameter] = total if known is None else known.add_(total)

    def release(
        self, parameters: Mapping[str, Sequence[Tensor]], normaliser: float, reduction: Reduction
    ) -> None:
        """Noise the step's private sum of all processes, empty or not, and add it to the gradients."""
        noised = self._by_column(parameters)
        if not noised:
            return
        trainable = [p for members in noised.values() for p in members if p.requires_grad]
        missing = zeros(p for p in trainable if p not in self._sums)
        sums = {p: missing[p] if p in missing else self._sums[p] for p in trainable}
        held = {p: reduction.scatter(p, total) for p, total in sums.items()}
        early, late = (normaliser, None) if reduction.copies == 1 else (None, normaliser)
        add_noise(held, self._plan.sigma, self._noise, reduction.copy, reduction.copies, early)
        reduction.merge(list(held.values()))
        add_to_gradients(held, late)

    def charge(self) -> dict[str, dict[str, int | str]]:
        """Count one committed step for every rule that is not spent; return what the ledger records."""
        spent = self.spent()
        self._steps = {rule: steps + (rule not in spent) for rule, steps in self._steps.items()}
        self.forget()
        return {
            rule: {"steps": steps, "epsilon": epsilon_text(self._plan.epsilon(rule, steps))}
            for rule, steps in self._steps.items()
        }

    def forget(self) -> None:
        """Drop the private sum of a step that was refused or is over."""
        self._sums = {}

    def _by_column(self, parameters: Mapping[str, Sequence[Tensor]]) -> dict[int, Sequence[Tensor]]:
        return {self._bands.index(band): parameters[band] for band in self.noised_bands}


def covering(decision: Decision) -> list[str]:
    """Return the privacy rules that cover an example."""
    return [o.rule for o in decision.obligations if o.kind == "privacy"]


def _check_plan(rules: Sequence[PrivacyRule], plan: JointPlan, normaliser: float | None) -> None:
    planned = {entry.rule for entry in plan.rules}
    if set(rules) != planned:
        wanted = ", ".join(f"`{rule.name}`" for rule in rules) or "no privacy rule"
        raise PrivacyError(
            f"the privacy plan does not fit the policy, which has {wanted}, or it was made for other terms",
            help="make one with `JointPlan.for_steps(privacy_rules(program), sampling_rate, steps)`",
        )
    check_noise(rules, plan.sigma)
    if rules and normaliser is None:
        raise PrivacyError(
            "privacy rules need a constant normaliser: the size of a batch depends on private examples",
            help="pass `normaliser=` with the expected batch size",
        )
