"""What another policy would have decided on the steps that a run proposed.

Every example of every recorded step is decided again under the other policy: with its metadata, with the
clock and the signals that were recorded, and with the exposures that the other policy would have led to. What
is recorded of the model itself stays as it was: signals and losses are those of the run that took place, and
a step that was refused for its gradient stays refused. Budgets count as spent where they were.

The ranks of a job are gone through together, step by step, so that exposures are those of the whole job,
wherever an example was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path

import numpy as np

from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.admission import Classification
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.replay import Replayer
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.verification.opened_data import OpenedData, RecordedRun, RecordedStep, Stretch


@dataclass(slots=True)
class Difference:
    """How the decisions of a run and of another policy differ; every count is of examples in steps.

    steps: proposed. steps_changed: with some decision that differs. uses: examples decided. verdicts: by
    (recorded, other) verdict. bands: per band, the total weight in millionths as recorded and under the other
    policy; a band that one of them does not have counts 0 there. admitted_only_before, admitted_only_after:
    examples that shaped something under one alone. refusing: how many the other policy's rules stopped, by
    rule. first: the first step with a difference.
    """

    steps: int = 0
    steps_changed: int = 0
    uses: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bands: dict[str, list[int]] = field(default_factory=dict)
    admitted_only_before: int = 0
    admitted_only_after: int = 0
    refusing: Counter[str] = field(default_factory=Counter)
    first: int | None = None

    def take(self, step: int, *, changed: bool) -> None:
        """Count a step. changed: whether some decision in it differs."""
        self.steps += 1
        if changed:
            self.steps_changed += 1
            if self.first is None:
                self.first = step

    def add(self, other: Difference) -> None:
        """Add what is counted of examples elsewhere; steps are not added up."""
        self.uses += other.uses
        self.verdicts.update(other.verdicts)
        self.admitted_only_before += other.admitted_only_before
        self.admitted_only_after += other.admitted_only_after
        self.refusing.update(other.refusing)
        for band, (before, after) in other.bands.items():
            totals = self.bands.setdefault(band, [0, 0])
            totals[0] += before
            totals[1] += after


@frozen
class JobDifference:
    """How the decisions of a job and of another policy differ. whole: of the ranks that were gone through,
    together; a step of several ranks is one step there. ranks: of each of them.
    """

    whole: Difference
    ranks: Mapping[int, Difference]


def what_if(ledger: Path, data: OpenedData, program: Program) -> Difference:
    """Return how another policy would have decided a run, whose ledger has been verified.

    Raises ExampleError where the secret is another run's, an example is missing from the data, or the policy
    reads a signal that the run did not record.
    """
    return what_if_of_ranks({0: ledger}, data, program).ranks[0]


def what_if_of_ranks(ledgers: Mapping[int, Path], data: OpenedData, program: Program) -> JobDifference:
    """Return how another policy would have decided a job. ledgers: of its ranks, each verified.

    Raises as `what_if`.
    """
    other = _Other(program, data)
    whole, ranks = Difference(), {rank: Difference() for rank in ledgers}
    proposed = [_parts(rank, ledger, data) for rank, ledger in ledgers.items()]
    for step, parts in groupby(merge(*proposed, key=_number), key=_number):
        changed = other.decide(tuple(parts), ranks)
        whole.take(step, changed=changed)
    for difference in ranks.values():
        whole.add(difference)
    return JobDifference(whole, ranks)


@frozen
class _Part:
    """What one rank proposed in a step."""

    rank: int
    step: RecordedStep
    stretch: Stretch


def _number(part: _Part) -> int:
    return int(part.step.body["step"])


def _parts(rank: int, ledger: Path, data: OpenedData) -> Iterator[_Part]:
    run = RecordedRun(ledger)
    if run.opened.get("secret_commitment") != data.secret_commitment:
        raise ExampleError("the secret is not the one of this run", help="it lies beside the run's ledger")
    for stretch in run.stretches():
        for step in stretch.steps:
            yield _Part(rank, step, stretch)


class _Other:
    """Decides recorded steps under another program; keeps the exposures that it would have led to."""

    def __init__(self, program: Program, data: OpenedData) -> None:
        self._program, self._data = program, data
        self._classes: Classification = data.classify(program)
        self._replayer = Replayer[Decision](program)
        self._split = partition(program)
        self._signals = {signal.name: signal for signal in program.signals}
        self._rules = frozenset(limit.name for limit in program.limits)
        self._exposures = np.zeros(len(data), np.int64)

    def decide(self, parts: Sequence[_Part], differences: Mapping[int, Difference]) -> bool:
        """Decide all parts of a step; count, by rank, how that differs, and return whether it does."""
        seen: Counter[int] = Counter()
        rows = [self._rows(part.step) for part in parts]
        decided = [self._decisions(part, some, seen) for part, some in zip(parts, rows, strict=True)]
        changed = False
        for part, some, decisions in zip(parts, rows, decided, strict=True):
            changed |= self._compare(part, some, decisions, differences[part.rank])
        return changed

    def _compare(
        self, part: _Part, rows: Sequence[int], decisions: Sequence[Decision], difference: Difference
    ) -> bool:
        """Count how a part's decisions differ from the recorded ones; return whether they do."""
        step, stretch, changed = part.step, part.stretch, False
        for place, (row, decision) in enumerate(zip(rows, decisions, strict=True)):
            recorded = stretch.decisions[step.body["decision"][place]]
            before = dict(zip(stretch.program.band_names, recorded["weights"], strict=True))
            after = dict(zip(self._program.band_names, decision.micro, strict=True))
            changed |= before != after or recorded["verdict"] != decision.verdict
            _count(difference, recorded["verdict"], decision, before, after)
            if not any(after.values()):
                difference.refusing.update(self._rules.intersection(decision.rules))
            if step.moved and any(decision.micro):
                self._exposures[row] += 1
        difference.take(_number(part), changed=changed)
        return changed

    def _rows(self, step: RecordedStep) -> list[int]:
        rows = [self._data.row(commitment) for commitment in step.commitments]
        if None in rows:
            raise ExampleError(
                f"example {rows.index(None)} of step {step.body['step']} is not in the data set",
                help="give the manifest of all examples that the run proposed",
            )
        return [row for row in rows if row is not None]

    def _decisions(self, part: _Part, rows: Sequence[int], seen: Counter[int]) -> Sequence[Decision]:
        """Decide a part of a step. seen: how often each example stands in the parts before it; is updated."""
        body, classes, split = part.step.body, self._classes, self._split
        exposures = []
        for row in rows:
            exposures.append(int(self._exposures[row]) + seen[row])
            seen[row] += 1
        slots = {
            name: [
                int(classes.slot_values(name)[row]) if classes.slot_present(name)[row] else None
                for row in rows
            ]
            for name in split.slots
        }
        return self._replayer.replay_step(
            [classes.classes[int(classes.class_ids[row])] for row in rows],
            slots=slots,
            exposures=exposures if split.uses_exposures else None,
            signals={name: self._recorded(name, body["signals"], part.stretch) for name in split.signals},
            step=body["step"],
            epoch=body["epoch"],
            today=body["today"],
            spent=frozenset(body["spent"]) & self._rules,
        )

    def _recorded(self, name: str, signals: dict[str, list[int]], stretch: Stretch) -> list[int]:
        """Return the recorded values of a signal, in the units of the other program."""
        known = {signal.name: signal for signal in stretch.program.signals}
        if name not in signals or known.get(name) != self._signals[name]:
            raise ExampleError(
                f"the policy reads the signal `{name}`, which the run did not record in that form",
                help="declare it as the policy of the run does, or leave out the rules that read it",
            )
        return signals[name]


def _count(
    difference: Difference,
    verdict: str,
    decision: Decision,
    before: dict[str, int],
    after: dict[str, int],
) -> None:
    difference.uses += 1
    difference.verdicts[verdict, decision.verdict] += 1
    had, has = any(before.values()), any(after.values())
    difference.admitted_only_before += had and not has
    difference.admitted_only_after += has and not had
    for band in (*before, *(band for band in after if band not in before)):
        totals = difference.bands.setdefault(band, [0, 0])
        totals[0] += before.get(band, 0)
        totals[1] += after.get(band, 0)
