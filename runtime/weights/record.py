"""How a ledger names weights tensor by tensor.

Before a `checkpoint` entry, `tensors` entries list the tensors in order; in parts, as a line has its limit:

    {"step": 200, "part": 0, "tensors": [[name, dtype, shape, root], …], "tied": [[name, stored name], …]}

The checkpoint's own `tensors` are then {"chunk", "count", "of", "root"}: of how many bytes a chunk is, how
many tensors were listed, whether they are of the `model` or of an `average` of it, and their root (`tree`).
Parts that no checkpoint follows say nothing; part 0 begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.weights.stored import MAX_TENSORS
from gradwarden.runtime.weights.tree import CHUNK, TensorDigest, WeightTree, weights_root

KIND = "tensors"

PART_BYTES = 48_000
"""Of JSON to a part; a line may not pass 65,535 bytes."""


@frozen
class RecordedTensors:
    """The tensors of a checkpoint, in order, and the stored name of each that is stored under another."""

    tensors: tuple[TensorDigest, ...]
    tied: Mapping[str, str]


def part_bodies(tree: WeightTree, step: int) -> Iterator[dict[str, Any]]:
    """Yield the bodies of the entries that list a checkpoint's tensors."""
    items = [("tensors", [t.name, t.dtype, list(t.shape), t.root.hex()]) for t in tree.tensors]
    items += [("tied", [name, stored]) for name, stored in sorted(tree.tied.items())]
    part: dict[str, Any] = {"step": step, "part": 0, "tensors": [], "tied": []}
    size = 0
    for field, item in items:
        length = len(orjson.dumps(item)) + 1
        if size and size + length > PART_BYTES:
            yield part
            part = {"step": step, "part": part["part"] + 1, "tensors": [], "tied": []}
            size = 0
        part[field].append(item)
        size += length
    yield part


def summary(tree: WeightTree, *, averaged: bool = False) -> dict[str, Any]:
    """Return what the checkpoint's own entry says of its tensors."""
    of = "average" if averaged else "model"
    return {"chunk": CHUNK, "count": len(tree.tensors), "of": of, "root": tree.root.hex()}


class PartsReader:
    """Puts the tensors of checkpoints together from entries, in order."""

    def __init__(self) -> None:
        self._tensors: list[TensorDigest] = []
        self._tied: dict[str, str] = {}
        self._part: tuple[int, int] | None = None
        """The step and the number of the last part, None where nothing is listed."""

    def add(self, body: Mapping[str, Any]) -> None:
        """Take a `tensors` entry. Raises ValueError where it does not follow the one before."""
        if body["part"] == 0:
            self.clear()
        elif self._part != (body["step"], body["part"] - 1):
            raise ValueError("the parts of a checkpoint's list of tensors do not follow each other")
        self._part = body["step"], body["part"]
        self._tensors += [
            TensorDigest(name, dtype, tuple(shape), bytes.fromhex(root))
            for name, dtype, shape, root in body["tensors"]
        ]
        self._tied |= dict(body["tied"])
        if len(self._tensors) + len(self._tied) > MAX_TENSORS:
            raise ValueError(f"a checkpoint lists more than {MAX_TENSORS:,} tensors")

    def take(self, body: Mapping[str, Any]) -> RecordedTensors | None:
        """Return the tensors of a `checkpoint` entry, None where it names none; forget what was listed.

        Raises ValueError where what was listed is not what the entry says.
        """
        told, part = body["tensors"], self._part
        found = RecordedTensors(tuple(self._tensors), dict(self._tied))
        self.clear()
        if told is None or type(told.get("count")) is not int:
            if part is not None:
                raise ValueError("tensors are listed, and the checkpoint does not name them")
            return None
        names = [tensor.name for tensor in found.tensors]
        if part is None or part[0] != body["step"] or told["chunk"] != CHUNK:
            raise ValueError("the tensors of the checkpoint are not listed before it")
        if names != sorted(set(names)) or not set(found.tied.values()) <= set(names):
            raise ValueError("the tensors of the checkpoint are listed out of order, or twice")
        if (told["count"], told["root"]) != (len(names), weights_root(found.tensors).hex()):
            raise ValueError("the list of the checkpoint's tensors is not the one that it names")
        return found

    def clear(self) -> None:
        """Forget what was listed."""
        self._tensors, self._tied, self._part = [], {}, None
