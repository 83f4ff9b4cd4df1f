"""The tally of a run: what became of each example, in two sorted trees whose roots the ledger records.

A `tallied` entry holds the roots of two Merkle trees (RFC 6962) over all examples that the entries before it
name, in the order of their commitments:

- `commitments`: a leaf is the commitment, 32 bytes. Two neighbours show that none lies between them.
- `uses`: a leaf is canonical JSON, {"commitment", "exposed": [first, last] or null, "uses": […]}. An item of
  `uses` is {"decision": {"policy", "verdict", "weights", "rules"}, "exposures", "learned", "other", "times"}:
  the steps in which the example was so decided, in order, those from which the model may have learned
  (committed, or lost in a crash, with some weight) in `learned`, the rest in `other`; `exposures` counts the
  former, `times` all. A step that proposed it twice is there twice. Items are sorted by the text of their
  decision. `exposed` are the first and the last of all steps in `learned`. weights: by band, in millionths.
  policy: the digest of the program.

The roots follow from the ledger alone; `verify` makes them again.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.evidence.receipt import exposed_in
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.merkle import Tree, leaf_hashes
from gradwarden.runtime.ledger.reader import check_whole
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.provenance.collect import Collector
from gradwarden.runtime.provenance.sums import Column

KIND = "tallied"

AT_ONCE = 4_096
"""Leaves that are hashed together."""


@frozen
class Use:
    """A step that proposed the example in question. entry: the index of the step's entry."""

    step: int
    entry: int
    learned: bool


class Tally:
    """Adds up the examples of one ledger, told in order.

    watched: a commitment whose steps are listed, too (`uses`).
    """

    def __init__(self, watched: bytes | None = None) -> None:
        self._collector = Collector(self)
        self._watched = watched
        self._seen: dict[int, bool] = {}
        """Steps that proposed the watched example, and whether the model may have learned from it."""
        self.uses: list[Use] = []
        self._kept: list[tuple[Column, Column, Column]] = []
        """Of uses as they come: examples, decisions, and steps, whose lowest bit says whether it learned."""
        self._decisions: Column = np.empty(0, np.int32)
        self._steps: Column = np.empty(0, np.int64)
        """The same, the uses of each example together."""
        self._policies: list[str] = []
        self._decided: list[dict[str, Any]] = []
        self._commitments: list[bytes] = []
        self._places: list[int] = []
        """The number of each commitment, in the order of commitments."""

    def accept(self, part: Part) -> None:
        """Take the next part. Raises TraceError where steps are out of turn or decisions undeclared."""
        self._collector.accept(part)

    def finish(self) -> None:
        """Sort what was added up."""
        self._collector.finish()
        named = self._collector.examples.commitments()
        self._places = sorted(range(len(named)), key=named.__getitem__)
        self._commitments = [named[place] for place in self._places]
        self._texts = [orjson.dumps(one, option=CANONICAL).decode() for one in self._decided]
        self._starts = self._sort(len(named))

    def _sort(self, examples: int) -> list[int]:
        """Put the uses of each example together, in the order of steps; return where those of each begin."""
        if not self._kept:
            return [0] * (examples + 1)
        own, decisions, steps = map(np.concatenate, zip(*self._kept, strict=True))
        self._kept.clear()
        order = np.argsort(own, kind="stable")
        self._decisions, self._steps = decisions[order], steps[order]
        return [0, *np.cumsum(np.bincount(own, minlength=examples)).tolist()]

    # --- what it says --------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """Return the body of the `tallied` entry."""
        roots = {"commitments": Tree(), "uses": Tree()}
        for start in range(0, len(self._commitments), AT_ONCE):
            some = range(start, min(start + AT_ONCE, len(self._commitments)))
            roots["commitments"].extend(leaf_hashes(self._commitments[some.start : some.stop]))
            roots["uses"].extend(leaf_hashes(map(self.leaf, some)))
        return {
            "examples": len(self._commitments),
            **{name: tree.root().hex() for name, tree in roots.items()},
        }

    @property
    def commitments(self) -> list[bytes]:
        """All commitments, sorted."""
        return self._commitments

    def place(self, commitment: bytes) -> tuple[int, bool]:
        """Return where a commitment stands, or would, and whether it is there."""
        at = bisect_left(self._commitments, commitment)
        return at, self._commitments[at : at + 1] == [commitment]

    def leaf(self, index: int) -> bytes:
        """Return the leaf of an example in the tree `uses`."""
        number = self._places[index]
        rows = slice(self._starts[number], self._starts[number + 1])
        decisions, steps = self._decisions[rows], self._steps[rows]
        found: defaultdict[str, list[Column]] = defaultdict(list)
        for decision in np.unique(decisions).tolist():
            found[self._texts[decision]].append(steps[decisions == decision])
        uses = [_use(text, np.concatenate(parts)) for text, parts in sorted(found.items())]
        told = {
            "commitment": self._commitments[index].hex(),
            "exposed": exposed_in(uses),
            "uses": uses,
        }
        return orjson.dumps(told, option=CANONICAL)

    def leaves(self) -> Iterator[bytes]:
        """Yield the leaves of the tree `uses`."""
        return map(self.leaf, range(len(self._commitments)))

    # --- rows ----------------------------------------------------------------------------------------------

    def add(self, table: str, **columns: Any) -> None:
        """Take rows of a table of the index."""
        if table == "uses":
            steps = columns["step"].astype(np.int64) << 1 | columns["learned"]
            self._kept.append(
                (columns["example"].astype(np.int32), columns["decision"].astype(np.int32), steps)
            )
            self._watch(columns)
        elif table == "steps":
            for step, entry in zip(list(columns["step"]), list(columns["entry"]), strict=True):
                if int(step) in self._seen:
                    self.uses.append(Use(int(step), int(entry), self._seen.pop(int(step))))

    def add_row(self, table: str, **values: Any) -> None:
        """Take one row of a table of the index."""
        match table:
            case "programs":
                self._policies.append(values["digest"])
            case "decisions":
                policy = self._policies[values["program"]]
                self._decided.append(
                    {"policy": policy, "verdict": values["verdict"], "weights": {}, "rules": []}
                )
            case "weights":
                self._decided[values["decision"]]["weights"][values["band"]] = values["weight"]
            case "rules" if values["part"] == "rule":
                self._decided[values["decision"]]["rules"].append(values["rule"])
            case "steps":
                self.add("steps", **{name: [value] for name, value in values.items()})

    def _watch(self, columns: Mapping[str, Column]) -> None:
        if self._watched is None:
            return
        number = self._collector.examples.number_of(self._watched)
        own = columns["example"] == number
        if number is not None and own.any():
            for step, learned in zip(
                columns["step"][own].tolist(), columns["learned"][own].tolist(), strict=True
            ):
                self._seen[step] = self._seen.get(step, False) or learned


def _use(text: str, marked: Column) -> dict[str, Any]:
    """Return an item of `uses`. text: of the decision. marked: the steps, marked as in `Tally`."""
    marked = np.sort(marked)
    learned, other = ((marked[marked & 1 == bit] >> 1).tolist() for bit in (1, 0))
    counts = {"exposures": len(learned), "times": len(marked)}
    return {"decision": orjson.loads(text), **counts, "learned": learned, "other": other}


def tally_ledger(
    path: str | os.PathLike[str], before: int | None = None, watched: bytes | None = None
) -> Tally:
    """Tally the entries of a ledger before one; None: all. Its chain is not judged here.

    Raises TraceError where steps are out of turn or decisions undeclared, ArchiveMissing, LedgerError for an
    unreadable file.
    """
    tally = Tally(watched)

    def listen() -> Any:
        nonlocal tally
        tally = Tally(watched)

        def accept(part: Part) -> None:
            if before is None or _first(part) < before:
                tally.accept(part)

        return accept

    check_whole(path)
    verify_chain(path, (), listen)
    tally.finish()
    return tally


def _first(part: Part) -> int:
    """Return the index of the first entry of a part. A tally is an entry by itself, so no part crosses it."""
    return part.first if isinstance(part, Turns) else part.index
