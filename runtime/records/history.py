"""What a run's entries add up to: the state that a resumed run needs and that a verifier recomputes.

Decision classes and decisions are numbered from 0 anew after each `opened`, `policy_changed` and `resumed`
entry.

Only what entries say is used here; whether they say the truth is checked by `verify`. An exposure is counted
when a step commits, once for each of its examples whose decision let some weight through. A step that a crash
left without an outcome may have moved the model: when the run is resumed it counts as an exposure, and as a
step of every privacy budget that was not spent. Steps that a run abandons, going back to earlier weights,
count as all others do; `branches` tells which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import unpacked
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.records.branches import Branches, Spans, length


@frozen
class Counts:
    """How far a run has come. exposed: examples that it learned from, once for each step that they shaped.

    abandoned: steps before `next_step` that did not lead to the weights in hand.
    """

    next_step: int = 0
    committed: int = 0
    refused: int = 0
    exposed: int = 0
    abandoned: int = 0


@dataclass(slots=True)
class PendingStep:
    """A recorded intent that has neither been committed nor refused yet.

    packed: its commitments as the ledger holds them, in base64. reach: the bands (bit i: band i) of every
    decision declared so far; examples name decisions by number.
    """

    step: int
    body: Mapping[str, Any]
    packed: Sequence[str]
    reach: Sequence[int]

    @property
    def commitments(self) -> list[bytes]:
        """The commitments of the step's examples, in order."""
        return unpacked(self.packed)

    def learned(self) -> list[bytes]:
        """Return the commitments of the examples whose decision let some weight through."""
        return [c for c, weight in zip(self.commitments, self.weights(), strict=True) if weight]

    def weights(self) -> Iterator[int]:
        """Yield the bands in which each example has weight, 0 where it has none."""
        return map(self.reach.__getitem__, self.body["decision"])


@dataclass(slots=True)
class History:
    """A fold over the entries of one ledger: what they add up to, without its steps.

    To go through the steps themselves: `verification.opened_data.RecordedRun`.
    """

    opened: Mapping[str, Any] | None = None
    program_parts: list[str] = field(default_factory=list)
    program_digest: str = ""
    decisions: list[Mapping[str, Any]] = field(default_factory=list)
    reach: list[int] = field(default_factory=list)
    next_step: int = 0
    committed: int = 0
    refused: int = 0
    example_count: int = 0
    exposures: dict[bytes, int] = field(default_factory=dict)
    spending: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unsettled: dict[str, int] = field(default_factory=dict)
    """Per privacy rule, steps without an outcome since the last committed one."""
    pending: PendingStep | None = None
    sealed: bool = False
    anchors: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per band, its `anchored` entry under the program in force."""
    branches: Branches = field(default_factory=Branches)
    former_anchors: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same under the program before; none once a step was proposed under the one in force."""
    _parts: list[str] = field(default_factory=list)

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Advance by one entry. Kinds that change no state are ignored."""
        match kind:
            case "step":
                self._propose(body)
            case "committed":
                self._commit(body)
            case "opened":
                self.opened = body
                self._expect_program(body["policy"]["digest"])
            case "policy_changed":
                self.change_anchors()
                self._expect_program(body["policy"]["digest"])
            case "program":
                self.program_parts.append(body["text"])
            case "decisions":
                self.decisions += body["decisions"]
                self.reach += [bands_of(decision["weights"]) for decision in body["decisions"]]
            case "examples":
                self._parts.append(body["commitments"])
            case "refused":
                self.refused += 1
                self.pending = None
            case "anchored":
                self.anchors[body["band"]] = body
            case "checkpoint" | "rewound":
                self.branches.apply(kind, body)
            case "resumed":
                self.resume()
            case "skipped":
                self.next_step = body["until"]
            case "paid":
                known = self.private_steps
                for rule, steps in body["rules"].items():
                    self.unsettled[rule] = self.unsettled.get(rule, 0) + steps - known.get(rule, 0)
            case "sealed":
                self.sealed = True

    def _expect_program(self, digest: str) -> None:
        self.program_digest = digest
        self.program_parts = []
        self.decisions, self.reach = [], []

    def change_anchors(self) -> None:
        """Take the anchors so far for those of a program that is no longer in force."""
        self.former_anchors |= self.anchors
        self.anchors = {}

    def _propose(self, body: Mapping[str, Any]) -> None:
        self.former_anchors = {}
        self.pending = PendingStep(body["step"], body, (*self._parts, body["commitments"]), self.reach)
        self._parts.clear()
        self.next_step = body["step"] + 1

    def _commit(self, body: Mapping[str, Any]) -> None:
        self.spending.update(body["privacy"])
        self.unsettled.clear()
        self.committed += 1
        self._expose()

    def resume(self) -> None:
        """Take what follows for a resumed run."""
        self.decisions, self.reach = [], []
        self._parts.clear()
        if self.pending is None or self.opened is None:
            return
        spent = self.pending.body["spent"]
        for rule in (terms["rule"] for terms in self.opened["privacy"]):
            if rule not in spent:
                self.unsettled[rule] = self.unsettled.get(rule, 0) + 1
        self._expose()

    def _expose(self) -> None:
        if self.pending is not None:
            self.example_count += self.expose(self.pending)
            self.pending = None

    def expose(self, step: PendingStep) -> int:
        """Count the examples of a step that the model may have learned from; return how many they are."""
        learned = step.learned()
        for commitment in learned:
            self.exposures[commitment] = self.exposures.get(commitment, 0) + 1
        return len(learned)

    def advance(self, steps: int, committed: int, learned: int) -> None:
        """Advance by steps with their outcomes that spent no budget, where no step waits for its outcome.

        committed: how many of the steps were. learned: how many examples the model learned from.
        """
        self.former_anchors = {}
        self.next_step += steps
        self.committed += committed
        self.refused += steps - committed
        self.example_count += learned
        if committed:
            self.unsettled.clear()

    @property
    def private_steps(self) -> dict[str, int]:
        """Steps that each privacy rule has paid for."""
        if not self.spending and not self.unsettled:
            return {}
        paid = {rule: spent["steps"] for rule, spent in self.spending.items()}
        return paid | {rule: paid.get(rule, 0) + count for rule, count in self.unsettled.items()}

    @property
    def effective(self) -> Spans:
        """The steps that led to the weights in hand."""
        return self.branches.leading(self.next_step)

    @property
    def counts(self) -> Counts:
        """What a run that goes on here counts on from."""
        abandoned = self.next_step - length(self.effective)
        return Counts(self.next_step, self.committed, self.refused, self.example_count, abandoned)

    @property
    def parts(self) -> int:
        """How many `examples` entries have come for the next step."""
        return len(self._parts)

    @property
    def program_text(self) -> str:
        """The canonical JSON of the program now in force, joined from its parts."""
        return "".join(self.program_parts)


def bands_of(weights: Sequence[int]) -> int:
    """Return the bands (bit i: band i) in which a decision has weight."""
    return sum(1 << band for band, weight in enumerate(weights) if weight)


def read_history(
    path: str, size: int, beside: Callable[[str, Mapping[str, Any]], None] = lambda kind, body: None
) -> History:
    """Return what the first `size` entries of a ledger add up to. beside: is told of each of them, too."""
    history = History()
    for entry in islice(read_entries(path), size):
        history.apply(entry.kind, entry.body)
        beside(entry.kind, entry.body)
    return history
