"""Checks that bands which no step may shape are the same to the bit from one checkpoint to the next.

A checkpoint's tensors are listed in the ledger (`weights.record`). A parameter may differ between two
checkpoints only where a committed step between them let some example shape its band, or noise that band for a
rule of privacy. Everything else leaves it untouched: it has no gradient then, so that momentum, weight decay
and the state of the optimizer do not move it (`masks`).

A run that went back to the checkpoint that it saved last goes on from that one. From what else a resumed run
goes on is not recorded, or too far back: from there on a parameter may be as in any step before, so that only
those which no step has moved at all stay bound. An average of the model (`average`) lags behind it: averages
are held against averages, and against the model in those parameters alone. Buffers are in no band, and bound
by nothing.

Codes of what is found: `frozen_moved`; `wrong_tensors` where the list of tensors contradicts itself, or is
left out though earlier checkpoints have one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.runtime.records.branches import STATE_SUFFIX
from gradwarden.runtime.verification.violation import ViolationError, names
from gradwarden.runtime.weights.record import PartsReader, RecordedTensors

MOST_CHECKPOINTS = 1_000
"""Checkpoints that are told of: the last ones."""

MOST_NAMED = 5
"""Parameters that a finding names."""


@frozen
class SavedWeights:
    """A checkpoint. digest: of its file. hashes: of its tensors, by name. moved: parameters that may have
    changed since.
    """

    step: int
    digest: str
    hashes: dict[str, bytes]
    tied: Mapping[str, str]
    moved: set[str]

    def hash_of(self, parameter: str) -> bytes | None:
        """Return the hash of a parameter, None where the checkpoint lacks it."""
        return self.hashes.get(parameter) or self.hashes.get(self.tied.get(parameter, ""))


class WeightAudit:
    """Follows one run's steps and checkpoints. Methods raise ViolationError where they say so."""

    def __init__(self) -> None:
        self._parameters: dict[str, tuple[str, ...]] = {}
        self._active: set[str] = set()
        """Bands that steps have moved since parameters were last noted."""
        self._ever: set[str] = set()
        """Parameters that some step of the run may have moved."""
        self._last: dict[str, SavedWeights] = {}
        """The last checkpoint of the model, and the last of an average of it."""
        self._reader = PartsReader()
        self._told: deque[dict[str, Any]] = deque(maxlen=MOST_CHECKPOINTS)
        self._first: int | None = None
        self._unchanged: set[str] | None = None
        """Bands that were the same in each two checkpoints so far."""
        self.count = 0
        """Checkpoints whose tensors are recorded."""

    def take_program(self, program: Program) -> None:
        """Take the program that is in force from now on."""
        self._note()
        self._parameters = {band.name: band.parameters for band in program.bands}

    def move(self, bands: Iterable[str]) -> None:
        """Note bands that a step may have moved."""
        self._active.update(bands)

    def move_all(self) -> None:
        """Note that steps were taken of which the ledger does not tell."""
        self.move(self._parameters)

    def resume(self, pending: Iterable[str]) -> None:
        """Take what follows for a resumed run. pending: bands of a step whose outcome was lost."""
        self.move(pending)
        self._reader.clear()
        self._release()

    def rewind(self, digest: str) -> None:
        """Take what follows for a run that went back to a checkpoint. digest: of its file."""
        self._release()
        model = self._last.get("model")
        if model is not None and model.digest == digest:
            model.moved.clear()

    def _release(self) -> None:
        """Let parameters be as in any step before."""
        self._note()
        for saved in self._last.values():
            saved.moved.update(self._ever)

    def _note(self) -> None:
        fresh = {name for band in self._active for name in self._parameters.get(band, ())}
        self._active.clear()
        self._ever |= fresh
        for saved in self._last.values():
            saved.moved.update(fresh)

    def add_part(self, body: Mapping[str, Any]) -> None:
        """Take a `tensors` entry. Raises ViolationError."""
        try:
            self._reader.add(body)
        except ValueError as error:
            raise ViolationError("wrong_tensors", str(error)) from None

    def take_checkpoint(self, index: int, body: Mapping[str, Any]) -> None:
        """Take a `checkpoint` entry. Raises ViolationError."""
        try:
            recorded = self._reader.take(body)
        except ValueError as error:
            raise ViolationError("wrong_tensors", str(error)) from None
        if recorded is None:
            if self._last and not body["file"].endswith(STATE_SUFFIX):
                message = (
                    f"the tensors of `{body['file']}` are not listed, where those of earlier weights are"
                )
                raise ViolationError("wrong_tensors", message)
            return
        self._note()
        of, now = body["tensors"]["of"], _saved(body, recorded)
        for kind, before in self._last.items():
            self._check(before, now, before.moved if kind == of else self._ever)
        self._tell(index, body, self._last.get(of), now)
        self._last[of] = now

    def _check(self, before: SavedWeights, now: SavedWeights, free: Collection[str]) -> None:
        """Check that parameters are the same in two checkpoints. free: those that need not be."""
        for band, parameters in self._parameters.items():
            changed = [
                name for name in parameters if name not in free and before.hash_of(name) != now.hash_of(name)
            ]
            if changed:
                more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
                raise ViolationError(
                    "frozen_moved",
                    f"no step between the checkpoints at steps {before.step} and {now.step} may shape the "
                    f"band `{band}`, and these of its parameters differ: {names(changed[:MOST_NAMED])}{more}",
                )

    def _tell(
        self, index: int, body: Mapping[str, Any], before: SavedWeights | None, now: SavedWeights
    ) -> None:
        same, changed = ([], []) if before is None else self._compare(before, now)
        self.count += 1
        if self._first is None:
            self._first = body["step"]
        if before is not None:
            self._unchanged = set(same) if self._unchanged is None else self._unchanged.intersection(same)
        told = {"step": body["step"], "entry": index, "file": body["file"], **body["tensors"]}
        self._told.append(
            {**told, "since": None if before is None else before.step, "same": same, "changed": changed}
        )

    def _compare(self, before: SavedWeights, now: SavedWeights) -> tuple[list[str], list[str]]:
        """Return the bands that are the same in two checkpoints, and those that are not."""
        same: list[str] = []
        changed: list[str] = []
        for band, parameters in self._parameters.items():
            pairs = [(before.hash_of(name), now.hash_of(name)) for name in parameters]
            if any(one != other for one, other in pairs):
                changed.append(band)
            elif pairs and all(one is not None for one, _ in pairs):
                same.append(band)
        return same, changed

    def facts(self) -> dict[str, Any]:
        """Return the last checkpoints whose tensors are recorded, and the bands that all of them share."""
        steady = None
        if self._unchanged is not None:
            bands = [band for band in self._parameters if band in self._unchanged]
            steady = {"from": self._first, "to": self._told[-1]["step"], "bands": bands}
        return {"checkpoints": list(self._told), "unchanged": steady}


def _saved(body: Mapping[str, Any], recorded: RecordedTensors) -> SavedWeights:
    hashes = {tensor.name: tensor.leaf() for tensor in recorded.tensors}
    return SavedWeights(body["step"], body["digest"], hashes, recorded.tied, set())
