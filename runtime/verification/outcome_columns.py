"""Reads the outcomes of many steps together, column by column.

What is read is the JSON of `Turns.outcomes`: bodies of the shape of their kind, with no quote or backslash in
any text. An expression takes each apart, so that nothing is made of it but its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
import orjson

from gradwarden.policy.array_types import Floats
from gradwarden.policy.frozen import frozen

_DECIMAL = rb'"[-+.0-9e]{1,40}+"'
"""What may be a decimal: that it is one is seen when it is read."""

_LOSS = rb'null|"-?inf"|' + _DECIMAL

_LONG_EXPONENT = re.compile(rb"e[+-]?[0-9]{4}")
"""What JSON takes for a number, and `violation.number` does not."""

_TEXT = rb'"[^"]*+"'


@frozen
class OutcomeColumns:
    """Outcomes that spent no budget.

    steps: of all outcomes. Of the C committed ones, active: the JSON of a list of names; batches: empty where
    none is recorded; losses: the JSON of a text, or null; norms: [bands, C], NaN for null.
    """

    steps: list[int]
    active: Sequence[bytes]
    batches: Sequence[bytes]
    losses: Sequence[bytes]
    norms: Floats


class OutcomeReader:
    """Reads outcomes of steps of a program with these bands."""

    def __init__(self, bands: Sequence[str]) -> None:
        ordered = sorted(bands)
        self._places = [ordered.index(band) for band in bands]
        names = [re.escape(orjson.dumps(band)) for band in ordered]
        norms = b",".join([b"%b:(null|%b)" % (name, _DECIMAL) for name in names])
        moved = rb'"active":(\[[^\]]*+\])(?:,"batch":([0-9]++))?+'
        committed = rb'%b,"loss":(%b),"norms":\{%b\},"privacy":\{\}' % (moved, _LOSS, norms)
        refused = rb'"detail":%b,"gate":%b,"reason":%b' % (_TEXT, _TEXT, _TEXT)
        body = rb'\{(?:%b|%b),"step":([0-9]++)\}' % (committed, refused)
        self._bodies = re.compile(body).findall

    def read(self, bodies: bytes, committed: Sequence[bool]) -> OutcomeColumns | None:
        """Return what a JSON list of outcomes says; None where anything is odd.

        committed: whether each outcome is that of a committed step.
        """
        rows = self._bodies(bodies)
        if [row[0] != b"" for row in rows] != list(committed):
            return None
        columns = list(zip(*compress(rows, committed), strict=True))
        active, batches, losses, *texts = columns[:-1] if columns else ((),) * (3 + len(self._places))
        norms = read_decimals(chain.from_iterable(texts[place] for place in self._places))
        try:
            steps = orjson.loads(b"[" + b",".join([row[-1] for row in rows]) + b"]")
        except orjson.JSONDecodeError:
            return None
        if norms is None:
            return None
        return OutcomeColumns(steps, active, batches, losses, norms.reshape(len(self._places), len(active)))


def read_decimals(texts: Iterable[bytes]) -> Floats | None:
    """Return decimals in JSON texts of no more than 40 characters; NaN for null.

    None where `violation.number` would refuse one. texts: null, or what may be a decimal.
    """
    joined = b",".join(texts).translate(None, b'"')
    if b"e" in joined and _LONG_EXPONENT.search(joined):
        return None
    try:
        values: list[Any] = orjson.loads(b"[" + joined + b"]")
    except orjson.JSONDecodeError:
        return None
    numbers = np.array(values, np.float64)
    return None if np.isinf(numbers).any() else numbers
