"""The receipt that the owner of one example gets: what a run did with it, and nothing about anyone else's.

A file in canonical JSON (RFC 8785) and a newline:

    {"format": "gradwarden/receipt/2", "id", "salt", "opened", "tallied", "closing", "listed", "absent",
     "entries"}

- id, salt (hex): they open the commitment SHA-256(00 ‖ salt ‖ id), see `commitments`.
- opened, tallied: C2SP tlog-proofs (`proof_file`), with their entries, of how the run began and of its tally.
- closing: tlog-proofs of the entries from the tally to the seal, that included: they show that no step came
  after the tally; empty where the run went on or is not sealed.
- listed: {"index", "path", "leaf"}: the example's leaf of the tally's tree `uses`; null where it has none.
- absent: {"before", "after"}: the neighbours between which the commitment would stand in the tree
  `commitments`, each {"index", "path", "commitment"}, null beyond either end; null where it is listed.
- entries: null, or, if the owner asked for them, tlog-proofs of the entries of every step that proposed it:
  {"proofs": {INDEX: proof}, "uses": [{"step", "examples", "outcome"}]}, by index.

What is told of others: without `entries` only hashes, and where the example is absent the commitments of its
two neighbours, which mean nothing without their salts. A step's entry tells, of each example beside the
owner's, its commitment, by which it can be followed through other steps of the run, and the numbers of its
class and decision, its exposures and signals, and the numeric metadata that the policy reads at each step
(`slots`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.commitments import SIZE, open_commitment
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.merkle import HASH_SIZE

FORMAT = "gradwarden/receipt/2"

MAX_RECEIPT = 256 << 20
"""The largest receipt that is read, in bytes."""

_TOLD = ("opened", "tallied", "closing", "listed", "absent", "entries")


@frozen
class Place:
    """A leaf of a sorted tree: where it is, and the path from its sibling to the root's child."""

    index: int
    path: tuple[bytes, ...]
    leaf: bytes


@frozen
class UseEntries:
    """The entries of one step, by index: its intent, the commitments that come apart, and its outcome."""

    step: int
    examples: tuple[int, ...]
    outcome: int | None


@frozen
class StepProofs:
    """Proofs of the entries of steps. proofs: tlog-proofs, by the index of the entry."""

    proofs: Mapping[int, bytes]
    uses: tuple[UseEntries, ...]


@frozen
class Receipt:
    """A receipt, see the module. tallied: None for a run that was not tallied."""

    id: str
    salt: bytes
    opened: bytes
    tallied: bytes | None
    closing: tuple[bytes, ...]
    listed: Place | None
    absent: tuple[Place | None, Place | None] | None
    entries: StepProofs | None

    @property
    def commitment(self) -> bytes:
        return open_commitment(self.salt, self.id)

    def encode(self) -> bytes:
        told = {"format": FORMAT, "id": self.id, "salt": self.salt.hex(), **self.told()}
        return orjson.dumps(told, option=CANONICAL) + b"\n"

    def told(self) -> dict[str, Any]:
        """Return what a ledger says of the example, as JSON holds it."""
        listed, absent, entries = self.listed, self.absent, self.entries
        return {
            "opened": self.opened.decode(),
            "tallied": None if self.tallied is None else self.tallied.decode(),
            "closing": [proof.decode() for proof in self.closing],
            "listed": None if listed is None else _told(listed, "leaf", listed.leaf.decode()),
            "absent": None
            if absent is None
            else {
                side: None if place is None else _told(place, "commitment", place.leaf.hex())
                for side, place in zip(("before", "after"), absent, strict=True)
            },
            "entries": None
            if entries is None
            else {
                "proofs": {str(index): proof.decode() for index, proof in entries.proofs.items()},
                "uses": [
                    {"step": use.step, "examples": list(use.examples), "outcome": use.outcome}
                    for use in entries.uses
                ],
            },
        }


def exposed_in(uses: Iterable[Mapping[str, Any]]) -> list[int] | None:
    """Return the first and the last step of those that the model may have learned from; None: there is none.

    uses: of one example, as the leaf of a tally lists them (`tally`).
    """
    learned = [step for use in uses for step in use["learned"]]
    return [min(learned), max(learned)] if learned else None


class Encoded(Protocol):
    """A receipt of some format."""

    def encode(self) -> bytes: ...


EncodedT = TypeVar("EncodedT", bound=Encoded)


def parse_receipt(data: bytes) -> Receipt:
    """Read a receipt. Raises EvidenceError unless printing it again gives the same bytes."""
    return parse_canonical(data, whole_receipt)


def parse_canonical(data: bytes, read: Callable[[Any], EncodedT]) -> EncodedT:
    """Return what `read` makes of JSON. Raises EvidenceError unless printing that gives the same bytes."""
    if len(data) > MAX_RECEIPT:
        raise EvidenceError(f"a receipt has at most {MAX_RECEIPT >> 20} MiB")
    try:
        receipt = read(orjson.loads(data))
        same = receipt.encode() == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EvidenceError("the receipt is malformed") from None
    if not same:
        raise EvidenceError("the receipt is not in canonical form")
    return receipt


def whole_receipt(told: Any) -> Receipt:
    """Return a receipt from its JSON. Raises EvidenceError, or what reading malformed data may raise."""
    if told.pop("format", None) != FORMAT or type(told["id"]) is not str:
        raise EvidenceError("the file is no receipt")
    return receipt_from(told.pop("id"), salt_from(told.pop("salt")), told)


def salt_from(text: str) -> bytes:
    """Read a salt. Raises ValueError."""
    salt = bytes.fromhex(text)
    if len(salt) != SIZE:
        raise ValueError
    return salt


def receipt_from(example: str, salt: bytes, told: Mapping[str, Any]) -> Receipt:
    """Return the receipt of an example from what `told` gives. Raises ValueError, KeyError, TypeError."""
    if set(told) != set(_TOLD):
        raise ValueError
    listed, absent, entries = told["listed"], told["absent"], told["entries"]
    return Receipt(
        example,
        salt,
        told["opened"].encode(),
        None if told["tallied"] is None else told["tallied"].encode(),
        tuple(proof.encode() for proof in told["closing"]),
        None if listed is None else _place(listed, listed["leaf"].encode()),
        None if absent is None else (_neighbour(absent["before"]), _neighbour(absent["after"])),
        None
        if entries is None
        else StepProofs(
            {_index(int(index)): proof.encode() for index, proof in entries["proofs"].items()},
            tuple(
                UseEntries(
                    _index(use["step"]),
                    tuple(map(_index, use["examples"])),
                    None if use["outcome"] is None else _index(use["outcome"]),
                )
                for use in entries["uses"]
            ),
        ),
    )


def _neighbour(told: Mapping[str, Any] | None) -> Place | None:
    return None if told is None else _place(told, bytes.fromhex(told["commitment"]))


def _place(told: Mapping[str, Any], leaf: bytes) -> Place:
    path = tuple(map(bytes.fromhex, told["path"]))
    if any(len(node) != HASH_SIZE for node in path):
        raise ValueError
    return Place(_index(told["index"]), path, leaf)


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _told(place: Place, name: str, leaf: str) -> dict[str, Any]:
    return {"index": place.index, "path": [node.hex() for node in place.path], name: leaf}
