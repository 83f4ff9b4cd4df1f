"""The conditions of the privacy claim that a program alone can break, checked when a run begins.

What a private example does in a step may depend on the example, the clock and the parameters, and on nothing
else. Exposures count the steps that it was drawn for before; `copies` counts those of its near-duplicates,
and tells public examples of private ones. A signal that the caller hands over may be computed from anything.
Those that the governor measures itself are of public examples alone, and a private example has their default.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Literal, TypeAlias

from gradwarden.policy.checking.walk import Node, children, signals_of
from gradwarden.policy.linting.domain import Domain
from gradwarden.policy.linting.possible import possible
from gradwarden.policy.program import (
    Assertion,
    ClockValue,
    Condition,
    Grant,
    Limit,
    Modulation,
    Program,
)
from gradwarden.runtime.errors import PrivacyError

Trust: TypeAlias = Literal["exposures", "signals", "sampling"]
"""What a caller may answer for: that decisions by exposures, or by signals given, do not depend on draws;
that private units are drawn by Poisson sampling at the planned rate."""

TRUSTS: tuple[Trust, ...] = ("exposures", "signals", "sampling")

COPIES = "copies"

FUEL = 20_000
"""How long is looked for an example under a privacy rule that another rule stops by its exposures."""


def check_trust(on_trust: Collection[str]) -> None:
    """Raise PrivacyError for what a caller cannot answer for."""
    strange = sorted(set(on_trust) - set(TRUSTS))
    if strange:
        raise PrivacyError(f"`{strange[0]}` cannot be taken on trust", help=f"one of {', '.join(TRUSTS)}")


def check_conditions(program: Program, on_trust: Collection[str]) -> None:
    """Raise PrivacyError where a program's decisions depend on which private examples were drawn before.

    on_trust: what the caller answers for (`Trust`).
    """
    private = [x for x in program.limits if x.privacy is not None and x.level == "hard"]
    if not private or "exposures" in on_trust:
        return
    for name, by in _by_history(program, private):
        raise PrivacyError(
            f"`{name}` may decide by {by}, which depends on the steps that private examples were drawn for",
            help="exclude private examples there (`and not …`), limit by `at most N epochs` or a date, or "
            'answer for it with `on_trust=["exposures"]`, which the ledger records',
        )


def check_sampling(sampled: bool, on_trust: Collection[str]) -> None:
    """Raise PrivacyError where no sampler holds steps to its draws and nobody answers for them."""
    if not sampled and "sampling" not in on_trust:
        raise PrivacyError(
            "nothing shows that private examples are drawn by Poisson sampling, which epsilon is reckoned by",
            help="pass `Privacy(plan, sampler=…)` and `dataset=`, to which each step is then held, or answer "
            'for it with `on_trust=["sampling"]`, which the ledger records; a shuffled loader is no Poisson '
            "sampling",
        )


def check_signals(given: Collection[str], on_trust: Collection[str]) -> None:
    """Raise PrivacyError for signals that a caller hands over and does not answer for."""
    if given and "signals" not in on_trust:
        raise PrivacyError(
            f"the signal `{min(given)}` is given by the caller: under privacy rules it may depend on no "
            "private example but the one it is of, and on nothing that happened before",
            help='leave it to the governor to measure, or answer for it with `on_trust=["signals"]`, which '
            "the ledger records",
        )


def _by_history(program: Program, private: Sequence[Limit]) -> Iterator[tuple[str, str]]:
    """Yield the hard rules that decide by what depends on draws, and what that is."""
    for name, condition, _ in _effects(program):
        if COPIES in signals_of(condition):
            yield name, f"`{COPIES}`"
    for name in _deciding_by("exposures", program, private):
        yield name, "exposures"
    for rule in program.modulations:
        if rule.level == "hard" and any(scaling.signal == COPIES for scaling in rule.scalings):
            yield rule.name, f"`{COPIES}`"


def decides_by_epoch(program: Program) -> bool:
    """Return whether what an example under a privacy rule may do depends on the epoch.

    The caller advances it, and must not do so by who was drawn. That cannot be checked.
    """
    private = [x for x in program.limits if x.privacy is not None and x.level == "hard"]
    return any(True for _ in _deciding_by("epoch", program, private))


def _deciding_by(clock: str, program: Program, private: Sequence[Limit]) -> Iterator[str]:
    """Yield the hard rules that may limit an example under a privacy rule, and read this value."""
    domain = Domain(program.attributes, program.signals, fuel=FUEL)
    under = [(limit.clauses[0].when, limit.clauses[0].caps) for limit in private]
    for name, condition, caps in _effects(program):
        if _reads(condition, clock) and any(
            any(inside and cap < program.max_weight for inside, cap in zip(confined, caps, strict=True))
            and possible(domain, (condition, True), (when, True)) is not False
            for when, confined in under
        ):
            yield name


def _effects(program: Program) -> Iterator[tuple[str, Condition, tuple[int, ...]]]:
    """Yield the conditions of hard rules, with the weight per band that they leave at most."""
    nothing = (0,) * len(program.bands)
    for limit in program.limits:
        if limit.level == "hard":
            for clause in limit.clauses:
                yield limit.name, clause.when, nothing if limit.privacy else clause.caps
    rules: Iterator[Grant | Modulation | Assertion]
    rules = chain(program.grants, program.modulations, program.assertions)
    for rule in rules:
        if rule.level == "hard":
            yield rule.name, rule.when, nothing
            if isinstance(rule, Assertion):
                yield rule.name, rule.then, nothing
    for waiver in program.waivers:
        yield waiver.name, waiver.when, nothing


def _reads(condition: Condition, clock: str) -> bool:
    pending: list[Node] = [condition]
    while pending:
        node = pending.pop()
        if isinstance(node, ClockValue) and node.name == clock:
            return True
        pending += children(node)
    return False
