"""The figure of the canaries: what is left of them by repetition, and how well the detector finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.memorization.confidence import Level
    from examples.memorization.detection import Curve

COLOURS = ("0.35", "#c2571a", "#1f6fb4", "#b3862b", "#3b8f4a")
MARKERS = ("o", "s", "^", "D", "v")

SHIFT = 0.09
"""How far the points of one policy stand beside those of the next."""

SHOWN = 5
"""Signals whose curves are drawn, the first of the table."""


def draw(levels: Sequence[Level], curves: Sequence[Curve], path: Path) -> None:
    """Draw extraction and exposure over repetitions, by policy, and precision over recall, by signal."""
    figure = Figure(figsize=(9.2, 6.6), layout="constrained")
    (extraction, letters), (words, detection) = figure.subplots(2, 2)
    random = [one for one in levels if one.kind == "letters"]
    _shares(extraction, random)
    extraction.set_title("Random letters: canaries extracted")
    _exposures(letters, random)
    letters.set_title("Random letters: exposure")
    _exposures(words, [one for one in levels if one.kind == "words"])
    words.set_title("Random words of code: exposure")
    extraction.legend(frameon=False, fontsize=8, loc="upper left")
    for curve, colour in zip(curves[:SHOWN], COLOURS, strict=False):
        detection.step(curve.recall, curve.precision, where="post", color=colour, label=curve.signal)
    detection.axhline(curves[0].base, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    detection.set(title="What finds the memorized", xlabel="recall", ylabel="precision", ylim=(-0.04, 1.04))
    detection.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in (extraction, letters, words, detection):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _shares(axes: Axes, levels: Sequence[Level]) -> None:
    for number, own in enumerate(_by_policy(axes, levels)):
        shares = [100 * one.extracted for one in own]
        low = [100 * (one.extracted - one.extracted_within[0]) for one in own]
        high = [100 * (one.extracted_within[1] - one.extracted) for one in own]
        _points(axes, number, own[0].policy, shares, low, high)
    axes.set(ylabel="%", ylim=(-4, 104))


def _exposures(axes: Axes, levels: Sequence[Level]) -> None:
    """Draw mean exposures with their intervals, over the band in which those of unseen canaries lie."""
    for number, own in enumerate(_by_policy(axes, levels)):
        if number == 0:
            low, high = zip(*(one.chance for one in own), strict=True)
            axes.fill_between(range(len(own)), low, high, color="0.88", linewidth=0, zorder=0)
        _points(
            axes,
            number,
            own[0].policy,
            [one.exposure for one in own],
            [one.exposure - one.exposure_within[0] for one in own],
            [one.exposure_within[1] - one.exposure for one in own],
        )
    axes.set(ylabel="bits")


def _by_policy(axes: Axes, levels: Sequence[Level]) -> list[list[Level]]:
    policies = list(dict.fromkeys(one.policy for one in levels))
    found = [[one for one in levels if one.policy == policy] for policy in policies]
    axes.set(xlabel="times a canary came", xticks=range(len(found[0])))
    axes.set_xticklabels([str(one.repetitions) for one in found[0]])
    return found


def _points(
    axes: Axes, number: int, policy: str, values: list[float], low: list[float], high: list[float]
) -> None:
    places = [place + SHIFT * (number - 2) for place in range(len(values))]
    style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "label": policy}
    axes.errorbar(places, values, (low, high), linewidth=1, elinewidth=0.8, **style)
