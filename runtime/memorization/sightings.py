"""Every example of every step of a ledger: how it was decided, which guards spoke, and what came of it.

A guard is a `memorization` rule, or a `retain` rule that limits nothing but exposures. It *flags* an example
where its condition holds: enforced, it also acts; advisory or waived, its word is all. A rule that holds out
tokens is a guard too, and flags nothing: it does the same to every example that it is about. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Limit, Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.records.history import History, PendingStep

Outcome = Literal["committed", "refused", "unknown"]
"""What came of a step. unknown: a crash took it away, and the step may have moved the model."""

OUTCOMES: Mapping[str, Outcome] = {"committed": "committed", "refused": "refused", "resumed": "unknown"}
"""What an entry of a kind says of the step before it."""

QUARANTINE, HELD_OUT = "quarantine", "held_out"


@frozen
class Guard:
    """A rule that limits what is memorized. effects: what it does to what it flags (`program.Effect`)."""

    rule: str
    kind: str
    level: str
    effects: tuple[str, ...]
    because: str

    @property
    def holds_out(self) -> bool:
        return HELD_OUT in self.effects


@frozen
class Terms:
    """What a program in force says: its guards by name, its `depth` rules, its bands."""

    guards: Mapping[str, Guard]
    grants: frozenset[str]
    bands: tuple[str, ...]


@frozen
class Sighting:
    """One example in one step.

    weights: millionths by band, in the order of `terms.bands`. acted, noted: the guards that flagged it,
    those that were enforced and those that were not. holding: those that held out tokens of it.
    """

    step: int
    commitment: bytes
    outcome: Outcome
    verdict: str
    weights: tuple[int, ...]
    granted: tuple[str, ...]
    acted: tuple[str, ...]
    noted: tuple[str, ...]
    holding: tuple[str, ...]
    terms: Terms

    @property
    def learned(self) -> bool:
        """Whether the model may have learned from the example in this step."""
        return self.outcome != "refused" and any(self.weights)

    @property
    def reached(self) -> tuple[str, ...]:
        """The bands that the example may have shaped in this step."""
        if not self.learned:
            return ()
        return tuple(band for band, weight in zip(self.terms.bands, self.weights, strict=True) if weight)


def sightings(path: str | os.PathLike[str]) -> Iterator[Sighting]:
    """Yield the examples of all steps of a ledger, in order.

    Raises LedgerDamaged, and LedgerError also for a sound ledger whose steps make no sense.
    """
    return sightings_of(read_entries(os.fspath(path)))


def sightings_of(entries: Iterable[Entry]) -> Iterator[Sighting]:
    """Yield the examples of all steps of some entries, from `opened` on. Raises LedgerError."""
    history, terms = History(), Terms({}, frozenset(), ())
    decisions: list[Mapping[str, Any]] = []
    for entry in entries:
        pending, kind = history.pending, entry.kind
        history.apply(kind, entry.body)
        if kind == "step":
            decisions = history.decisions
            if history.pending is not None:
                _check(history.pending, decisions, terms)
        elif kind in OUTCOMES:
            yield from _of_step(pending, decisions, OUTCOMES[kind], terms)
        elif kind == "program" and entry.body["part"] + 1 == entry.body["parts"]:
            terms = terms_of(program_from_json(history.program_text))
    yield from _of_step(history.pending, decisions, "unknown", terms)


def terms_of(program: Program) -> Terms:
    """Return what a program says of memorization."""
    guards = {limit.name: _guard(limit) for limit in program.limits if _is_guard(limit)}
    return Terms(guards, frozenset(grant.name for grant in program.grants), program.band_names)


def _is_guard(limit: Limit) -> bool:
    by_use = limit.kind == "retain" and all(clause.effect == "exposures_spent" for clause in limit.clauses)
    return limit.kind == "memorization" or by_use


def _guard(limit: Limit) -> Guard:
    effects = dict.fromkeys(clause.effect for clause in limit.clauses)
    return Guard(limit.name, limit.kind, limit.level, tuple(effects), limit.because)


def _check(pending: PendingStep, decisions: list[Mapping[str, Any]], terms: Terms) -> None:
    """Raise LedgerError for a step that names no decision of its program for each example."""
    commitments, named = pending.commitments, pending.body["decision"]
    bands = {len(decisions[number]["weights"]) if number < len(decisions) else -1 for number in set(named)}
    if len(commitments) != len(named) or not bands <= {len(terms.bands)}:
        raise LedgerError(
            f"step {pending.step:,} names no decision for each example, or one that its program cannot give",
            help="`gradwarden verify` says more",
        )


def _of_step(
    pending: PendingStep | None, decisions: list[Mapping[str, Any]], outcome: Outcome, terms: Terms
) -> Iterator[Sighting]:
    if pending is None:
        return
    for commitment, number in zip(pending.commitments, pending.body["decision"], strict=True):
        decision = decisions[number]
        enforced = [terms.guards[rule] for rule in decision["rules"] if rule in terms.guards]
        unenforced = (*decision["advisory"], *decision["waived"])
        noted = [terms.guards[rule] for rule in unenforced if rule in terms.guards]
        yield Sighting(
            pending.step,
            commitment,
            outcome,
            decision["verdict"],
            tuple(decision["weights"]),
            tuple(rule for rule in decision["rules"] if rule in terms.grants),
            tuple(guard.rule for guard in enforced if not guard.holds_out),
            tuple(guard.rule for guard in noted if not guard.holds_out),
            tuple(guard.rule for guard in enforced if guard.holds_out),
            terms,
        )
