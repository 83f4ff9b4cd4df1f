"""Weights and verdicts alone, in columns: what of a program decides them, with many rules folded into few.

Weights do not tell which rule of several alike has matched. Grants of the same weights are therefore one
condition, and so are clauses with the same caps, modulations with the same scalings and assertions that ask
the same; a rule that only advises has no part. What is left are some ten conditions for a hundred rules, and
as many kinds of examples as they tell apart, where the names of rules would tell apart as many as there are
examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array, BoolArray
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.decision import VERDICTS
from gradwarden.policy.evaluation.factoring import any_of
from gradwarden.policy.evaluation.outcomes import Micro, scaling_factors
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import (
    SCALE,
    And,
    Assertion,
    Clause,
    Condition,
    Limit,
    Not,
    Or,
    Program,
    Scaling,
)

Key = TypeVar("Key")

_ADMIT, _LIMIT, _DEFER, _REFUSE = (VERDICTS.index(name) for name in ("admit", "limit", "defer", "refuse"))


@frozen
class Weighed:
    """The outcome of n examples, or of n kinds of them.

    unchecked: weights in millionths before assertions, [n, bands]. private: where a hard privacy rule
    matched. micro: the weights. verdicts: their codes (`VERDICTS`).
    """

    unchecked: Micro
    private: BoolArray
    micro: Micro
    verdicts: npt.NDArray[np.uint8]


class Weighing:
    """The folded form of one program. `conditions` are in the order of the columns that `weigh` takes."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._bands = {name: index for index, name in enumerate(program.band_names)}
        self._learnable = [name != QUARANTINE for name in program.band_names]
        self._signals = {spec.name: spec for spec in program.signals}
        active = list(_active_clauses(program))
        hard = [assertion for assertion in program.assertions if assertion.level == "hard"]
        self._grants = _grouped((g.weights, g.when) for g in program.grants if g.level == "hard")
        self._caps = _grouped(((clause.caps, clause.defers), when) for _, clause, when in active)
        self._scalings = _grouped((m.scalings, m.when) for m in program.modulations if m.level == "hard")
        self._checks = _grouped(((a.form, a.band, a.bound), a.when) for a in hard if a.form != "implies")
        self._private = any_of(when for _, clause, when in active if clause.effect == "confined")
        self._broken = any_of(And((a.when, Not(a.then))) for a in hard if a.form == "implies")
        groups = (self._grants, self._caps, self._scalings, self._checks)
        self.conditions: tuple[Condition, ...] = (
            *(any_of(whens) for group in groups for whens in group.values()),
            self._private,
            self._broken,
        )

    @property
    def scaled(self) -> slice:
        """The conditions under which signals scale weights."""
        first = len(self._grants) + len(self._caps)
        return slice(first, first + len(self._scalings))

    def weigh(self, truth: BoolArray, signals: Mapping[str, int | Array]) -> Weighed:
        """Return the outcome for the truth of `conditions` [n, conditions] and encoded signals [n]."""
        count, bands = len(truth), len(self._bands)
        columns = iter(truth.T)
        granted = np.zeros((count, bands), np.int64)
        for weights in self._grants:
            np.maximum(granted, np.array(weights, np.int64), out=granted, where=next(columns)[:, None])
        bound = np.full((count, bands), self._program.max_weight, np.int64)
        lasting = bound.copy()
        for caps, defers in self._caps:
            holds = next(columns)[:, None]
            np.minimum(bound, np.array(caps, np.int64), out=bound, where=holds)
            if not defers:
                np.minimum(lasting, np.array(caps, np.int64), out=lasting, where=holds)
        factors = np.full((count, bands), SCALE, np.int64)
        for scalings in self._scalings:
            self._scale(factors, scalings, next(columns), signals)
        unchecked = np.minimum(granted, bound) * factors // SCALE
        matching = [next(columns) for _ in self._checks]
        private, refused = next(columns), next(columns).copy()
        for (form, band, most), holds in zip(self._checks, matching, strict=True):
            refused |= holds & self.fails(form, band, most, unchecked, private)
        micro = np.where(refused[:, None], 0, unchecked)
        waits = ~refused & (np.minimum(granted, lasting) * factors // SCALE).any(axis=1)
        return Weighed(unchecked, private, micro, self._verdicts(micro, waits))

    def fails(self, form: str, band: str, bound: int, unchecked: Micro, private: BoolArray) -> BoolArray:
        """Return where weights are not what an assertion asks; `implies` does not look at them.

        private: where a hard privacy rule matched, [n].
        """
        reached: BoolArray = unchecked > 0
        somewhere: BoolArray = np.logical_or.reduce(reached, axis=1)
        match form:
            case "never_reach":
                return reached[:, self._bands[band]]
            case "at_most":
                return (unchecked > bound)[:, self._bands[band]]
            case "always_refuse":
                return somewhere
            case _:
                return somewhere & ~private

    def _scale(
        self,
        factors: Micro,
        scalings: tuple[Scaling, ...],
        holds: BoolArray,
        signals: Mapping[str, int | Array],
    ) -> None:
        for scaling in scalings:
            value = signals[scaling.signal]
            given = np.full(len(holds), value, np.int64) if isinstance(value, int) else value
            column = factors[:, self._bands[scaling.band]]
            factor = scaling_factors(scaling, self._signals[scaling.signal], given)
            np.minimum(column, factor, out=column, where=holds)

    def _verdicts(self, micro: Micro, waits: BoolArray) -> npt.NDArray[np.uint8]:
        full = (micro[:, self._learnable] >= SCALE).all(axis=1)
        verdicts = np.where(full, _ADMIT, _LIMIT).astype(np.uint8)
        nothing = ~micro.any(axis=1)
        verdicts[nothing] = np.where(waits[nothing], _DEFER, _REFUSE)
        return verdicts


def weighing_of(program: Program) -> Weighing:
    """Return the folded form of a program; the same object each time for the same program."""
    known: Weighing | None = program.__dict__.get("_weighing")  # beside the cache of `Program.digest`
    if known is None:
        known = program.__dict__["_weighing"] = Weighing(program)
    return known


def naming_conditions(program: Program) -> dict[str, Condition]:
    """Return for each rule when a decision names it; of an assertion, when its weights are looked at."""
    found: dict[str, Condition] = {}
    found |= {grant.name: grant.when for grant in program.grants}
    found |= {modulation.name: modulation.when for modulation in program.modulations}
    found |= {limit.name: Or(tuple(clause.when for clause in limit.clauses)) for limit in program.limits}
    found |= {a.name: _suspicion(a) for a in program.assertions}
    return dict(sorted(found.items()))


def _suspicion(assertion: Assertion) -> Condition:
    return And((assertion.when, Not(assertion.then))) if assertion.form == "implies" else assertion.when


def _active_clauses(program: Program) -> Iterator[tuple[Limit, Clause, Condition]]:
    """Yield the clauses of enforced limits, each with when it holds and no waiver lifts it."""
    lifting = _grouped((waiver.rule, waiver.when) for waiver in program.waivers)
    for limit in program.limits:
        if limit.level == "hard":
            lifted = lifting.get(limit.name)
            kept = (Not(any_of(lifted)),) if lifted else ()
            for clause in limit.clauses:
                yield limit, clause, And((clause.when, *kept)) if kept else clause.when


def _grouped(pairs: Iterable[tuple[Key, Condition]]) -> dict[Key, list[Condition]]:
    groups: dict[Key, list[Condition]] = {}
    for key, when in pairs:
        groups.setdefault(key, []).append(when)
    return groups
