"""The examples of a data set, found in a ledger again by whoever holds the run's secret.

A ledger names examples by salted commitments. With the secret the commitment of every id can be made, so that
the steps that an example was in, and what was recorded of it there, can be held against its metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwarden.policy.evaluation.admission import Classification
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.commitments import Committer, unpacked
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.ledger.reader import read_entries

MAX_EXAMPLES = 50_000_000


class OpenedData:
    """A data set whose examples can be found by commitment.

    pieces: ids and raw columns (`encode_columns`) of records that follow each other. Raises ExampleError for
    an id that is missing or comes twice.
    """

    def __init__(self, committer: Committer, pieces: Iterable[tuple[Sequence[object], Any]]) -> None:
        self.secret_commitment = committer.secret_commitment
        self.ids: list[str] = []
        self._pieces: list[tuple[int, Any]] = []
        self._rows: dict[bytes, int] = {}
        for names, columns in pieces:
            for name in names:
                self._add(committer, name)
            self._pieces.append((len(names), columns))

    def _add(self, committer: Committer, name: object) -> None:
        if name is None:
            raise ExampleError(
                f"record {len(self.ids) + 1} of the data set has no `id`",
                help="give the ids under which the run proposed its examples",
            )
        row = self._rows.setdefault(committer.commit(str(name)), len(self.ids))
        if row < len(self.ids) or row > MAX_EXAMPLES:
            raise ExampleError(
                f"the id `{name}` comes twice in the data set, or there are too many",
                help=f"give each example once, under its own id, and at most {MAX_EXAMPLES:,} of them",
            )
        self.ids.append(str(name))

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, commitment: bytes) -> int | None:
        """Return the row of an example; None where the data set has none of this commitment."""
        return self._rows.get(commitment)

    def classify(self, program: Program) -> Classification:
        """Return the classes of all examples under a program, by row."""
        classification = Classification(program)
        for count, columns in self._pieces:
            classification.append_columns(encode_columns(program, columns, count))
        return classification


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step as the ledger has it: the entry's index, its body, and the commitments of its examples.

    moved: whether the model may have moved: it was committed, or a crash took its outcome away.
    """

    index: int
    body: Mapping[str, Any]
    commitments: tuple[bytes, ...]
    moved: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps under one program, between two entries that number classes and decisions anew.

    classes, decisions: the bodies recorded, by number; they may grow while the steps are read.
    """

    program: Program
    classes: list[Mapping[str, Any]]
    decisions: list[Mapping[str, Any]]
    steps: Iterator[RecordedStep]


class RecordedRun:
    """Reads a run's steps, one by one, from a ledger that has been verified.

    `History` adds entries up to what a run goes on from, and keeps no step; this gives every step, with the
    classes and decisions that it names, and adds nothing up.

    opened: the body of the opening entry. The file is open only while a piece of it is read.
    """

    def __init__(self, ledger: Path) -> None:
        self._entries = read_entries(ledger, allow_partial_tail=True, held=False)
        self._next: Any = next(self._entries, None)
        self.opened: Mapping[str, Any] = {} if self._next is None else self._next.body

    def stretches(self) -> Iterator[Stretch]:
        """Yield the run's stretches in order; read the steps of each before the next."""
        program: Program | None = None
        while self._next is not None:
            kind = self._next.kind
            if kind == "program":
                program = self._program()
            elif kind in ("classes", "decisions", "examples", "step") and program is not None:
                classes: list[Mapping[str, Any]] = []
                decisions: list[Mapping[str, Any]] = []
                yield Stretch(program, classes, decisions, self._steps(classes, decisions))
            else:
                self._advance()

    def _advance(self) -> None:
        self._next = next(self._entries, None)

    def _program(self) -> Program:
        parts = []
        while self._next is not None and self._next.kind == "program":
            parts.append(self._next.body["text"])
            self._advance()
        return program_from_json("".join(parts))

    def _steps(
        self, classes: list[Mapping[str, Any]], decisions: list[Mapping[str, Any]]
    ) -> Iterator[RecordedStep]:
        packed: list[str] = []
        pending: tuple[int, Mapping[str, Any], tuple[bytes, ...]] | None = None
        while self._next is not None and self._next.kind not in ("policy_changed", "resumed"):
            entry = self._next
            match entry.kind:
                case "classes":
                    classes += entry.body["classes"]
                case "decisions":
                    decisions += entry.body["decisions"]
                case "examples":
                    packed.append(entry.body["commitments"])
                case "step":
                    found = unpacked([*packed, entry.body["commitments"]])
                    packed.clear()
                    pending = (entry.index, entry.body, tuple(found))
                case "committed" | "refused" if pending is not None:
                    yield RecordedStep(*pending, moved=entry.kind == "committed")
                    pending = None
            self._advance()
        if pending is not None:
            yield RecordedStep(*pending, moved=self._next is not None)
        if self._next is not None:
            self._advance()
