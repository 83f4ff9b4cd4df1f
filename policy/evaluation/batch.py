"""Decisions for columns of examples: arrays in, arrays out.

The truth of every leaf of the conditions is computed in columns (`tape`), rows with equal truth get one
class number (`classes`), and each class is decided once (`outcomes`). Rows whose weights depend on a signal
of their own are finished in columns too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision, Problem, Verdict, invalid
from gradwarden.policy.evaluation.classes import number_faults, number_rows
from gradwarden.policy.evaluation.columns import Columns, encode_columns
from gradwarden.policy.evaluation.inputs import Faults, read_inputs, signal_problem
from gradwarden.policy.evaluation.outcomes import Micro, Modulated, Outcomes, invalid_class, outcomes_of
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.program import SCALE, Program


@dataclass(frozen=True, slots=True)
class _ModulatedRows:
    """The rows of a class whose weights depend on their own signals."""

    rows: npt.NDArray[np.intp]
    micro: Micro
    verdicts: npt.NDArray[np.uint8]
    refused: npt.NDArray[np.bool_]


class Decisions:
    """The decisions for N examples.

    class_ids: [N]; rows of one class share everything of their decision but weights modulated by signals of
    their own, and the words of their problems.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        columns: Columns,
        context: Context,
        inputs: RowInputs,
        signal_faults: Mapping[str, Faults],
    ) -> None:
        self.program = outcomes.program
        self.count = columns.count
        self._outcomes = outcomes
        self._columns = columns
        self._context = context
        self._inputs = inputs
        self._signal_faults = signal_faults
        parts = outcomes.partition
        tape = Tape(columns, inputs, (*parts.tests, *parts.clocks, *parts.rows))
        self.class_ids, self._words = number_rows(tape, self.count)
        self._table: list[Decision | Modulated] = [outcomes.of(word) for word in self._words]
        self._fixed = {name: v for name, v in inputs.signals.items() if isinstance(v, int)}
        self._settle_classes()
        faults = [*columns.faults.items(), *signal_faults.items()]
        problems = number_faults(self.class_ids, faults, len(self._table))
        self._table += [invalid_class(self.program, found) for found in problems]

    def __len__(self) -> int:
        return self.count

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """[N, bands]"""
        return self.micro / SCALE

    @cached_property
    def micro(self) -> Micro:
        """Weights in millionths, [N, bands]."""
        table = [_plain(entry).micro for entry in self._table]
        micro: Micro = (
            np.array(table, np.int64).reshape(-1, len(self.program.bands)).take(self.class_ids, axis=0)
        )
        for group in self._modulated.values():
            micro[group.rows] = group.micro
        return micro

    @cached_property
    def verdicts(self) -> npt.NDArray[np.uint8]:
        """Verdict codes, [N]; the names are `VERDICTS`."""
        table = np.array([VERDICTS.index(_plain(entry).verdict) for entry in self._table], np.uint8)
        codes: npt.NDArray[np.uint8] = table.take(self.class_ids)
        for group in self._modulated.values():
            codes[group.rows] = group.verdicts
        return codes

    @property
    def verdict_names(self) -> npt.NDArray[np.str_]:
        return np.array(VERDICTS)[self.verdicts]

    def decision(self, row: int) -> Decision:
        """Return the decision of one example, as the scalar evaluator gives it."""
        row = range(self.count)[row]
        entry = self._table[self.class_ids[row]]
        if isinstance(entry, Modulated):
            return self._outcomes.modulate(entry, self._signals_of(row))
        return invalid(entry.bands, self._problems(row)) if entry.problems else entry

    def verdict_counts(self) -> dict[Verdict, int]:
        """Return the number of examples per verdict; every verdict is listed."""
        counts = np.bincount(self.verdicts, minlength=len(VERDICTS)).tolist()
        return dict(zip(VERDICTS, counts, strict=True))

    def rule_counts(self) -> dict[str, int]:
        """Return for each rule the number of examples whose decision names it, in any role."""
        program = self.program
        rules = (program.grants, program.limits, program.modulations, program.assertions)
        counts = dict.fromkeys(sorted(rule.name for group in rules for rule in group), 0)
        sizes = np.bincount(self.class_ids, minlength=len(self._table)).tolist()
        for number, (entry, size) in enumerate(zip(self._table, sizes, strict=True)):
            for decision, weight in self._named(number, entry, size):
                for name in (*decision.rules, *decision.advisory, *decision.waived):
                    counts[name] += weight
        return counts

    def _named(self, number: int, entry: Decision | Modulated, size: int) -> list[tuple[Decision, int]]:
        """Return decisions that between them name the rules of a class, each with its number of rows."""
        if isinstance(entry, Decision):
            return [(entry, size)]
        group = self._modulated.get(number)
        if group is None:
            return []
        special = group.rows if entry.advised else group.rows[group.refused]
        usual = (entry.plain, len(group.rows) - len(special))
        return [usual, *((self.decision(int(row)), 1) for row in special)]

    # --- building ------------------------------------------------------------------------------------------

    def _settle_classes(self) -> None:
        """Decide the classes that are modulated by signals with one value for all rows."""
        if len(self._fixed) < len(self._inputs.signals):
            return
        for number, entry in enumerate(self._table):
            if isinstance(entry, Modulated):
                self._table[number] = self._outcomes.modulate(entry, self._fixed)

    @cached_property
    def _modulated(self) -> dict[int, _ModulatedRows]:
        groups = {}
        for number, entry in enumerate(self._table):
            if isinstance(entry, Modulated):
                rows = np.flatnonzero(self.class_ids == number)
                signals = {
                    name: np.full(len(rows), v, np.int64) if isinstance(v, int) else v[rows]
                    for name, v in self._inputs.signals.items()
                }
                groups[number] = _ModulatedRows(
                    rows, *self._outcomes.modulate_rows(entry, signals, len(rows))
                )
        return groups

    def _problems(self, row: int) -> tuple[Problem, ...]:
        signals = self._context.signals
        return self._columns.problems(row) + tuple(
            signal_problem(self.program, signals, spec.name, row)
            for spec in self.program.signals
            if spec.name in self._signal_faults and self._signal_faults[spec.name][row]
        )

    def _signals_of(self, row: int) -> dict[str, int]:
        return {
            name: value if isinstance(value, int) else int(value[row])
            for name, value in self._inputs.signals.items()
        }


def decide_columns(program: Program, columns: Any, context: Context) -> Decisions:
    """Return the decisions for a table of metadata (raw, see `columns`, or already encoded).

    Exposures and signals of the context may be arrays with one entry per row. Raises ColumnsError for a table
    that is none, and ContextError for a context that does not fit.
    """
    encoded = columns if isinstance(columns, Columns) else encode_columns(program, columns)
    inputs, signal_faults = read_inputs(program, context, encoded.count)
    return Decisions(outcomes_of(program), encoded, context, inputs, signal_faults)


def _plain(entry: Decision | Modulated) -> Decision:
    return entry.plain if isinstance(entry, Modulated) else entry
