"""Turns the entries of a ledger into the rows of its index.

What entries say is taken as it is; whether it is true is for `verify`. Only what the rows rest on is checked:
that steps are numbered in order and that decisions are declared.
"""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.numbering import Numbered
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.provenance.contributions import added_rows, moved_rows

EVENTS = frozenset(
    [
        *(
            "opened",
            "policy_changed",
            "checkpoint",
            "rewound",
            "expired",
            "starved",
            "halted",
            "derived",
            "anchored",
            "resumed",
            "sealed",
        ),
        *("rotated", "revoked"),
    ]
)
"""Kinds of entries that are kept as they are."""


NOTHING_SPENT = b'"privacy":{}'
"""What stands in the outcome of a step that spent no privacy budget."""


class Rows(Protocol):
    """Takes rows of the tables of an index."""

    def add(self, table: str, **columns: Any) -> None:
        """Take rows: values by column, equally many of each."""

    def add_row(self, table: str, **values: Any) -> None:
        """Take one row; what is missing in it is null."""


class ExampleNumbers:
    """Numbers commitments from 0 in the order in which a ledger first names them."""

    def __init__(self) -> None:
        self._given: defaultdict[bytes, int] = defaultdict(count().__next__)
        self._readers: dict[int, Numbers] = {}
        """The numbers for those that each reader gave."""

    def __len__(self) -> int:
        return len(self._given)

    def number_of(self, commitment: bytes) -> int | None:
        """Return the number of a commitment, None where it has none yet."""
        return self._given.get(commitment)

    def of(self, packed: bytes) -> Numbers:
        """Return the numbers of commitments that are joined."""
        commitments: list[bytes] = np.frombuffer(packed, f"V{SIZE}").tolist()
        return np.fromiter(map(self._given.__getitem__, commitments), np.int64, len(commitments))

    def of_numbered(self, examples: Numbered) -> Numbers:
        """Return the numbers of commitments that their reader has numbered; to be asked of all, in order."""
        rows = self._readers.get(examples.reader, np.empty(0, np.int64))
        if examples.fresh:
            rows = np.concatenate([rows[: examples.known], self.of(examples.fresh)])
            self._readers[examples.reader] = rows
        numbers: Numbers = rows[np.frombuffer(examples.numbers, np.intc)]
        return numbers

    def commitments(self) -> list[bytes]:
        """Return the commitments by number."""
        return list(self._given)


class Numbering:
    """What the ledgers of one index number together: examples, programs and decisions.

    shared: whether there are several, the ranks of a job. What two of them say alike is then one thing: the
    nth program of a ledger, where it is that of the others, and a decision under it.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.examples = ExampleNumbers()
        self.decisions = 0
        self.programs: list[str] = []
        """By number: the digest of each."""
        self._known: dict[tuple[int, bytes], int] = {}

    def program(self, place: int, digest: str) -> tuple[int, bool]:
        """Return the number of a program, and whether it is new. place: among those of its ledger."""
        if self.shared and place < len(self.programs) and self.programs[place] == digest:
            return place, False
        self.programs.append(digest)
        return len(self.programs) - 1, True

    def decision(self, program: int, described: Mapping[str, Any]) -> tuple[int, bool]:
        """Return the number of a decision under a program, and whether it is new."""
        if self.shared:
            said = orjson.dumps({**described, "id": 0}, option=CANONICAL)
            number = self._known.setdefault((program, said), self.decisions)
            if number < self.decisions:
                return number, False
        self.decisions += 1
        return self.decisions - 1, True


@frozen
class _Intent:
    """A step without an outcome yet. entry: its index."""

    entry: int
    body: Mapping[str, Any]
    examples: Numbers


class Collector:
    """Writes the rows for the parts of one ledger, told in order. numbering: of all ledgers of the index."""

    def __init__(self, tables: Rows, numbering: Numbering | None = None) -> None:
        self._numbering = numbering or Numbering()
        self.examples = self._numbering.examples
        self.opened: Mapping[str, Any] = {}
        self.steps = self.uses = 0
        self._governed = 0
        """How many programs there were in this ledger."""
        self._program_number = -1
        self._fresh = False
        """Whether the rows of the program in force are to be written."""
        self._tables = tables
        self._bands: tuple[str, ...] = ()
        self._text: list[str] = []
        self._named: list[int] = []
        """The numbers of the decisions since the ledger last numbered them anew."""
        self._weights: list[list[int]] = []
        """What these give each band, in millionths."""
        self._weighty: list[bool] = []
        """Of these, whether they give some band weight."""
        self._packed: list[bytes] = []
        self._intent: _Intent | None = None
        self._contributed: list[Mapping[str, Any]] = []
        self._moved: list[Mapping[str, Any]] = []
        """What the step that waits says of contributions, entry by entry."""

    def accept(self, part: Part) -> None:
        """Take the next part. Raises TraceError where no rows can be made of it."""
        if isinstance(part, Turns):
            self._turns(part)
            return
        kind, body = part.kind, part.body
        match kind:
            case "step":
                self._step(part.index, body)
            case "committed":
                self._settle("committed", body)
            case "refused":
                self._settle("refused", body)
            case "examples":
                self._packed.append(b64decode(body["commitments"]))
            case "contributed" | "moved":
                if self._intent is not None and body["step"] == self._intent.body["step"]:
                    (self._contributed if kind == "contributed" else self._moved).append(body)
            case "decisions":
                self._declare(body)
            case "program":
                self._program(body)
            case "opened" | "policy_changed":
                self._govern(part.index, kind, body)
            case "resumed":
                self._settle("lost", {})
                self._renumber()
            case "skipped":
                self.steps = max(self.steps, body["until"])
        if kind in EVENTS:
            text = orjson.dumps(body, option=CANONICAL).decode()
            self._tables.add_row("events", entry=part.index, step=body.get("step"), kind=kind, body=text)

    def end(self) -> None:
        """Write the step that has no outcome, if there is one."""
        self._settle("open", {})

    def finish(self) -> None:
        """Write what is known only at the end, of all ledgers."""
        self.end()
        commitments = self.examples.commitments()
        numbers = np.arange(len(commitments), dtype=np.int32)
        self._tables.add("examples", example=numbers, commitment=commitments)

    # --- what governs --------------------------------------------------------------------------------------

    def _govern(self, entry: int, kind: str, body: Mapping[str, Any]) -> None:
        if kind == "opened":
            self.opened = body
            self._bands = tuple(body["bands"])
        self._renumber()
        self._text = []
        number, self._fresh = self._numbering.program(self._governed, body["policy"]["digest"])
        self._program_number = number
        self._governed += 1
        if self._fresh:
            self._tables.add_row(
                "programs", program=number, entry=entry, first_step=self.steps, **body["policy"]
            )

    def _renumber(self) -> None:
        self._named = []
        self._weights = []
        self._weighty = []
        self._packed = []

    def _program(self, body: Mapping[str, Any]) -> None:
        """Take a part of a program; of a whole one, which rules it has and why."""
        self._text.append(body["text"])
        if body["part"] + 1 != body["parts"]:
            return
        program = program_from_json("".join(self._text), "the program in the ledger")
        self._bands = program.band_names
        told: list[tuple[Any, str]] = [
            *((rule, "depth") for rule in program.grants),
            *((rule, rule.kind) for rule in program.limits),
            *((rule, "modulate") for rule in program.modulations),
            *((rule, "waive") for rule in program.waivers),
            *((rule, "assert") for rule in program.assertions),
            *((rule, "maintain") for rule in program.maintained),
        ]
        for rule, kind in told if self._fresh else ():
            self._tables.add_row(
                "policy_rules", program=self._program_number, rule=rule.name, kind=kind, because=rule.because
            )

    def _declare(self, body: Mapping[str, Any]) -> None:
        for described in body["decisions"]:
            if described["id"] != len(self._weighty) or len(described["weights"]) != len(self._bands):
                raise _odd(f"decision {described['id']} is out of order")
            number, fresh = self._numbering.decision(self._program_number, described)
            self._named.append(number)
            self._weights.append(described["weights"])
            self._weighty.append(any(described["weights"]))
            if not fresh:
                continue
            self._tables.add_row(
                "decisions", decision=number, program=self._program_number, verdict=described["verdict"]
            )
            for band, weight in zip(self._bands, described["weights"], strict=True):
                self._tables.add_row("weights", decision=number, band=band, weight=weight)
            parts = [
                ("rule", described["rules"]),
                *((part, described[part]) for part in ("advisory", "waived")),
            ]
            named = [(part, rule) for part, rules in parts for rule in rules]
            for part, rule in (*named, *described["obligations"]):
                self._tables.add_row("rules", decision=number, rule=rule, part=part)

    # --- steps ---------------------------------------------------------------------------------------------

    def _turns(self, turns: Turns) -> None:
        """Take steps with their outcomes."""
        numbers = np.array(turns.numbers, np.int64)
        if self._intent is not None or not np.array_equal(numbers, np.arange(len(numbers)) + self.steps):
            raise _odd(f"step {turns.numbers[0]} comes where step {self.steps} was due")
        decisions = np.frombuffer(turns.decisions, np.intc)
        examples = self.examples.of_numbered(turns.examples)
        committed = np.array(turns.committed, bool)
        self._use(np.repeat(numbers, turns.counts), examples, decisions, np.repeat(committed, turns.counts))
        told = not committed.all() or turns.outcomes.count(NOTHING_SPENT) < len(numbers)
        results = turns.results() if told else [{}] * len(numbers)
        for result in results:
            self._spend(result)
        why = {name: [result.get(name) for result in results] for name in ("gate", "reason", "detail")}
        self._tables.add(
            "steps",
            step=numbers,
            entry=turns.first + 2 * np.arange(len(numbers)),
            epoch=turns.epochs,
            today=turns.todays,
            count=turns.counts,
            verdict=turns.verdicts,
            outcome=np.where(committed, "committed", "refused"),
            **why,
        )
        self.steps += len(numbers)

    def _step(self, entry: int, body: Mapping[str, Any]) -> None:
        if self._intent is not None or body["step"] != self.steps:
            raise _odd(f"step {body['step']} comes where step {self.steps} was due")
        packed = b"".join([*self._packed, b64decode(body["commitments"])])
        self._packed = []
        if len(packed) != SIZE * body["count"]:
            raise _odd(f"step {body['step']} has not one commitment per example")
        self._intent = _Intent(entry, body, self.examples.of(packed))
        self._contributed, self._moved = [], []
        self.steps += 1

    def _settle(self, outcome: str, told: Mapping[str, Any]) -> None:
        """Write the step that waits for its outcome."""
        intent, self._intent = self._intent, None
        if intent is None:
            return
        self._spend(told)
        body = intent.body
        taken = outcome in ("committed", "lost")
        decisions = np.array(body["decision"], np.int64)
        step = np.full(len(decisions), body["step"], np.int64)
        self._use(step, intent.examples, decisions, np.full(len(step), taken))
        if taken:
            self._contribute(intent, decisions)
        self._tables.add_row(
            "steps",
            entry=intent.entry,
            outcome=outcome,
            **{name: body[name] for name in ("step", "epoch", "today", "count", "verdict")},
            **{name: told.get(name) for name in ("gate", "reason", "detail")},
        )

    def _contribute(self, intent: _Intent, decisions: Numbers) -> None:
        """Write what a step says of contributions that was taken, as far as is known."""
        step = intent.body["step"]
        given = [self._weights[number] for number in decisions.tolist()] if self._contributed else []
        shaped = {band: [any(one[n : n + 1]) for one in given] for n, band in enumerate(self._bands)}
        for example, band, norm in added_rows(self._contributed, intent.examples, shaped):
            self._tables.add_row("contributions", step=step, example=example, band=band, norm=norm)
        for band, norm in moved_rows(self._moved):
            self._tables.add_row("moves", step=step, band=band, norm=norm)

    def _spend(self, outcome: Mapping[str, Any]) -> None:
        """Write what an outcome says of privacy budgets."""
        for rule, spent in outcome.get("privacy", {}).items():
            self._tables.add_row("spending", step=outcome["step"], rule=rule, **spent)

    def _use(
        self,
        step: Numbers,
        examples: Numbers,
        decisions: npt.NDArray[np.integer[Any]],
        taken: npt.NDArray[np.bool_],
    ) -> None:
        """Write the examples of steps. decisions: as the ledger numbers them. taken: where weight counts."""
        if decisions.max(initial=-1) >= len(self._weighty):
            raise _odd("a step names a decision that is not declared")
        learned = taken & np.array(self._weighty, bool)[decisions]
        named = np.array(self._named, np.int32)[decisions]
        self._tables.add(
            "uses", step=step, example=examples.astype(np.int32), decision=named, learned=learned
        )
        self.uses += len(step)


def _odd(message: str) -> TraceError:
    return TraceError(f"no index can be made of the ledger: {message}", help="`gradwarden verify` says more")
