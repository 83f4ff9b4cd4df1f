"""Reads the numbers in many lists of text together: whether each is canonical, how many, and their values.

A number is written canonically as `0`, or as digits of which the first is not 0; a minus may stand before
these. Longer ones than 15 characters are not judged here: some are canonical, and some too great for JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Numbers
from gradwarden.policy.frozen import frozen

LONGEST = 15
"""Digits of a number, its minus counted."""

_COMMA, _MINUS, _ZERO = b",-0"


@frozen
class Numerals:
    """Canonical numbers of several columns, n lists in each, and as many numbers in the lists of all columns.

    codes: the text of all numbers (uint8), each with a comma behind it. commas: where these are (int64), of
    one column after the other. columns: how many there are.
    """

    codes: npt.NDArray[np.uint8]
    commas: Numbers
    columns: int

    def values(self, column: int) -> Numbers:
        """Return the numbers of a column, one list after the other."""
        size = len(self.commas) // self.columns
        first = column * size
        ends = self.commas[first : first + size]
        before = np.empty_like(ends)
        before[1:] = ends[:-1]
        before[:1] = self.commas[first - 1] if first else -1
        sizes = ends - before - 1
        values = np.zeros(size, np.int64)
        least = int(sizes.min(initial=LONGEST))
        for place in range(int(sizes.max(initial=0))):
            codes = self.codes[ends - 1 - place]
            if place >= least:
                codes[sizes <= place] = _ZERO
            negative = codes == _MINUS
            if negative.any():
                codes[negative] = _ZERO
                values[negative] *= -1
            values += (codes - np.uint8(_ZERO)).astype(np.int64) * 10**place
        return values


def read_numerals(columns: Sequence[Sequence[bytes]], counts: Numbers, signed: int = 0) -> Numerals | None:
    """Read lists of numbers, which commas part; None where one is odd, or no list of numbers.

    columns: the texts of n lists each. counts: how many numbers each list has, at least one (int64, [n]).
    signed: how many columns, of the last, may hold negative numbers.
    """
    texts = list(chain.from_iterable(columns))
    joined = b",".join([*texts, b""])
    codes = np.frombuffer(joined, np.uint8)
    comma = codes == _COMMA
    digit = codes - np.uint8(_ZERO) < 10
    leading = np.empty_like(comma)
    leading[:1] = True
    leading[1:] = comma[:-1]
    if b"-" in joined:
        # A minus counts for a digit that is not 0, so that a comma before it and a digit behind are needed.
        minus = np.flatnonzero(codes == _MINUS)
        unsigned = len(texts) - signed * len(counts)
        begin = sum(map(len, texts[:unsigned])) + unsigned
        behind = codes[minus + 1]
        if minus[0] < begin or not (leading[minus] & (behind > _ZERO) & (behind <= _ZERO + 9)).all():
            return None
        digit[minus] = True
    if not (comma | digit).all() or (leading & comma).any():
        return None
    if (leading[:-1] & (codes[:-1] == _ZERO) & digit[1:]).any() or _has_run(digit, LONGEST + 1):
        return None
    commas = np.flatnonzero(comma)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    last = np.cumsum(np.tile(counts, len(columns))) - 1
    if len(commas) != (last[-1] + 1 if len(last) else 0):
        return None
    if not np.array_equal(commas[last], np.cumsum(sizes + 1) - 1):
        return None
    return Numerals(codes, commas, len(columns))


def _has_run(marks: npt.NDArray[np.bool_], length: int) -> bool:
    """Whether so many marks, a power of two, are set one behind the other."""
    reach = 1
    while reach < length and len(marks) > reach:
        marks = marks[:-reach] & marks[reach:]
        reach *= 2
    return reach >= length and bool(marks.any())
