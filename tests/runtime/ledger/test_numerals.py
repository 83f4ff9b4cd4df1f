"""Numbers that are read many lists at a time are those that a parser of JSON finds, list by list."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.ledger.numerals import LONGEST, read_numerals

_numbers = st.integers(1 - 10 ** (LONGEST - 1), 10**LONGEST - 1) | st.integers(-20, 20)
_odd = st.text("0123456789,-", max_size=20) | st.sampled_from(["-0", "00", "1.0", "1e2", " 1", "null", "é"])


def _parsed(text: str) -> list[int] | None:
    """Return the numbers of a list in its canonical form, None where it has another."""
    try:
        values = json.loads(f"[{text}]")
    except json.JSONDecodeError:
        return None
    sound = all(type(value) is int and len(str(value)) <= LONGEST for value in values)
    return values if values and sound and ",".join(map(str, values)) == text else None


@given(st.data())
def test_lists_hold_what_json_says(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    columns = []
    for _ in range(data.draw(st.integers(1, 3))):
        lists = [data.draw(st.lists(_numbers, min_size=count, max_size=count)) for count in counts]
        columns.append([",".join(map(str, values)) for values in lists])
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(counts) - 1))
        columns[data.draw(st.integers(0, len(columns) - 1))][place] = data.draw(_odd)
    signed = data.draw(st.integers(0, len(columns)))
    expected = [[_parsed(text) for text in column] for column in columns]
    sound = all(
        values is not None and len(values) == count and (place >= len(columns) - signed or min(values) >= 0)
        for place, column in enumerate(expected)
        for values, count in zip(column, counts, strict=True)
    )
    found = read_numerals(
        [[text.encode() for text in column] for column in columns], np.array(counts, np.int64), signed
    )
    assert (found is not None) is sound
    if found is not None:
        values = [found.values(place).tolist() for place in range(len(columns))]
        assert values == [[value for one in column for value in one or ()] for column in expected]
