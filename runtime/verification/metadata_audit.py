"""Holds what a run recorded of its examples against the metadata themselves.

Replaying decisions takes the recorded class of each example at its word. Who has the data set and the run's
secret can open the commitments: every example of every step must be one of the data set, and its class and
the values that dynamic rules read must be those that its metadata give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradwarden.policy.evaluation.admission import Classification
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.verification.opened_data import OpenedData, RecordedRun, RecordedStep, Stretch


class MetadataAudit:
    """Checks one ledger, which has been verified, against a data set.

    steps, examples: how many were compared; `examples` counts an example once for each of its steps.
    """

    def __init__(self, ledger: Path, data: OpenedData) -> None:
        self._run = RecordedRun(ledger)
        self._data = data
        self.steps = 0
        self.examples = 0

    def findings(self) -> Iterator[Finding]:
        """Yield the first entry that does not fit, if any."""
        if self._run.opened.get("secret_commitment") != self._data.secret_commitment:
            yield Finding("wrong_secret", 0, "the secret is not the one of this run")
            return
        for stretch in self._run.stretches():
            comparison = _Comparison(stretch, self._data)
            for step in stretch.steps:
                fault = comparison.fault(step)
                if fault is not None:
                    yield Finding(fault[0], step.index, f"step {step.body['step']}, {fault[1]}")
                    return
                self.steps += 1
                self.examples += len(step.commitments)


class _Comparison:
    """Compares the steps of one stretch with the classes of the data set under its program."""

    def __init__(self, stretch: Stretch, data: OpenedData) -> None:
        self._recorded = stretch.classes
        self._data = data
        self._given: Classification = data.classify(stretch.program)
        self._signals = {signal.name for signal in stretch.program.signals}
        self._same: set[tuple[int, int]] = set()
        """Pairs of a recorded class and a row's class that were found to say the same."""

    def fault(self, step: RecordedStep) -> tuple[str, str] | None:
        """Return what is wrong with a step: a finding's code and words."""
        body = step.body
        for place, commitment in enumerate(step.commitments):
            row = self._data.row(commitment)
            if row is None:
                return "unknown_example", f"example {place}: the data set has no such example"
            named = f"example {place}, `{self._data.ids[row]}`"
            if not self._classes_agree(body["classes"][place], int(self._given.class_ids[row])):
                return "wrong_metadata", f"{named}: its metadata are of another class than is recorded"
            for slot, values in body["slots"].items():
                if values[place] != self._slot(slot, row):
                    return "wrong_metadata", f"{named}: its `{slot}` is another than is recorded"
        return None

    def _slot(self, name: str, row: int) -> int | None:
        if not self._given.slot_present(name)[row]:
            return None
        return int(self._given.slot_values(name)[row])

    def _classes_agree(self, recorded: int, given: int) -> bool:
        pair = (recorded, given)
        if pair in self._same:
            return True
        told, true = self._meaning(self._recorded[recorded]), self._meaning(self._given.body(given))
        # A signal that cannot be used hides the truth of the tests, not what else is wrong with an example.
        if told != true and not (told == () and isinstance(true, str)):
            return False
        self._same.add(pair)
        return True

    def _meaning(self, body: Mapping[str, Any]) -> str | tuple[tuple[str, str], ...]:
        """Return what a class says of metadata: the truth of the tests, or what is wrong with them.

        Nothing for a class that says nothing of them: only signals are at fault.
        """
        if "bits" in body:
            return str(body["bits"])
        return tuple(sorted((name, code) for name, code in body["problems"] if name not in self._signals))
