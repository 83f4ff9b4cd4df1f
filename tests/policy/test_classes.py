"""Class numbers and lookup tables: equal truth, equal number, whatever the width and however many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gradwarden.policy.evaluation import classes, lookup
from gradwarden.policy.evaluation.classes import number_rows
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.evaluation.lookup import Lookup
from gradwarden.policy.evaluation.tape import CHUNK, RowInputs, Tape
from gradwarden.policy.program import AttributeSpec, Constant, Flag
from tests.policy.test_values import program_of


def numbered(truth: np.ndarray, constants: Sequence[bool] = ()) -> tuple[list[int], list[int]]:
    """Number rows by their truth columns, with constants before them; return ids and bits by class."""
    names = [f"a{i:03}" for i in range(truth.shape[1])]
    program = program_of(*(AttributeSpec(name, "bool") for name in names))
    columns = encode_columns(program, dict(zip(names, truth.T.copy(), strict=True)), len(truth))
    conditions = [*(Constant(value) for value in constants), *(Flag(name) for name in names)]
    ids, bits = number_rows(Tape(columns, RowInputs(), conditions), len(truth))
    return ids.tolist(), bits


def bits_of(row: np.ndarray, constants: Sequence[bool] = ()) -> int:
    return sum(1 << i for i, value in enumerate([*constants, *row.tolist()]) if value)


@pytest.mark.parametrize("width", [0, 1, 7, 8, 9, 16, 17, 24, 33, 70])
@pytest.mark.parametrize("table", [classes.MAX_TABLE, 1 << 10])
def test_a_class_has_the_truth_of_its_rows(width: int, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small table limit makes the stages fall back on dictionaries in the middle of the run."""
    monkeypatch.setattr(classes, "MAX_TABLE", table)
    draw = np.random.default_rng(width)
    kinds = draw.random((300, width)) < 0.5
    truth = kinds[np.sort(draw.integers(0, 300, CHUNK + 5_000))]
    ids, bits = numbered(truth, (True, False))
    assert [bits[number] for number in ids] == [bits_of(row, (True, False)) for row in truth]
    assert len(set(bits)) == len(bits)
    assert sorted(set(ids)) == list(range(len(bits)))


@pytest.mark.parametrize(
    ("leaves", "table"), [(0, lookup.MAX_TABLE), (3, lookup.MAX_TABLE), (3, 16), (12, 1 << 10), (40, 1 << 22)]
)
def test_decisions_are_found_by_class_and_leaves(
    leaves: int, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_TABLE", table)
    asked: list[tuple[int, int]] = []

    def entry(number: int, word: int) -> int:
        asked.append((number, word))
        return len(asked) - 1

    table_of_decisions = Lookup(leaves, entry)
    draw = np.random.default_rng(0)
    for bound in (1, 3, 40):
        numbers = draw.integers(0, bound, 50).astype(np.int32)
        columns = [draw.random(50) < 0.5 if place % 3 else bool(place % 2) for place in range(leaves)]
        found = table_of_decisions.find(numbers, columns, bound)
        spread = [np.broadcast_to(np.asarray(column), 50) for column in columns]
        words = [sum(1 << i for i, column in enumerate(spread) if column[row]) for row in range(50)]
        assert [asked[i] for i in found.tolist()] == list(zip(numbers.tolist(), words, strict=True))
    if table >= 1 << 22:  # where it moves to a dictionary on the way, it asks once more
        assert len(asked) == len(set(asked))
