"""Admission of batches: metadata are classified once, a step then looks its decisions up.

`classify` evaluates everything static over a whole data set and keeps, per example, a class number and the
values of the attributes that dynamic conditions read (slots). `Admission.admit` joins the class numbers of a
batch with the truth of the clock and row leaves, and finds the decision of each combination in a table.

Metadata that were not known beforehand join by `Classification.append`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array, BoolArray
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.classes import number_faults, number_rows
from gradwarden.policy.evaluation.columns import Columns, encode_columns
from gradwarden.policy.evaluation.inputs import Faults, read_inputs
from gradwarden.policy.evaluation.leaves import DynamicLeaves, signal_key, slot_key
from gradwarden.policy.evaluation.lookup import GrowingArray, Lookups
from gradwarden.policy.evaluation.outcomes import Micro, Modulated, Outcomes, invalid_class, outcomes_of
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.program import SCALE, Program

Problems = tuple[tuple[str, str], ...]
"""The problems that make an invalid class: (attribute or signal, code) pairs."""


class Classification:
    """The classes of examples, by row. Grows by `append`; class numbers never change.

    classes: per class number, the truth of the partition's tests (bit i: test i), or the problems of an
    invalid class.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.classes: list[int | Problems] = []
        self._numbers: dict[int | Problems, int] = {}
        self._slots = partition(program).slots
        self._ids = GrowingArray(np.int32)
        self._values = {name: GrowingArray(np.int64) for name in self._slots}
        self._present = {name: GrowingArray(np.bool_) for name in self._slots}

    def __len__(self) -> int:
        return self._ids.count

    @property
    def class_ids(self) -> npt.NDArray[np.int32]:
        """[N]"""
        return self._ids.array

    def slot_values(self, name: str) -> Array:
        """Return a slot's encoded values, [N]; 0 where absent."""
        return self._values[name].array

    def slot_present(self, name: str) -> BoolArray:
        return self._present[name].array

    def number(self, key: int | Problems) -> int:
        """Return the number of a class, a new one where it has not been met."""
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self.classes)
            self.classes.append(key)
        return known

    def body(self, number: int) -> dict[str, Any]:
        """Return what a ledger records of a class: `{id, bits}` (hexadecimal) or `{id, problems}`."""
        key = self.classes[number]
        if isinstance(key, int):
            return {"id": number, "bits": f"{key:x}"}
        return {"id": number, "problems": [list(problem) for problem in key]}

    def append(self, metadata: Sequence[Mapping[str, object]]) -> npt.NDArray[np.intp]:
        """Classify further examples and return their rows."""
        names = dict.fromkeys(name for example in metadata for name in example)
        columns = {str(name): [example.get(name) for example in metadata] for name in names}
        return self.append_columns(encode_columns(self.program, columns, len(metadata)))

    def append_columns(self, columns: Columns) -> npt.NDArray[np.intp]:
        """Classify the rows of a table and return their rows in this classification."""
        tests = partition(self.program).tests
        local, keys = number_rows(Tape(columns, RowInputs(), tests), columns.count)
        everything: list[int | Problems] = [*keys]
        everything += number_faults(local, list(columns.faults.items()), len(keys))
        used = np.unique(local)
        numbers = np.zeros(len(everything), np.int32)
        for index in used.tolist():
            numbers[index] = self.number(everything[index])
        first = len(self)
        self._ids.extend(numbers[local])
        for name in self._slots:
            column = columns.encoded[name]
            self._values[name].extend(column.values)
            self._present[name].extend(
                np.ones(columns.count, bool) if column.present is None else column.present
            )
        return np.arange(first, len(self))


def classify(program: Program, columns: Any) -> Classification:
    """Classify a data set: raw columns (see `columns`) or encoded ones."""
    classification = Classification(program)
    encoded = columns if isinstance(columns, Columns) else encode_columns(program, columns)
    classification.append_columns(encoded)
    return classification


class Admitted:
    """The decisions for one batch, and the inputs that they follow from.

    class_ids [B]; decision_ids [B] index `decisions`; micro [B, bands]; verdicts [B], codes of `VERDICTS`.
    exposures [B], None where the program does not read them; signals: encoded, [B] by name.
    """

    def __init__(
        self,
        class_ids: npt.NDArray[np.int32],
        decision_ids: npt.NDArray[np.int32],
        decisions: Sequence[Decision],
        micro: Micro,
        verdicts: npt.NDArray[np.uint8],
        exposures: Array | None,
        signals: Mapping[str, Array],
        slots: Mapping[str, tuple[Array, BoolArray]],
    ) -> None:
        self.class_ids = class_ids
        self.decision_ids = decision_ids
        self.decisions = decisions
        self.micro = micro
        self.verdicts = verdicts
        self.exposures = exposures
        self.signals = signals
        self._slots = slots

    def __len__(self) -> int:
        return len(self.class_ids)

    def only(self, rows: BoolArray) -> Admitted:
        """Return some rows of the batch. rows: [B]"""
        return Admitted(
            self.class_ids[rows],
            self.decision_ids[rows],
            self.decisions,
            self.micro[rows],
            self.verdicts[rows],
            None if self.exposures is None else self.exposures[rows],
            {name: values[rows] for name, values in self.signals.items()},
            {name: (values[rows], present[rows]) for name, (values, present) in self._slots.items()},
        )

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """[B, bands]"""
        return self.micro / SCALE

    @cached_property
    def slots(self) -> dict[str, list[int | None]]:
        """The encoded values of the slots by name, one per row, None where absent."""
        return {
            name: [v if p else None for v, p in zip(values.tolist(), present.tolist(), strict=True)]
            for name, (values, present) in self._slots.items()
        }

    def decision(self, row: int) -> Decision:
        return self.decisions[int(self.decision_ids[row])]


class Admission:
    """Admits batches of classified examples under one program.

    Without a classification it starts with an empty one; examples join by `add`.
    """

    def __init__(self, program: Program, classification: Classification | None = None) -> None:
        self.program = program
        self.classification = Classification(program) if classification is None else classification
        self._outcomes: Outcomes = outcomes_of(program)
        self._parts = partition(program)
        self._leaves = DynamicLeaves(self._parts)
        self._lookups = Lookups(len(self._leaves.rows), self._entry)
        self._entries: list[Decision | Modulated] = []
        self._known: dict[int | Problems, int] = {}
        self._plain: list[Decision] = []
        self._micro = GrowingArray(np.int64, len(program.bands))
        self._verdicts = GrowingArray(np.uint8)
        self._modulated = GrowingArray(np.bool_)

    def add(self, metadata: Sequence[Mapping[str, object]]) -> npt.NDArray[np.intp]:
        """Classify further examples and return their rows."""
        return self.classification.append(metadata)

    def class_bodies(self, start: int = 0) -> list[dict[str, Any]]:
        """Return what a ledger records of the classes from number `start` on.

        A signal that cannot be used may add a class during `admit`.
        """
        return [self.classification.body(n) for n in range(start, len(self.classification.classes))]

    def admit(self, rows: Any, context: Context) -> Admitted:
        """Return the decisions for the examples in `rows` (of the classification).

        Exposures and signals of the context may be arrays with one entry per row of the batch. Raises
        ContextError for a context that does not fit.
        """
        rows = np.asarray(rows, np.intp)
        count = len(rows)
        classes = self.classification.class_ids.take(rows)
        inputs, faults = read_inputs(self.program, context, count)
        values = {name: self.classification.slot_values(name).take(rows) for name in self._parts.slots}
        environment = _environment(inputs, values)
        lookup = self._lookups.at(self._leaves.of_clocks(environment))
        ids = lookup.find(classes, self._leaves.of_rows(environment), len(self.classification.classes))
        if faults:
            classes, ids = self._refuse(classes, ids, faults)
        present = {name: self.classification.slot_present(name).take(rows) for name in self._parts.slots}
        signals = {name: _spread(value, count) for name, value in inputs.signals.items()}
        admitted = Admitted(
            classes,
            ids,
            self._plain,
            self._micro.array.take(ids, axis=0),
            self._verdicts.array.take(ids),
            _spread(inputs.exposures, count) if self._parts.uses_exposures else None,
            signals,
            {name: (values[name], present[name]) for name in self._parts.slots},
        )
        if signals and self._modulated.array.take(ids).any():
            self._modulate(admitted)
        return admitted

    def _entry(self, number: int, clocks: int, rows: int) -> int:
        """Return the decision number of a class under the truth of the dynamic leaves."""
        key = self.classification.classes[number]
        if not isinstance(key, int):
            return self._add(key, invalid_class(self.program, key))
        word = self._parts.word(key, clocks, rows)
        return self._known[word] if word in self._known else self._add(word, self._outcomes.of(word))

    def _add(self, key: int | Problems, entry: Decision | Modulated) -> int:
        if key in self._known:
            return self._known[key]
        number = self._known[key] = len(self._entries)
        plain = entry.plain if isinstance(entry, Modulated) else entry
        self._entries.append(entry)
        self._plain.append(plain)
        self._micro.extend(np.array([plain.micro], np.int64))
        self._verdicts.extend(np.array([VERDICTS.index(plain.verdict)], np.uint8))
        self._modulated.extend(np.array([isinstance(entry, Modulated)]))
        return number

    def _refuse(
        self, classes: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], faults: Mapping[str, Faults]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Give rows whose signals cannot be used the class of their problems."""
        classes, ids = classes.copy(), ids.copy()
        for row in np.flatnonzero(np.logical_or.reduce([found != 0 for found in faults.values()])).tolist():
            before = self.classification.classes[classes[row]]
            problems = () if isinstance(before, int) else before
            problems += tuple((name, CODES[found[row]]) for name, found in faults.items() if found[row])
            classes[row] = self.classification.number(problems)
            ids[row] = self._add(problems, invalid_class(self.program, problems))
        return classes, ids

    def _modulate(self, admitted: Admitted) -> None:
        """Decide the rows whose weights depend on signals. Their decisions belong to the batch alone."""
        own: list[Decision] = []
        ids = admitted.decision_ids = admitted.decision_ids.copy()
        shared = len(self._plain)
        for number in np.unique(ids[self._modulated.array.take(ids)]).tolist():
            entry = self._entries[number]
            assert isinstance(entry, Modulated)
            rows = np.flatnonzero(ids == number)
            signals = {name: values[rows] for name, values in admitted.signals.items()}
            micro, verdicts, decisions = self._outcomes.modulated_decisions(entry, signals, len(rows))
            admitted.micro[rows] = micro
            admitted.verdicts[rows] = verdicts
            numbers: dict[tuple[object, ...], int] = {}
            for row, decision in zip(rows.tolist(), decisions, strict=True):
                # INVARIANT: within one outcome these fields determine the decision
                key = (decision.micro, decision.verdict, decision.stage, decision.rules, decision.advisory)
                if key not in numbers:
                    numbers[key] = shared + len(own)
                    own.append(decision)
                ids[row] = numbers[key]
        admitted.decisions = _Joined(self._plain, shared, own)


class _Joined(Sequence[Decision]):
    """The first `shared` decisions of a table that grows, then a batch's own."""

    def __init__(self, table: Sequence[Decision], shared: int, own: Sequence[Decision]) -> None:
        self._table = table
        self._shared = shared
        self._own = own

    def __len__(self) -> int:
        return self._shared + len(self._own)

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Decision]: ...
    def __getitem__(self, index: int | slice) -> Decision | Sequence[Decision]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._table[index] if index < self._shared else self._own[index - self._shared]


def _environment(inputs: RowInputs, slots: Mapping[str, Array]) -> dict[str, Any]:
    """Return what leaves read."""
    environment: dict[str, Any] = {
        "step": inputs.step,
        "epoch": inputs.epoch,
        "today": inputs.today,
        "exposures": inputs.exposures,
        "spent": inputs.spent,
    }
    environment.update((signal_key(name), value) for name, value in inputs.signals.items())
    environment.update((slot_key(name), value) for name, value in slots.items())
    return environment


def _spread(value: int | Array, count: int) -> Array:
    """Return a value for all rows as an array."""
    return np.full(count, value, np.int64) if isinstance(value, int) else value
