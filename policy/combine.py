"""The combining rules: from the truth of every condition to a decision.

Grants: the greatest weight per band wins, nothing granted means nothing learned. Limits: the least cap per
band wins, and a limit beats every grant. Modulations: the least factor per band wins, and never exceeds one.
Maximum and minimum are commutative, associative and idempotent, so no order can matter; a further limit can
only lower a minimum. Assertions are checked last and can only refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from gradwarden.policy.decision import Cause, Decision, Obligation, Stage, Verdict
from gradwarden.policy.program import SCALE, Assertion, Clause, Limit, Program, Scaling

QUARANTINE = "quarantine"
"""The band that `route to quarantine` leaves open, where the model declares it."""

STAGES: tuple[Stage, ...] = ("suppress", "retain", "privacy", "memorization", "curriculum", "pace")

Weights = tuple[int, ...]


def scaling_factor(scaling: Scaling, signal: int, lo: int, hi: int) -> int:
    """Return the factor in millionths for an encoded signal value within lo..hi."""
    if hi == lo:
        return min(scaling.at_low, scaling.at_high)
    return scaling.at_low + ((scaling.at_high - scaling.at_low) * (signal - lo)) // (hi - lo)


def combine(program: Program, truth: Sequence[bool], signal: Callable[[str], int]) -> Decision:
    """Return the decision for one example whose metadata are valid.

    `truth` has one entry per condition, in the order of `Program.conditions`. `signal` gives the encoded,
    clamped value of a declared signal; it is asked only for modulations that match.
    """
    known = iter(truth)
    granted, rules, advisory = _grants(program, known)
    limits = [(limit, [clause for clause in limit.clauses if next(known)]) for limit in program.limits]
    factors = _factors(program, known, signal, rules, advisory)
    lifted = {waiver.rule for waiver in program.waivers if next(known)}

    active: list[tuple[Limit, Clause]] = []
    waived: list[str] = []
    for limit, clauses in limits:
        if not clauses:
            continue
        if limit.name in lifted:
            waived.append(limit.name)
        elif limit.level == "advisory":
            advisory.append(limit.name)
        else:
            rules.append(limit.name)
            active += [(limit, clause) for clause in clauses]

    bound = _least(program, (clause.caps for _, clause in active))
    weights = _apply(granted, bound, factors)
    obligations = tuple(_obligations(active))
    failed = [a for a in _failed(program, known, weights, obligations) if _note(a, rules, advisory)]
    if failed:
        weights = (0,) * len(weights)

    causes = [_cause(limit.name, clause.effect) for limit, clause in active]
    if not any(granted):
        causes.append(_cause("", "not_granted"))
    causes += [_cause(assertion.name, "assertion") for assertion in failed]
    verdict, stage = _verdict(program.band_names, weights), None
    if not any(weights):
        waits = not failed and _waits(program, granted, active, factors)
        verdict = "defer" if waits else "refuse"
        stage = _stage(program, granted, active, bound, factors)
    return Decision(
        verdict=verdict,
        bands=program.band_names,
        micro=weights,
        rules=tuple(sorted(rules)),
        advisory=tuple(sorted(advisory)),
        waived=tuple(sorted(waived)),
        obligations=obligations,
        causes=tuple(causes),
        stage=stage,
    )


def _grants(program: Program, known: Iterator[bool]) -> tuple[Weights, list[str], list[str]]:
    granted = [0] * len(program.bands)
    rules: list[str] = []
    advisory: list[str] = []
    for grant in program.grants:
        if not next(known):
            continue
        if grant.level == "advisory":
            advisory.append(grant.name)
            continue
        rules.append(grant.name)
        granted = [max(pair) for pair in zip(granted, grant.weights, strict=True)]
    return tuple(granted), rules, advisory


def _factors(
    program: Program,
    known: Iterator[bool],
    signal: Callable[[str], int],
    rules: list[str],
    advisory: list[str],
) -> Weights:
    if not program.modulations:
        return (SCALE,) * len(program.bands)
    factors = dict.fromkeys(program.band_names, SCALE)
    specs = {spec.name: spec for spec in program.signals}
    for modulation in program.modulations:
        if not next(known):
            continue
        if modulation.level == "advisory":
            advisory.append(modulation.name)
            continue
        rules.append(modulation.name)
        for scaling in modulation.scalings:
            spec = specs[scaling.signal]
            factor = scaling_factor(scaling, signal(scaling.signal), spec.lo, spec.hi)
            factors[scaling.band] = min(factors[scaling.band], factor)
    return tuple(factors.values())


def _least(program: Program, caps: Iterator[Weights]) -> Weights:
    columns = zip((program.max_weight,) * len(program.bands), *caps, strict=True)
    return tuple(map(min, columns))


def _apply(granted: Weights, bound: Weights, factors: Weights) -> Weights:
    return tuple([min(g, b) * f // SCALE for g, b, f in zip(granted, bound, factors, strict=True)])


@lru_cache(maxsize=4096)
def _cause(rule: str, effect: str) -> Cause:
    return Cause(rule, effect)


def _obligations(active: Sequence[tuple[Limit, Clause]]) -> Iterator[Obligation]:
    for limit, clause in active:
        if clause.effect == "confined":
            yield Obligation("privacy", limit.name, limit.privacy)
        elif clause.effect == "quarantined":
            yield Obligation("quarantine", limit.name)
        elif clause.effect == "held_out":
            yield Obligation("hold_out", limit.name, one_in=limit.hold_out)


def _failed(
    program: Program, known: Iterator[bool], weights: Weights, obligations: Sequence[Obligation]
) -> Iterator[Assertion]:
    for assertion in program.assertions:
        when = next(known)
        then = next(known) if assertion.form == "implies" else True
        if not when:
            continue
        match assertion.form:
            case "implies":
                holds = then
            case "always_refuse":
                holds = not any(weights)
            case "always_private":
                holds = not any(weights) or any(o.kind == "privacy" for o in obligations)
            case "never_reach":
                holds = weights[program.band_names.index(assertion.band)] == 0
            case "at_most":
                holds = weights[program.band_names.index(assertion.band)] <= assertion.bound
        if not holds:
            yield assertion


def _note(assertion: Assertion, rules: list[str], advisory: list[str]) -> bool:
    """List a failed assertion under its level; return whether it is enforced."""
    (rules if assertion.level == "hard" else advisory).append(assertion.name)
    return assertion.level == "hard"


def _waits(
    program: Program, granted: Weights, active: Sequence[tuple[Limit, Clause]], factors: Weights
) -> bool:
    """Return whether something would be learned but for the limits that time lifts."""
    if not any(clause.defers for _, clause in active):
        return False
    lasting = _least(program, (clause.caps for _, clause in active if not clause.defers))
    return any(_apply(granted, lasting, factors))


def _verdict(bands: tuple[str, ...], weights: Weights) -> Verdict:
    full = all(w >= SCALE for band, w in zip(bands, weights, strict=True) if band != QUARANTINE)
    return "admit" if full else "limit"


def _stage(
    program: Program,
    granted: Weights,
    active: Sequence[tuple[Limit, Clause]],
    bound: Weights,
    factors: Weights,
) -> Stage:
    """Return the first gate at which nothing remained. A prohibition is named before a missing grant."""
    caps: dict[str, Weights] = {}
    for limit, clause in active:
        known = caps.get(limit.kind)
        caps[limit.kind] = clause.caps if known is None else tuple(map(min, known, clause.caps))
    left = granted if any(granted) else (program.max_weight,) * len(granted)
    for stage in STAGES:
        if stage in caps:
            left = tuple(map(min, left, caps[stage]))
            if not any(left):
                return stage
    if not any(granted):
        return "depth"
    return "assert" if any(_apply(granted, bound, factors)) else "modulate"
