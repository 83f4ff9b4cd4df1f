"""Many recorded steps replayed in columns: what is found to agree there is what each row alone gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation import lookup, replay_columns
from gradwarden.policy.evaluation.admission import Admission
from gradwarden.policy.evaluation.replay import Class, Replayer, ReplayError
from gradwarden.policy.evaluation.replay_columns import ColumnReplayer, StepColumns
from gradwarden.policy.program import Program
from tests.strategies import contexts, examples, programs


class Record:
    """What a run would record of steps, one example after the other."""

    def __init__(self, program: Program, rows: list[dict[str, Any]], steps: list[Context]) -> None:
        self.program = program
        self.steps = [dataclasses.replace(step, spent=frozenset()) for step in steps]
        self.count = len(rows)
        admission = Admission(program)
        admission.add(rows)
        admitted = [admission.admit(np.arange(len(rows)), context) for context in self.steps]
        self.decisions: list[Decision] = []
        replayer = Replayer[Decision](program)
        self.declared: list[Class] = [replayer.class_of(body) for body in admission.class_bodies()]
        self.classes = [int(number) for one in admitted for number in one.class_ids]
        reads = admitted[0].exposures is not None
        self.exposures = [int(n) for one in admitted for n in one.exposures] if reads else None  # type: ignore[union-attr]
        self.signals = {
            name: [int(value) for one in admitted for value in one.signals[name]]
            for name in admitted[0].signals
        }
        self.slots = {name: [v for one in admitted for v in one.slots[name]] for name in admitted[0].slots}
        self.recorded = [self._number(one.decision(row)) for one in admitted for row in range(self.count)]

    def _number(self, decision: Decision) -> int:
        if decision not in self.decisions:
            self.decisions.append(decision)
        return self.decisions.index(decision)

    def doubtful(self, replayer: ColumnReplayer) -> list[int] | None:
        """Return which rows are left open; all where the replayer has a doubt that ends the work."""
        columns = StepColumns(
            [self.count] * len(self.steps),
            [step.step for step in self.steps],
            [step.epoch for step in self.steps],
            [step.today for step in self.steps],
            np.array(self.classes, np.int32),
            None if self.exposures is None else np.array(self.exposures, np.int32),
            {name: np.array(values, np.int64) for name, values in self.signals.items()},
            self.slots,
        )
        recorded = np.array(self.recorded, np.int32)
        places = replayer.doubtful(columns, self.declared, recorded, self._agree)
        return None if places is None else places.tolist()

    def _agree(self, number: int, decision: Decision) -> None:
        if _bare(self.decisions[number]) != _bare(decision):
            raise ReplayError("another decision")

    def alone(self, place: int) -> bool:
        """Whether the decision for one row is as recorded."""
        step = self.steps[place // self.count]
        replayed = Replayer[Decision](self.program).replay(
            self.declared[self.classes[place]],
            {name: values[place] for name, values in self.slots.items()},
            None if self.exposures is None else self.exposures[place],
            {name: values[place] for name, values in self.signals.items()},
            step.step,
            step.epoch,
            step.today,
            frozenset(),
        )
        return _bare(replayed) == _bare(self.decisions[self.recorded[place]])


def _bare(decision: Decision) -> Decision:
    """A decision without the words for people."""
    return dataclasses.replace(
        decision, problems=tuple(dataclasses.replace(p, detail="") for p in decision.problems)
    )


@st.composite
def records(draw: st.DrawFn) -> Record:
    program = draw(programs())
    rows = draw(st.lists(examples, min_size=1, max_size=6))
    return Record(program, rows, draw(st.lists(contexts(), min_size=1, max_size=4)))


@given(records())
@settings(max_examples=8, deadline=None)
def test_what_a_run_records_agrees(record: Record) -> None:
    """But for decisions that signals scale; and no longer once it is forgotten, nor otherwise again."""
    replayer = ColumnReplayer(record.program)
    doubtful = record.doubtful(replayer)
    assert doubtful is not None
    assert record.program.modulations or not doubtful
    assert record.doubtful(replayer) == doubtful
    replayer.forget()
    assert record.doubtful(replayer) == doubtful


@given(records(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_that_is_not_doubted_is_as_recorded(record: Record, data: st.DataObject) -> None:
    """With the replayer fresh, or knowing what was recorded before something was changed."""
    replayer = ColumnReplayer(record.program)
    if data.draw(st.booleans()):
        record.doubtful(replayer)
    place = data.draw(st.integers(0, len(record.recorded) - 1))
    columns = [record.classes, record.recorded, *record.signals.values(), *record.slots.values()]
    columns += [] if record.exposures is None else [record.exposures]
    column: list[Any] = data.draw(st.sampled_from(columns))
    least, most = min(filter(None, column), default=0), max(filter(None, column), default=0)
    value = data.draw(st.one_of(st.sampled_from(column), st.integers(least - 1, most + 1)))
    if column is record.classes or column is record.recorded:
        value = (value or 0) % len(record.declared if column is record.classes else record.decisions)
    column[place] = value
    try:
        doubtful = record.doubtful(replayer)
    except ReplayError:
        return
    if doubtful is not None and place not in doubtful:
        assert record.alone(place)


@given(records())
@settings(max_examples=8, deadline=None)
def test_the_same_decision_may_be_recorded_under_two_numbers(record: Record) -> None:
    replayer = ColumnReplayer(record.program)
    expected = record.doubtful(replayer)
    record.decisions += record.decisions
    record.recorded[-1] += len(record.decisions) // 2
    assert record.doubtful(replayer) == expected


@given(records())
@settings(max_examples=8, deadline=None)
def test_steps_beyond_every_count_are_left_to_the_slow_way(record: Record) -> None:
    replayer = ColumnReplayer(record.program)
    record.steps[0] = dataclasses.replace(record.steps[0], step=2**31)
    reads_step = not replayer._leaves.timeless
    assert (record.doubtful(replayer) is None) == reads_step


@given(records())
@settings(max_examples=8, deadline=None)
def test_what_is_remembered_is_bounded(record: Record) -> None:
    replayer = ColumnReplayer(record.program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_columns, "MOST_OUTCOMES", 1)
        patch.setattr(lookup, "MOST_STATES", 1)
        first = record.doubtful(replayer)
        held = len(replayer._meanings)
        assert record.doubtful(replayer) == first
        assert len(replayer._meanings) == held
        assert len(replayer._lookups._tables) <= 1


TEXT = """policy p version 1
examples {
  gone : date
  kept : date optional
}
signals { calm : number 0..1 default 1 }
model { deep = rest }
retain until_gone { when calm < 0.5  until gone }
retain until_kept { when has kept  until kept }
depth all_of_it { reach all }
"""


def _change(values: Any, value: Any) -> None:
    values[0] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda record: _change(record.signals["calm"], -1),
        lambda record: _change(record.signals["calm"], 1_000_001),
        lambda record: record.signals.clear(),
        lambda record: record.signals.update(joy=[0, 0]),
        lambda record: _change(record.slots["gone"], None),
        lambda record: _change(record.slots["gone"], 10_000_000),
        lambda record: _change(record.slots["kept"], 1 << 70),
        lambda record: record.slots.pop("kept"),
        lambda record: record.slots.update(calm=[0, 0]),
        lambda record: setattr(record, "exposures", [0, 0]),
        lambda record: _change(record.steps, Context()),
    ],
)
def test_records_that_no_run_can_have_written_are_left_to_the_slow_way(
    change: Callable[[Record], None],
) -> None:
    """Unless the example is invalid, whatever else it says."""
    program = compile_policy(parse_policy(TEXT))
    day = Context(at=date(2026, 1, 1))
    record = Record(program, [{"gone": date(2030, 1, 1)}, {"gone": "never"}], [day])
    replayer = ColumnReplayer(program)
    assert record.doubtful(replayer) == []
    assert record.slots["kept"] == [None, None]
    change(record)
    assert record.doubtful(replayer) is None


def test_what_an_invalid_example_reads_is_not_looked_at() -> None:
    program = compile_policy(parse_policy(TEXT))
    record = Record(program, [{"gone": "never"}], [Context(at=date(2026, 1, 1))])
    _change(record.signals["calm"], -1)
    assert record.doubtful(ColumnReplayer(program)) == []
