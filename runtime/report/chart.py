"""Charts as plain geometry: paths in a square of 100 by 100, drawn by the page as SVG without any text in it.

Labels are the page's: text in a drawing that is scaled to a phone cannot be read, nor spoken well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.provenance.amounts import amount
from gradwarden.runtime.report.account import Shaping, Spending

MOST_SERIES = 6
"""Groups that are drawn apart; all others are drawn as one."""

OTHERS = "others"

ROWS = 8
"""Stretches that a chart's table lists."""


@frozen
class Area:
    """One group of a chart. colour: its number. path: SVG path data. share: of all weight."""

    label: str
    colour: int
    path: str
    share: float


@frozen
class Stack:
    """Areas on top of each other over time, and the same as a table.

    top: the greatest sum. steps: after the last. rows: (first step, last step, one value per area), each the
    weight per step.
    """

    areas: tuple[Area, ...]
    top: float
    steps: int
    rows: tuple[tuple[int, int, tuple[float, ...]], ...]


@frozen
class Line:
    """A line over time below a bound, both as SVG path data. rows: (step, value) of some of its points."""

    path: str
    bound: str
    top: float
    steps: int
    rows: tuple[tuple[int, float], ...]


def heaviest(shaping: Sequence[Shaping]) -> list[str]:
    """Return all groups, those that gave most weight over all bands first."""
    totals: defaultdict[str, float] = defaultdict(float)
    for band in shaping:
        for name, values in band.weights.items():
            totals[name] += sum(values)
    return sorted(totals, key=lambda name: -totals[name])


def stack(shaping: Shaping, steps: int, order: Sequence[str]) -> Stack:
    """Return the chart of what shaped a band. Heights are weights per step, in whole examples.

    order: all groups; the first ones are drawn apart, each with one colour in every chart.
    """
    names = list(shaping.weights)
    apart = order if len(order) <= MOST_SERIES + 1 else order[:MOST_SERIES]
    sums = {name: list(shaping.weights[name]) for name in apart if name in shaping.weights}
    rest = [name for name in names if name not in sums]
    if rest:
        sums[OTHERS] = [sum(values) for values in zip(*(shaping.weights[name] for name in rest), strict=True)]
    unit = shaping.unit
    spans = [(at, min(at + unit, steps)) for at in range(0, steps, unit)]
    rates = [
        [value / (stop - start) for value, (start, stop) in zip(values, spans, strict=True)]
        for values in sums.values()
    ]
    top = max((sum(column) for column in zip(*rates, strict=True)), default=0.0)
    floor = [0.0] * len(spans)
    areas = []
    for label, values in zip(sums, rates, strict=True):
        roof = [low + value for low, value in zip(floor, values, strict=True)]
        share = sum(sums[label]) / shaping.whole if shaping.whole else 0.0
        colour = list(apart).index(label) if label in apart else MOST_SERIES
        areas.append(Area(label, colour, _bars(spans, floor, roof, top, steps), share))
        floor = roof
    return Stack(tuple(areas), top, steps, tuple(_rows(spans, list(sums.values()))))


def line(spending: Spending, steps: int) -> Line:
    """Return the chart of what was spent of a privacy budget."""
    bound = amount(spending.terms["epsilon"]) or 0.0
    top = max([bound, *(value for _, value in spending.points)])
    points = [(100 * step / max(1, steps - 1), _height(value, top)) for step, value in spending.points]
    path = " L".join(f"{x:.2f},{y:.2f}" for x, y in points)
    picked = spending.points[:: max(1, -(-len(spending.points) // ROWS))]
    rows = picked if picked[-1:] == spending.points[-1:] else (*picked, spending.points[-1])
    level = _height(bound, top)
    return Line(f"M{path}" if points else "", f"M0,{level:.2f} L100,{level:.2f}", top, steps, rows)


def _bars(
    spans: Sequence[tuple[int, int]], floor: Sequence[float], roof: Sequence[float], top: float, steps: int
) -> str:
    """Return bars from one height to another, next to each other."""
    parts = []
    for (start, stop), low, high in zip(spans, floor, roof, strict=True):
        if high > low:
            left, right = 100 * start / steps, 100 * stop / steps
            down, up = _height(low, top), _height(high, top)
            parts.append(f"M{left:.2f},{down:.2f} V{up:.2f} H{right:.2f} V{down:.2f} Z")
    return " ".join(parts)


def _height(value: float, top: float) -> float:
    """Return where a value is drawn: 0 is the upper edge."""
    return 100 - 100 * value / top if top else 100.0


def _rows(
    spans: Sequence[tuple[int, int]], sums: Sequence[Sequence[float]]
) -> list[tuple[int, int, tuple[float, ...]]]:
    """Return the values of ROWS stretches at most, neighbours together."""
    every = max(1, -(-len(spans) // ROWS))
    rows = []
    for at in range(0, len(spans), every):
        start, stop = spans[at][0], spans[min(at + every, len(spans)) - 1][1]
        rates = tuple(sum(values[at : at + every]) / (stop - start) for values in sums)
        rows.append((start, stop - 1, rates))
    return rows
