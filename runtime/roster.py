"""The examples of a run: which row of the admission tables each id has, its commitment and its exposures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np

from gradwarden.policy.context import Context, IntArray
from gradwarden.policy.evaluation.admission import Admission, Admitted
from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.memorization.copies import CopyCounter
from gradwarden.runtime.memorization.exposures import ExposureCounter
from gradwarden.runtime.memorization.rows import occurrence
from gradwarden.runtime.records.history import History

ID = "id"
"""The key of an example's identity in a mapping of its metadata."""

Examples: TypeAlias = Sequence[str | Mapping[str, Any] | tuple[str, Mapping[str, Any]]]
"""A batch: known ids, mappings with an `id`, or (id, metadata) pairs; the order is that of the losses."""


@dataclass(frozen=True, slots=True)
class Member:
    """One known example."""

    id: str
    metadata: Mapping[str, Any]
    commitment: bytes


class Roster:
    """Knows every example that was ever proposed, in the order of first appearance (the row).

    clusters: which examples are copies of one text, by id; see `CopyCounter`.
    """

    def __init__(
        self, program: Program, committer: Committer, clusters: Mapping[str, str] | None = None
    ) -> None:
        self._admission = Admission(program)
        self._committer = committer
        self._rows: dict[str, int] = {}
        self._members: list[Member] = []
        self._exposures = ExposureCounter()
        self._copies = CopyCounter(clusters) if clusters else None
        self._past: Mapping[bytes, int] = {}
        self._declared = 0

    def resume(self, history: History) -> None:
        """Take over the exposures that the ledger records; they are found again by commitment."""
        self._past = dict(history.exposures)
        self._recall(0)

    def change_program(self, program: Program) -> None:
        """Classify every known example anew."""
        self._admission = Admission(program)
        self._declared = 0
        self._admission.add([member.metadata for member in self._members])

    def add(self, examples: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Make examples known. Raises ExampleError where an id comes back with other metadata."""
        new: dict[str, Member] = {}
        for name, metadata in examples:
            row = self._rows.get(name)
            known = new.get(name) if row is None else self._members[row]
            if known is None:
                new[name] = Member(name, _kept(metadata), self._committer.commit(name))
            elif not _same(known.metadata, metadata):
                raise ExampleError(
                    f"the example `{name}` comes with other metadata than before",
                    help="an example keeps its metadata throughout a run; give changed examples a new id",
                )
        if not new:
            return
        start, fresh = len(self._members), list(new.values())
        self._admission.add([member.metadata for member in fresh])
        self._members += fresh
        if self._copies is not None:
            self._copies.join(new)
        self._rows.update(zip(new, range(start, len(self._members)), strict=True))
        self._recall(start)

    def _recall(self, start: int) -> None:
        """Give the examples from row `start` on the exposures that a resumed ledger has for them."""
        if self._past:
            past = [self._past.get(member.commitment, 0) for member in self._members[start:]]
            self.expose(np.repeat(np.arange(start, len(self._members)), past))

    def rows(self, examples: Examples) -> IntArray:
        """Return the row of each example of a batch, making new ones known.

        Raises ExampleError for what is no example, an id that is not known, or changed metadata.
        """
        if isinstance(examples, str | bytes | Mapping) or not isinstance(examples, Sequence):
            raise ExampleError(
                "a batch is a sequence of examples",
                help="give a list of ids, of mappings with an `id`, or of (id, metadata) pairs",
            )
        batch = [_split(example) for example in examples]
        self.add(example for example in batch if not isinstance(example, str))
        names = [example if isinstance(example, str) else example[0] for example in batch]
        try:
            return np.fromiter((self._rows[name] for name in names), dtype=np.int64, count=len(names))
        except KeyError as error:
            raise ExampleError(
                f"the example `{error.args[0]}` is not known",
                help="give its metadata with it, or add it before with `governor.roster.add`",
            ) from error

    def describe(self, rows: IntArray) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the ids and metadata of a batch, for another process's roster."""
        members = [self._members[row] for row in rows.tolist()]
        return [(member.id, member.metadata) for member in members]

    def admit(self, rows: IntArray, context: Context) -> Admitted:
        return self._admission.admit(rows, context)

    def new_classes(self) -> list[dict[str, Any]]:
        """Return the decision classes that were not returned before, as the ledger records them."""
        fresh = self._admission.class_bodies(self._declared)
        self._declared += len(fresh)
        return fresh

    def commitments(self, rows: IntArray) -> bytes:
        """Return the commitments of a batch, joined."""
        return b"".join([self._members[row].commitment for row in rows.tolist()])

    def exposures(self, rows: IntArray) -> IntArray:
        """Return how often each example has shaped the model, earlier places of the same batch included."""
        return self._exposures.counts(rows) + occurrence(rows)

    def clusters(self, rows: IntArray) -> IntArray:
        """Return the number of the cluster of near-duplicates that each row is in, int64 [rows]."""
        return rows if self._copies is None else self._copies.clusters(rows)

    def copies(self, rows: IntArray) -> IntArray:
        """Return how often each example and its near-duplicates have shaped the model, counted alike."""
        return self.exposures(rows) if self._copies is None else self._copies.counts(rows)

    def expose(self, rows: IntArray) -> None:
        """Count one exposure for each row of a committed step that had any weight."""
        self._exposures.commit(rows)
        if self._copies is not None:
            self._copies.commit(rows)

    def unit(self, row: int, attribute: str) -> str:
        """Return the privacy unit of an example: the attribute's value, or the example itself for ``."""
        member = self._members[row]
        return str(member.metadata[attribute]) if attribute else member.id

    def names(self, rows: IntArray) -> list[str]:
        """Return the id of each row."""
        return [self._members[row].id for row in rows.tolist()]

    def known(self) -> Mapping[str, int]:
        """Return the row of every known id."""
        return self._rows

    def digest(self, without: Collection[int] = ()) -> dict[str, Any]:
        """Return how many examples are known, and a salted digest (hex) of them in any order.

        SHA-256 over the sorted metadata leaves of the examples (`Committer.metadata_leaf`). without: rows
        that are left out.
        """
        members = [member for row, member in enumerate(self._members) if row not in without]
        leaves = sorted(self._committer.metadata_leaf(m.id, m.metadata) for m in members)
        return {"digest": sha256(b"".join(leaves)).hexdigest(), "count": len(leaves)}


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that the caller cannot change afterwards."""
    return {key: copy(value) if isinstance(value, list | set) else value for key, value in metadata.items()}


def _same(known: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Return whether metadata are equal, NaN counted equal to NaN."""
    try:
        if known == given:
            return True
        return known.keys() == given.keys() and all(
            known[key] == given[key] or (known[key] != known[key] and given[key] != given[key])
            for key in known
        )
    except ValueError:  # arrays have no truth value; metadata that hold one are invalid, whatever is in it
        return repr(known) == repr(dict(given))


def _split(example: Any) -> str | tuple[str, Mapping[str, Any]]:
    match example:
        case str():
            return example
        case (str(name), Mapping() as metadata):
            return name, metadata
        case Mapping() if isinstance(example.get(ID), str):
            return example[ID], {key: value for key, value in example.items() if key != ID}
        case _:
            raise ExampleError(
                f"`{str(example)[:80]}` is no example",
                help="an example is a known id, a mapping with a string `id`, or an (id, metadata) pair",
            )
