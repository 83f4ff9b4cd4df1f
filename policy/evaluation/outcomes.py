"""What follows from the truth of all leaves: one decision, or a base that signals still scale.

The truth of a partition's leaves, packed in a word, determines everything of a decision but the factors of
the modulations that match. Outcomes are worked out once per distinct word, by `combine`, and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array, BoolArray
from gradwarden.policy.combine import QUARANTINE, combine, scaling_factor
from gradwarden.policy.decision import VERDICTS, Decision, Problem, Verdict, invalid
from gradwarden.policy.evaluation.partition import Partition, partition
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE, Assertion, Modulation, Program, Scaling, SignalSpec

Micro = npt.NDArray[np.int64]

_ADMIT, _LIMIT, _DEFER, _REFUSE = (VERDICTS.index(name) for name in ("admit", "limit", "defer", "refuse"))

_WORDS = {
    "missing": "is required and absent",
    "unknown_attribute": "is not declared",
    "wrong_type": "is of another type than declared",
    "out_of_range": "is outside its declared range",
    "unknown_value": "is not one of its declared values",
    "too_long": "is too long",
    "not_finite": "is not a finite number",
}


@frozen
class Modulated:
    """Decisions that differ only by the factors of signals.

    plain: the decision without assertions where every factor is one; its weights are the base that is scaled.
    lasting: the base without the limits that time lifts. checks: hard assertions whose `when` holds. broken:
    whether an `implies` among them fails. advised: whether an advisory assertion's `when` holds.
    """

    truth: tuple[bool, ...]
    scalings: tuple[Scaling, ...]
    plain: Decision
    lasting: tuple[int, ...]
    checks: tuple[Assertion, ...]
    broken: bool
    advised: bool


class Outcomes:
    """The outcomes of one program, by word."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.partition: Partition = partition(program)
        self._known: dict[int, Decision | Modulated] = {}
        self._signals = {spec.name: spec for spec in program.signals}
        self._plain = replace(program, modulations=_flat(program.modulations), assertions=())
        self._lasting = replace(
            self._plain,
            limits=tuple(
                replace(limit, clauses=tuple(clause for clause in limit.clauses if not clause.defers))
                for limit in program.limits
            ),
        )
        self._lows = {spec.name: spec.lo for spec in program.signals}
        self._bands = {name: index for index, name in enumerate(program.band_names)}
        self._learnable = [name != QUARANTINE for name in program.band_names]

    def of(self, word: int) -> Decision | Modulated:
        """Return the decision for a word, or what is left to modulate."""
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = self._work_out(word)
        return known

    def decide(self, word: int, signals: Mapping[str, int]) -> Decision:
        """Return the decision for a word under encoded signals."""
        outcome = self.of(word)
        return outcome if isinstance(outcome, Decision) else self.modulate(outcome, signals)

    def modulate(self, outcome: Modulated, signals: Mapping[str, int]) -> Decision:
        """Return the decision of a modulated outcome under encoded signals."""
        if not outcome.checks and not outcome.advised:
            factors = [SCALE] * len(outcome.lasting)
            for scaling in outcome.scalings:
                spec, band = self._signals[scaling.signal], self._bands[scaling.band]
                factor = scaling_factor(scaling, signals[scaling.signal], spec.lo, spec.hi)
                factors[band] = min(factors[band], factor)
            weights = tuple(b * f // SCALE for b, f in zip(outcome.plain.micro, factors, strict=True))
            if any(weights):
                full = all(w >= SCALE or not free for w, free in zip(weights, self._learnable, strict=True))
                return _scaled(outcome.plain, weights, "admit" if full else "limit")
        return combine(self.program, outcome.truth, signals.__getitem__)

    def modulate_rows(
        self, outcome: Modulated, signals: Mapping[str, Array], count: int
    ) -> tuple[Micro, npt.NDArray[np.uint8], BoolArray]:
        """Return weights [count, bands], verdict codes [count] and where an assertion refused.

        signals: encoded, [count] each.
        """
        factors = np.full((count, len(outcome.lasting)), SCALE, np.int64)
        for scaling in outcome.scalings:
            column = factors[:, self._bands[scaling.band]]
            spec = self._signals[scaling.signal]
            np.minimum(column, scaling_factors(scaling, spec, signals[scaling.signal]), out=column)
        weights = np.array(outcome.plain.micro, np.int64) * factors // SCALE
        refused = self._refused(outcome, weights)
        weights[refused] = 0
        waits = ~refused & (np.array(outcome.lasting, np.int64) * factors // SCALE).any(axis=1)
        full = (weights[:, self._learnable] >= SCALE).all(axis=1)
        verdicts = np.where(full, _ADMIT, _LIMIT)
        nothing = ~weights.any(axis=1)
        verdicts[nothing] = np.where(waits[nothing], _DEFER, _REFUSE)
        return weights, verdicts.astype(np.uint8), refused

    def modulated_decisions(
        self, outcome: Modulated, signals: Mapping[str, Array], count: int
    ) -> tuple[Micro, npt.NDArray[np.uint8], list[Decision]]:
        """Return weights [count, bands], verdict codes [count] and the decision of every row."""
        weights, verdicts, refused = self.modulate_rows(outcome, signals, count)
        usual = weights.any(axis=1) & ~refused
        decisions = []
        for row, (micro, code, follows) in enumerate(
            zip(weights.tolist(), verdicts.tolist(), usual.tolist(), strict=True)
        ):
            if follows and not outcome.advised:
                decisions.append(_scaled(outcome.plain, tuple(micro), VERDICTS[code]))
            else:
                decisions.append(self.modulate(outcome, {k: int(v[row]) for k, v in signals.items()}))
        return weights, verdicts, decisions

    def _refused(self, outcome: Modulated, weights: Micro) -> BoolArray:
        refused = np.full(len(weights), outcome.broken)
        for check in outcome.checks:
            match check.form:
                case "never_reach":
                    refused |= weights[:, self._bands[check.band]] != 0
                case "at_most":
                    refused |= weights[:, self._bands[check.band]] > check.bound
                case "always_refuse":
                    refused |= weights.any(axis=1)
                case "always_private":
                    private = any(obligation.kind == "privacy" for obligation in outcome.plain.obligations)
                    refused |= weights.any(axis=1) & (not private)
                case "implies":
                    pass  # does not depend on weights: `broken`
        return refused

    def _work_out(self, word: int) -> Decision | Modulated:
        truth = self.partition.truth(word)
        program = self.program
        if not program.modulations:
            return combine(program, truth, self._lows.__getitem__)
        first = len(program.grants) + sum(len(limit.clauses) for limit in program.limits)
        matching = truth[first : first + len(program.modulations)]
        scalings = tuple(
            scaling
            for modulation, holds in zip(program.modulations, matching, strict=True)
            if holds and modulation.level == "hard"
            for scaling in modulation.scalings
        )
        if not scalings:
            return combine(program, truth, self._lows.__getitem__)
        return self._modulated(tuple(truth), scalings)

    def _modulated(self, truth: tuple[bool, ...], scalings: tuple[Scaling, ...]) -> Modulated:
        program = self.program
        first = len(program.grants)
        after = first + sum(len(limit.clauses) for limit in program.limits)
        end = after + len(program.modulations) + len(program.waivers)
        defers = [clause.defers for limit in program.limits for clause in limit.clauses]
        kept = tuple(t for t, waits in zip(truth[first:after], defers, strict=True) if not waits)
        rest = iter(truth[end:])
        checks: list[Assertion] = []
        broken = advised = False
        for assertion in program.assertions:
            when, then = next(rest), next(rest) if assertion.form == "implies" else True
            if when and assertion.level == "hard":
                checks.append(assertion)
                broken |= not then
            advised |= when and assertion.level == "advisory"
        return Modulated(
            truth=truth,
            scalings=scalings,
            plain=combine(self._plain, truth[:end], self._lows.__getitem__),
            lasting=combine(
                self._lasting, (*truth[:first], *kept, *truth[after:end]), self._lows.__getitem__
            ).micro,
            checks=tuple(checks),
            broken=broken,
            advised=advised,
        )


def outcomes_of(program: Program) -> Outcomes:
    """Return the outcomes of a program; the same object each time for the same program."""
    known: Outcomes | None = program.__dict__.get("_outcomes")  # beside the cache of `Program.digest`
    if known is None:
        known = program.__dict__["_outcomes"] = Outcomes(program)
    return known


def invalid_class(program: Program, problems: Iterable[tuple[str, str]]) -> Decision:
    """Return the decision for all examples with the same problems: (attribute or signal, code) pairs."""
    return invalid(
        program.band_names, tuple(Problem(name, code, f"`{name}` {_WORDS[code]}") for name, code in problems)
    )


def _scaled(plain: Decision, micro: tuple[int, ...], verdict: Verdict) -> Decision:
    """Return a decision that lets something through: only weights and verdict depend on the factors."""
    return Decision(
        verdict,
        plain.bands,
        micro,
        plain.rules,
        plain.advisory,
        plain.waived,
        plain.obligations,
        plain.causes,
    )


def _flat(modulations: tuple[Modulation, ...]) -> tuple[Modulation, ...]:
    """Return modulations that match as before and change nothing."""
    return tuple(
        replace(m, scalings=tuple(replace(s, at_low=SCALE, at_high=SCALE) for s in m.scalings))
        for m in modulations
    )


def scaling_factors(scaling: Scaling, spec: SignalSpec, signal: Array) -> Array:
    """Return `scaling_factor` for an array of encoded signal values."""
    if spec.hi == spec.lo:
        return np.full(len(signal), min(scaling.at_low, scaling.at_high), np.int64)
    rise, span = scaling.at_high - scaling.at_low, spec.hi - spec.lo
    offset = signal.astype(np.int64) - spec.lo
    if span * SCALE > np.iinfo(np.int64).max:
        offset = offset.astype(object)  # exact, for ranges no real signal has
    return (scaling.at_low + (rise * offset) // span).astype(np.int64)
