"""What one rank's ledger says of each step of a job, in columns, so that ranks can be compared.

Some 80 bytes a step are kept, and 16 of one that records how far it moved the bands. Everything here is as
recorded; whether it is what the policy gives is for the replay of the same ledger to say. So is what comes
out of turn, and may so be missing from the columns: the first such entry is noted for where nothing is
replayed (`misfit`).
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from binascii import a2b_base64
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.entries import HEAD, RESUMED, SEALED, Entry
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.note import parse_checkpoint, parse_note
from gradwarden.runtime.ledger.turns import Turns

Numbers = npt.NDArray[np.int64]

ABSENT, PROPOSED, REFUSED, COMMITTED = range(4)
"""What became of a step here: nothing is known of it, it has no outcome, it was refused, or committed."""

MOST_MISSING = 1_000_000
"""Steps that a ledger may leave out; what comes after more of them is not compared."""

NO_DAY = -(2**62)
"""The day of a step that has none."""

_MOVED = 16
"""Bytes of the digest of what a committed step moved."""


@frozen
class Clash:
    """The first step of which two ranks say different things. theirs: what the other says, to compare."""

    step: int
    what: str
    theirs: bytes


@frozen
class Columns:
    """What one rank says of each step, by step.

    outcomes: uint8. counts: the rank's own examples. batches: those of all ranks, 0 unless committed. sums:
    int64 [steps, 2], what locates a wrong share (`jobs.shares`), -1 where it is not recorded. epochs, days:
    int64. spending: digests of what privacy rules have spent, 0 where there are none. moved: digests of what
    a committed step moved, uint8 [steps, 16].
    """

    outcomes: npt.NDArray[np.uint8]
    counts: Numbers
    batches: Numbers
    sums: Numbers
    epochs: Numbers
    days: Numbers
    spending: Numbers
    moved: npt.NDArray[np.uint8]


class RankSteps:
    """A listener that notes the steps of one rank's ledger.

    begun: the first step of which columns are kept; those before it were compared with the other ranks'
    when the job was last verified (`remember`).
    """

    def __init__(self) -> None:
        self.begun = 0
        self.opened: Mapping[str, Any] | None = None
        self.sealed: Mapping[str, Any] | None = None
        self.heads: dict[int, tuple[str, int]] = {}
        """By size: the root (hex) of each head in the ledger, and the number of the next step there."""
        self.programs: list[tuple[int, str]] = []
        """From which step on which program was in force, by its digest."""
        self.weights: dict[int, list[str]] = {}
        """The digests of the weights saved, or gone back to, at each step."""
        self.misplaced: tuple[int, int] | None = None
        """The index and the step of the first example that belongs to another rank."""
        self.misfit: tuple[int, int] | None = None
        """The index and the step of the first entry out of turn: what it says may be compared with nobody."""
        self._outcomes = bytearray()
        self._counts, self._batches = array("q"), array("q")
        self._first_sums, self._second_sums = array("q"), array("q")
        self._epochs, self._days = array("q"), array("q")
        self._spending = array("q")
        self._moved = bytearray()
        self._measured, self._moves = array("q"), array("q")
        """The steps that record how far they moved each band, and digests of what they say."""
        self._room = MOST_MISSING
        self._parts: list[str] = []
        self._rank = self._ranks = 0
        self._pending = False

    def accept(self, part: Part) -> None:
        """Take the next part of the chain."""
        if isinstance(part, Turns):
            self._accept_turns(part)
        else:
            self._accept(part)

    def _accept(self, entry: Entry) -> None:
        body = entry.body
        match entry.kind:
            case "opened":
                self._take_opened(body)
                self.programs.append((0, body["policy"]["digest"]))
            case "policy_changed":
                self._is_due(entry.index, body["step"], self.steps)
                self.programs.append((body["step"], body["policy"]["digest"]))
            case "examples":
                self._parts.append(body["commitments"])
            case "step":
                self._look(entry.index, body["step"], [*self._parts, body["commitments"]])
                self._parts.clear()
                self._propose(entry.index, body["step"], body["count"], body["epoch"], body["today"])
            case "moved":
                if self._is_due(entry.index, body["step"], self.steps - 1, pending=True):
                    self._measured.append(body["step"])
                    self._moves.append(_digest(body["norms"]))
            case "committed" | "refused":
                self._conclude(entry.index, entry.kind, body)
            case "skipped":
                self._is_due(entry.index, body["step"], self.steps)
                self._fill(body["until"])
            case "checkpoint":
                self._is_due(entry.index, body["step"], self.steps)
                self.weights.setdefault(body["step"], []).append(body["digest"])
            case "rewound":
                self._is_due(entry.index, body["step"], self.steps)
                again = body["checkpoint"]["digest"]
                self.weights.setdefault(body["step"], []).append(f"back to {again}")
            case _ if entry.kind == RESUMED:
                self._pending = False
            case _ if entry.kind == SEALED:
                last = self.steps - 1
                self._is_due(entry.index, last, last)
                self.sealed = body
            case _ if entry.kind == HEAD:
                self._take_head(body["note"])

    def _take_opened(self, body: Mapping[str, Any]) -> None:
        self.opened = body
        member = body.get("job")
        if member is not None and member["placement"] == "by_example":
            self._rank, self._ranks = member["rank"], member["ranks"]

    def _accept_turns(self, turns: Turns) -> None:
        steps = zip(turns.numbers, turns.counts, turns.epochs, turns.todays, strict=True)
        outcomes = zip(turns.committed, turns.results(), strict=True)
        for place, (step, (committed, result)) in enumerate(zip(steps, outcomes, strict=True)):
            index = turns.first + 2 * place
            self._look(index, step[0], [turns.commitments[place]])
            self._propose(index, *step)
            self._conclude(index + 1, "committed" if committed else "refused", result)

    def _is_due(self, index: int, step: int, due: int, *, pending: bool = False) -> bool:
        """Whether an entry comes in turn: at the step that is due, which is pending or, else, none is."""
        in_turn = step == due and pending == self._pending
        if not in_turn and self.misfit is None:
            self.misfit = (index, step)
        return in_turn

    def _propose(self, index: int, step: int, count: int, epoch: int, today: int | None) -> None:
        self._is_due(index, step, self.steps)
        self._fill(step)
        if step != self.steps:
            return
        self._pending = True
        self._outcomes.append(PROPOSED)
        self._counts.append(count)
        self._epochs.append(epoch)
        self._days.append(NO_DAY if today is None else today)
        for column in (self._batches, self._first_sums, self._second_sums, self._spending):
            column.append(0)
        self._moved += bytes(_MOVED)

    def _fill(self, until: int) -> None:
        """Note steps that this rank had no part in."""
        missing = until - self.steps
        if 0 < missing <= self._room:
            self._room -= missing
            self._outcomes += bytes([ABSENT]) * missing
            self._moved += bytes(_MOVED * missing)
            own = (self._counts, self._epochs, self._days)
            for column in (*own, self._batches, self._first_sums, self._second_sums, self._spending):
                column.extend([0] * missing)

    def _conclude(self, index: int, kind: str, body: Mapping[str, Any]) -> None:
        if not self._is_due(index, body["step"], self.steps - 1, pending=True):
            return
        self._pending = False
        self._outcomes[-1] = COMMITTED if kind == "committed" else REFUSED
        if kind == "committed":
            self._batches[-1] = body.get("batch", 0)
            self._first_sums[-1], self._second_sums[-1] = body.get("shares", (-1, -1))
            self._spending[-1] = _digest(body["privacy"]) if body["privacy"] else 0
            moved = orjson.dumps([body["active"], body["norms"]], option=orjson.OPT_SORT_KEYS)
            self._moved[-_MOVED:] = blake2b(moved, digest_size=_MOVED).digest()

    def _take_head(self, note: str) -> None:
        try:
            head = parse_checkpoint(parse_note(note.encode()).text)
        except NoteError:
            return
        self.heads[head.size] = (head.root.hex(), self.steps)

    def _look(self, index: int, step: int, packed: Sequence[str | bytes]) -> None:
        """Find an example that belongs to another rank, where each has a home."""
        if not self._ranks or self.misplaced is not None:
            return
        words = np.frombuffer(b"".join(map(a2b_base64, packed)), ">u8")[:: SIZE // 8]
        if np.any(words % np.uint64(self._ranks) != self._rank):
            self.misplaced = (index, step)

    @property
    def steps(self) -> int:
        """The number of the next step."""
        return self.begun + len(self._outcomes)

    @property
    def settled(self) -> int:
        """Before which step nothing can change any more."""
        return self.steps if self.unfinished is None else self.unfinished

    @property
    def unfinished(self) -> int | None:
        """The last step, where it has no outcome."""
        return self.steps - 1 if self._outcomes and self._outcomes[-1] == PROPOSED else None

    @property
    def outcomes(self) -> npt.NDArray[np.uint8]:
        """What became of each step, from `begun` on."""
        return np.frombuffer(bytes(self._outcomes), np.uint8)

    def columns(self, size: int) -> Columns:
        """Return what is known of the first `size` steps, from `begun` on."""
        size -= self.begun
        return Columns(
            outcomes=np.frombuffer(bytes(self._outcomes[:size]), np.uint8),
            counts=np.array(self._counts[:size], np.int64),
            batches=np.array(self._batches[:size], np.int64),
            sums=np.array([self._first_sums[:size], self._second_sums[:size]], np.int64).T,
            epochs=np.array(self._epochs[:size], np.int64),
            days=np.array(self._days[:size], np.int64),
            spending=np.array(self._spending[:size], np.int64),
            moved=np.frombuffer(bytes(self._moved[: size * _MOVED]), np.uint8).reshape(-1, _MOVED),
        )

    @property
    def moves(self) -> tuple[Numbers, Numbers]:
        """Return the steps that record how far they moved each band, and digests of what they say."""
        return np.array(self._measured, np.int64), np.array(self._moves, np.int64)

    # --- going on ------------------------------------------------------------------------------------------

    def remember(self, begun: int, bound: int) -> dict[str, Any]:
        """Return what is known, as JSON holds it, without the steps before `begun`.

        bound: up to which size of the ledger heads were found to be those that are bound.
        """
        gone = begun - self.begun
        kept = bisect_left(self._measured, begun)
        return {
            "begun": begun,
            "opened": self.opened,
            "sealed": self.sealed,
            "heads": [[size, *head] for size, head in self.heads.items() if size > bound],
            "programs": self.programs,
            "weights": [[step, digests] for step, digests in self.weights.items() if step >= begun],
            "parts": self._parts,
            "room": self._room,
            "pending": self._pending,
            "outcomes": b64encode(self._outcomes[gone:]).decode(),
            "moved": b64encode(self._moved[gone * _MOVED :]).decode(),
            "numbers": [_packed(column[gone:]) for column in self._numbers()],
            "moves": [_packed(column[kept:]) for column in (self._measured, self._moves)],
        }

    @classmethod
    def recalled(cls, state: Mapping[str, Any]) -> RankSteps:
        """Return what was remembered, to go on from. Raises KeyError, TypeError or ValueError."""
        steps = cls()
        steps.begun = int(state["begun"])
        if state["opened"] is not None:
            steps._take_opened(state["opened"])
        steps.sealed = state["sealed"]
        steps.heads = {size: (root, step) for size, root, step in state["heads"]}
        steps.programs = [(step, digest) for step, digest in state["programs"]]
        steps.weights = {step: list(digests) for step, digests in state["weights"]}
        steps._parts, steps._room = list(state["parts"]), int(state["room"])
        steps._pending = bool(state["pending"])
        steps._outcomes = bytearray(b64decode(state["outcomes"]))
        steps._moved = bytearray(b64decode(state["moved"]))
        for column, packed in zip(steps._numbers(), state["numbers"], strict=True):
            column.extend(_unpacked(packed))
        for column, packed in zip((steps._measured, steps._moves), state["moves"], strict=True):
            column.extend(_unpacked(packed))
        return steps

    def _numbers(self) -> Sequence[array[int]]:
        sums = self._first_sums, self._second_sums
        return self._counts, self._batches, *sums, self._epochs, self._days, self._spending


def _packed(column: array[int]) -> str:
    return b64encode(np.array(column, "<i8").tobytes()).decode()


def _unpacked(text: str) -> list[int]:
    numbers: list[int] = np.frombuffer(b64decode(text), "<i8").tolist()
    return numbers


def _digest(told: Mapping[str, Any]) -> int:
    """Return a number for what is told, such as what privacy rules have spent; another for anything else."""
    text = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


def first_clash(one: RankSteps, other: RankSteps) -> Clash | None:
    """Return the first step of which two ranks say different things, as far as both go.

    A step without an outcome on one rank contradicts nothing: a crash leaves it so. Days may differ by one:
    clocks do not pass midnight together. Of both ranks the steps must be known from the same one on.
    """
    size = min(one.steps, other.steps)
    ours, theirs = one.columns(size), other.columns(size)
    both = (ours.outcomes != ABSENT) & (theirs.outcomes != ABSENT)
    committed = (ours.outcomes == COMMITTED) & (theirs.outcomes == COMMITTED)
    dated = both & (ours.days != NO_DAY) & (theirs.days != NO_DAY)
    settled = both & (ours.outcomes >= REFUSED) & (theirs.outcomes >= REFUSED)
    places: dict[str, tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]] = {
        "epoch": (both & (ours.epochs != theirs.epochs), theirs.epochs),
        "day": (dated & (np.abs(ours.days - theirs.days) > 1), theirs.days),
        "outcome": (settled & (ours.outcomes != theirs.outcomes), theirs.outcomes),
        "gradient": (committed & (ours.moved != theirs.moved).any(axis=1), theirs.moved),
        "size of the whole batch": (committed & (ours.batches != theirs.batches), theirs.batches),
        "sum over the shares of the batch": (
            committed & (ours.sums != theirs.sums).any(axis=1),
            theirs.sums,
        ),
        "privacy spending": (committed & (ours.spending != theirs.spending), theirs.spending),
    }
    found = [
        Clash(one.begun + int(place := np.flatnonzero(where)[0]), what, values[place].tobytes())
        for what, (where, values) in places.items()
        if where.any()
    ]
    found += _move_clashes(one, other)
    program = _program_clash(one, other, size)
    return min([*found, *([program] if program else [])], key=lambda clash: clash.step, default=None)


def _move_clashes(one: RankSteps, other: RankSteps) -> list[Clash]:
    """Return the first step of which both ranks record how far it moved the bands, and not the same."""
    (ours, our_moves), (theirs, their_moves) = one.moves, other.moves
    both, here, there = np.intersect1d(ours, theirs, return_indices=True)
    differ = np.flatnonzero(our_moves[here] != their_moves[there])
    return [Clash(int(both[n]), "move of the bands", their_moves[there[n]].tobytes()) for n in differ[:1]]


def _program_clash(one: RankSteps, other: RankSteps, size: int) -> Clash | None:
    """Return the first step that the ranks took under different programs."""
    changes = sorted({step for steps in (one, other) for step, _ in steps.programs if step < max(size, 1)})
    for step in changes:
        ours, theirs = (in_force(steps.programs, step) for steps in (one, other))
        if ours != theirs:
            return Clash(step, "program", theirs.encode())
    return None


def in_force(programs: Sequence[tuple[int, str]], step: int) -> str:
    """Return the program that is in force at a step, by its digest; empty where none is."""
    return next((digest for since, digest in reversed(programs) if since <= step), "")
