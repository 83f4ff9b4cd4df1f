"""The tape: buffers are used again, and yet every condition has its own truth when the tape has run."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.evaluation.evaluate import holds
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.program import And, AttributeSpec, Condition, Flag, Not, Or
from tests.policy.test_values import program_of
from tests.policy.test_weighing import NAMES, facts, formulas

ROWS = 64
TRUTH = np.array([[row >> bit & 1 for bit in range(len(NAMES))] for row in range(ROWS)], bool)
COLUMNS = encode_columns(
    program_of(*(AttributeSpec(name, "bool") for name in NAMES)),
    {name: TRUTH[:, index].copy() for index, name in enumerate(NAMES)},
)


def parts(condition: Condition) -> list[Condition]:
    match condition:
        case Not(term):
            return [condition, *parts(term)]
        case And(terms) | Or(terms):
            return [condition, *(part for term in terms for part in parts(term))]
        case _:
            return [condition]


@given(st.lists(formulas, min_size=1, max_size=4), st.randoms())
@settings(max_examples=60)
def test_conditions_and_their_parts_keep_their_truth(whole: list[Condition], random: Random) -> None:
    """What is asked for is read by later steps too, and must outlive them."""
    conditions = [part for condition in whole for part in parts(condition)]
    random.shuffle(conditions)
    check(conditions)


def test_a_condition_that_another_reads_is_not_written_over() -> None:
    a, b, c, d = (Not(Flag(name)) for name in "abcd")
    check([a, And((a, b)), Or((And((c, d)), Not(And((b, c))))), d])


def check(conditions: list[Condition]) -> None:
    tape = Tape(COLUMNS, RowInputs(), conditions)
    views = tape.run(0, ROWS)
    for condition, output in zip(conditions, tape.outputs, strict=True):
        found = np.full(ROWS, output) if isinstance(output, bool) else views[output]
        rows = [dict(zip(NAMES, row.tolist(), strict=True)) for row in TRUTH]
        assert found.tolist() == [holds(condition, facts(row)) for row in rows]


def test_a_hundred_rules_need_few_buffers() -> None:
    flags = [Flag(name) for name in NAMES]
    whens = [And((Not(flags[i % 6]), Not(flags[i // 6 % 6]), flags[i % 5])) for i in range(36)]
    tape = Tape(COLUMNS, RowInputs(), [Or(tuple(whens))])
    assert len(tape.run(0, 1)) <= 2 * len(NAMES) + 4
