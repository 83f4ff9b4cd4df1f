"""Decisions for columns of examples: arrays in, arrays out.

Weights and verdicts come from few conditions (`weighing`), whose truth is computed in columns (`tape`); rows
with equal truth are one kind, and each kind is weighed once. Rows whose weights depend on a signal of their
own are weighed one by one, in columns too. Whole decisions, with the names of rules, are made when they are
asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import BoolArray
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision, Problem, Verdict, invalid
from gradwarden.policy.evaluation.classes import Ids, number_faults, number_kinds, number_rows
from gradwarden.policy.evaluation.columns import Columns, encode_columns
from gradwarden.policy.evaluation.inputs import Faults, read_inputs, signal_problem
from gradwarden.policy.evaluation.outcomes import Micro, Outcomes, outcomes_of
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.evaluation.weighing import Weighed, naming_conditions, weighing_of
from gradwarden.policy.program import SCALE, Program

_INVALID = VERDICTS.index("invalid")


class Decisions:
    """The decisions for N examples, worked out as far as they are asked for."""

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

    def __len__(self) -> int:
        return self.count

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """[N, bands]"""
        return self.micro / SCALE

    @cached_property
    def micro(self) -> Micro:
        """Weights in millionths, [N, bands]."""
        micro: Micro = self.kinds.micro.take(self.kind_ids, axis=0)
        rows, weighed = self._own
        micro[rows] = weighed.micro
        return micro

    @cached_property
    def verdicts(self) -> npt.NDArray[np.uint8]:
        """Verdict codes, [N]; the names are `VERDICTS`."""
        codes: npt.NDArray[np.uint8] = self.kinds.verdicts.take(self.kind_ids)
        rows, weighed = self._own
        codes[rows] = weighed.verdicts
        return codes

    @property
    def verdict_names(self) -> npt.NDArray[np.str_]:
        return np.array(VERDICTS)[self.verdicts]

    def decision(self, row: int) -> Decision:
        """Return the decision of one example, as the scalar evaluator gives it."""
        row = range(self.count)[row]
        if any(faults[row] for _, faults in self._faults):
            return invalid(self.program.band_names, self._problems(row))
        signals = {
            name: value if isinstance(value, int) else int(value[row])
            for name, value in self._inputs.signals.items()
        }
        return self._outcomes.decide(self._word(row), signals)

    def verdict_counts(self) -> dict[Verdict, int]:
        """Return the number of examples per verdict; every verdict is listed."""
        counts = np.bincount(self.verdicts, minlength=len(VERDICTS)).tolist()
        return dict(zip(VERDICTS, counts, strict=True))

    def rule_counts(self) -> dict[str, int]:
        """Return for each rule the number of examples whose decision names it, in any role."""
        conditions = naming_conditions(self.program)
        tape = Tape(self._columns, self._inputs, list(conditions.values()))
        counts = dict.fromkeys(conditions, 0)
        failing = self._failing
        for start in range(0, self.count, tape.chunk):
            rows = slice(start, min(start + tape.chunk, self.count))
            valid = None if self._faulty is None else ~self._faulty[rows]
            views = tape.run(rows.start, rows.stop)
            for name, output in zip(conditions, tape.outputs, strict=True):
                if output is not False:
                    holds = None if output is True else views[output]
                    looked_at = failing[name][rows] if name in failing else None
                    counts[name] += _count(rows.stop - rows.start, (valid, holds, looked_at))
        return counts

    # --- classes: equal in everything -----------------------------------------------------------------------

    @cached_property
    def class_ids(self) -> Ids:
        """Class numbers, [N]; rows of one class share everything of their decision but weights modulated by
        signals of their own, and the words of their problems.
        """
        ids, words = number_rows(self._leaves, self.count)
        number_faults(ids, self._faults, len(words))
        self._words: list[int] = words
        return ids

    @cached_property
    def _leaves(self) -> Tape:
        parts = self._outcomes.partition
        return Tape(self._columns, self._inputs, (*parts.tests, *parts.clocks, *parts.rows))

    def _word(self, row: int) -> int:
        """Return the truth of all leaves of the program in one row."""
        if "class_ids" in self.__dict__:
            return self._words[int(self.class_ids[row])]
        views = self._leaves.run(row, row + 1)
        found = (output if isinstance(output, bool) else views[output][0] for output in self._leaves.outputs)
        return sum(1 << index for index, holds in enumerate(found) if holds)

    # --- kinds: equal in weights and verdict ----------------------------------------------------------------

    @property
    def kind_ids(self) -> npt.NDArray[np.integer]:
        """Kind numbers, [N]: the rows of `kinds`, but for weights modulated by signals of their own."""
        return self._kinds[0]

    @cached_property
    def kinds(self) -> Weighed:
        """The weights and verdicts of every kind; the last is that of the invalid examples."""
        signals = {
            n: v if isinstance(v, int) else np.zeros(1, np.int64) for n, v in self._inputs.signals.items()
        }
        weighed = weighing_of(self.program).weigh(self._kinds[1], signals)
        weighed.verdicts[-1] = _INVALID
        for weights in (weighed.micro, weighed.unchecked):
            weights[-1] = 0
        return weighed

    @cached_property
    def _kinds(self) -> tuple[npt.NDArray[np.integer], BoolArray]:
        """Number the kinds: the number of every row, and the truth of the conditions of every kind."""
        weighing = weighing_of(self.program)
        ids, truth = number_kinds(Tape(self._columns, self._inputs, weighing.conditions), self.count)
        if self._faulty is not None:
            ids[self._faulty] = len(truth)
        return ids, np.concatenate((truth, np.zeros((1, len(weighing.conditions)), bool)))

    @cached_property
    def _own(self) -> tuple[npt.NDArray[np.intp], Weighed]:
        """The rows whose weights depend on signals of their own, and their outcomes."""
        weighing = weighing_of(self.program)
        ids, truth = self._kinds
        given = self._inputs.signals
        if all(isinstance(value, int) for value in given.values()) or not any(truth[:, weighing.scaled].flat):
            rows = np.empty(0, np.intp)
        else:
            rows = np.flatnonzero(truth[:, weighing.scaled].any(axis=1).take(ids))
        signals = {name: value if isinstance(value, int) else value[rows] for name, value in given.items()}
        return rows, weighing.weigh(truth.take(ids[rows], axis=0), signals)

    @property
    def _failing(self) -> dict[str, BoolArray]:
        """Where the weights are not what an assertion asks, [N]."""
        weighing = weighing_of(self.program)
        found = {}
        for check in self.program.assertions:
            if check.form != "implies":
                asked = check.form, check.band, check.bound
                kinds, (rows, own) = self.kinds, self._own
                column = weighing.fails(*asked, kinds.unchecked, kinds.private).take(self.kind_ids)
                column[rows] = weighing.fails(*asked, own.unchecked, own.private)
                found[check.name] = column
        return found

    # --- faults ---------------------------------------------------------------------------------------------

    @property
    def _faults(self) -> list[tuple[str, Faults]]:
        return [*self._columns.faults.items(), *self._signal_faults.items()]

    @cached_property
    def _faulty(self) -> BoolArray | None:
        """Where an example is invalid; None where all are valid."""
        faults = [found != 0 for _, found in self._faults]
        return np.logical_or.reduce(faults) if faults else None

    def _problems(self, row: int) -> tuple[Problem, ...]:
        signals = self._context.signals
        return self._columns.problems(row) + tuple(
            signal_problem(self.program, signals, spec.name, row)
            for spec in self.program.signals
            if spec.name in self._signal_faults and self._signal_faults[spec.name][row]
        )


def decide_columns(program: Program, columns: Any, context: Context) -> Decisions:
    """Return the decisions for a table of metadata (raw, see `columns`, or already encoded).

    Exposures and signals of the context may be arrays with one entry per row. Raises ColumnsError for a table
    that is none, and ContextError for a context that does not fit.
    """
    encoded = columns if isinstance(columns, Columns) else encode_columns(program, columns)
    inputs, signal_faults = read_inputs(program, context, encoded.count)
    return Decisions(outcomes_of(program), encoded, context, inputs, signal_faults)


def _count(size: int, masks: Iterable[BoolArray | None]) -> int:
    """Return the number of rows, out of `size`, where all masks hold; None holds everywhere."""
    given = [mask for mask in masks if mask is not None]
    return int(np.count_nonzero(reduce(np.logical_and, given))) if given else size
