"""Makes receipts from a ledger (`receipt`).

Everything is compared with the head that the proofs lead to, as `prover` does; the tally is made again, and
no receipt is made from one that is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError, HeadMismatch
from gradwarden.runtime.evidence.hash_tree import HashTree
from gradwarden.runtime.evidence.proof_file import InclusionProof
from gradwarden.runtime.evidence.prover import SignedHead, kind_of, stored_lines
from gradwarden.runtime.evidence.receipt import Place, Receipt, StepProofs, UseEntries
from gradwarden.runtime.evidence.tally import KIND, Tally, tally_ledger
from gradwarden.runtime.ledger.entries import HEAD, SEALED, decode
from gradwarden.runtime.ledger.merkle import leaf_hashes

OUTCOMES = ("committed", "refused", "resumed")


@frozen
class CoveredLedger:
    """What a head covers: the tree, and the lines that are needed, by index.

    tally: the index of the last `tallied` entry. closing: what follows up to the seal, if nothing but heads.
    """

    tree: HashTree
    lines: dict[int, bytes]
    tally: int | None
    closing: tuple[int, ...]
    note: bytes

    def prove(self, index: int) -> bytes:
        """Return the proof of an entry whose line was needed."""
        proof = InclusionProof(index, tuple(self.tree.path(index)), self.note, self.lines[index])
        return proof.encode()


def make_receipt(
    path: str | os.PathLike[str],
    example: str,
    salt: bytes,
    commitment: bytes,
    head: SignedHead,
    *,
    entries: bool = False,
) -> Receipt:
    """Return the receipt of one example.

    salt: of its id. entries: whether to add the entries of its steps; see `receipt` for what these tell of
    others. Raises HeadMismatch where the head is not the ledger's, EvidenceError where its tally is wrong, or
    where it has none and no entries are asked for, TraceError where the ledger makes no sense.
    """
    size = head.checkpoint.size
    ledger = read_under(path, head, ())
    before = ledger.tally
    if before is None and not entries:
        raise EvidenceError(
            "the run was not tallied: its entries alone show where an example was used",
            help="--entries adds them; what they tell of others is in docs/ledger.md",
        )
    tally = tally_ledger(path, size if before is None else before, commitment)
    if before is not None and decode(ledger.lines[before])[3] != tally.body():
        raise EvidenceError("the tally in the ledger is not what its entries add up to")
    at, found = tally.place(commitment)
    steps = None
    if entries:
        uses = list(_entries_of(path, [use.entry for use in tally.uses]))
        needed = {
            index for use in uses for index in (use.step, *use.examples, use.outcome) if index is not None
        }
        needed = {index for index in needed if index < size}
        uses = [_covered(use, size) for use in uses]
        ledger = read_under(path, head, needed)
        steps = StepProofs({index: ledger.prove(index) for index in sorted(needed)}, tuple(uses))
    return Receipt(
        example,
        salt,
        ledger.prove(0),
        None if before is None else ledger.prove(before),
        tuple(map(ledger.prove, ledger.closing)),
        _listed(tally, at) if found and before is not None else None,
        None if found or before is None else _absent(tally, at),
        steps,
    )


def _listed(tally: Tally, at: int) -> Place:
    tree = HashTree(leaf_hashes(tally.leaves()))
    return Place(at, tuple(tree.path(at)), tally.leaf(at))


def _absent(tally: Tally, at: int) -> tuple[Place | None, Place | None]:
    """Return the neighbours of a commitment that would stand at a place."""
    tree = HashTree(leaf_hashes(tally.commitments))
    before, after = (
        Place(index, tuple(tree.path(index)), tally.commitments[index]) if 0 <= index < tree.size else None
        for index in (at - 1, at)
    )
    return before, after


def read_under(path: str | os.PathLike[str], head: SignedHead, needed: Iterable[int]) -> CoveredLedger:
    """Read what a head covers.

    needed: the entries to be proved, beside the first and the last tally. Raises HeadMismatch where the
    ledger has other entries.
    """
    size, wanted = head.checkpoint.size, {0, *needed}
    leaves: list[bytes] = []
    lines: dict[int, bytes] = {}
    ending: list[tuple[int, str]] = []
    """From the last tally on: the kind of each entry, as long as none but heads and the seal come."""
    count, gone_on = 0, False
    with closing(stored_lines(path)) as parts:
        for part in parts:
            some = part[: size - count]
            leaves.append(leaf_hashes(some))
            for index, line in enumerate(some, count):
                kind = kind_of(line)
                if kind == KIND:
                    ending, lines[index], gone_on = [(index, kind)], line, False
                elif ending and not gone_on and kind in (HEAD, SEALED):
                    ending.append((index, kind))
                    lines[index] = line
                elif ending:
                    ending, gone_on = ending[:1], True
                if index in wanted:
                    lines[index] = line
            count += len(some)
            if count == size:
                break
    tree = HashTree(b"".join(leaves))
    if count < size or tree.root() != head.checkpoint.root:
        raise HeadMismatch(
            f"the first {size:,} entries of `{os.fspath(path)}` are not those that the head covers",
            help="the ledger was cut or rewritten, or the head is of another one",
        )
    sealed = [place for place, (_, kind) in enumerate(ending) if kind == SEALED]
    last = [index for index, _ in ending[1 : sealed[0] + 1]] if sealed else []
    return CoveredLedger(tree, lines, ending[0][0] if ending else None, tuple(last), head.note)


def _entries_of(path: str | os.PathLike[str], steps: Sequence[int]) -> Iterable[UseEntries]:
    """Yield the entries of some steps. steps: the indices of their intents, ascending."""
    wanted = set(steps)
    apart: list[int] = []
    open_step: tuple[int, tuple[int, ...]] | None = None
    index = -1
    with closing(stored_lines(path)) as parts:
        for part in parts:
            for line in part:
                index += 1
                kind = kind_of(line)
                if kind == "examples":
                    apart.append(index)
                elif kind == "step":
                    open_step = (index, tuple(apart)) if index in wanted else None
                    apart = []
                elif kind in OUTCOMES and open_step is not None:
                    yield UseEntries(*open_step, index)
                    open_step = None
    if open_step is not None:
        yield UseEntries(*open_step, None)


def _covered(use: UseEntries, size: int) -> UseEntries:
    """Return the entries of a step without an outcome that the head does not cover."""
    return use if use.outcome is None or use.outcome < size else UseEntries(use.step, use.examples, None)
