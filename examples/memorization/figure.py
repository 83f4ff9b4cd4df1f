"""The figure of the canaries: what is left of them by repetition, and how well the detector finds them.

Exposure twice: that of the canaries, and how much of it is above that of the same canaries never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.memorization.confidence import Interval, Level
    from examples.memorization.detection import Curve
    from examples.memorization.unseen import Traces

    Group = TypeVar("Group", Level, Traces)

STYLES = ("unguarded", "goldfish", "signals", "confined", "guarded")
"""The policy of each colour and marker."""

COLOURS = ("0.35", "#c2571a", "#1f6fb4", "#b3862b", "#3b8f4a")
MARKERS = ("o", "s", "^", "D", "v")

SHIFT = 0.09
"""How far the points of one policy stand beside those of the next."""

SHOWN = 5
"""Signals whose curves are drawn, the first of the table."""


def draw(levels: Sequence[Level], left: Sequence[Traces], curves: Sequence[Curve], path: Path) -> None:
    """Draw extraction and exposure over repetitions, by policy, and precision over recall, by signal."""
    figure = Figure(figsize=(12.6, 6.6), layout="constrained")
    (extraction, letters, more_letters), (words, more_words, detection) = figure.subplots(2, 3)
    random, of_code = ([one for one in levels if one.kind == kind] for kind in ("letters", "words"))
    _shares(extraction, random)
    extraction.set_title("Random letters: canaries extracted")
    extraction.legend(frameon=False, fontsize=8, loc="upper left")
    _exposures(letters, random)
    letters.set_title("Random letters: exposure")
    _differences(more_letters, [one for one in left if one.kind == "letters"])
    more_letters.set_title("Random letters: exposure over itself never seen")
    _exposures(words, of_code)
    words.set_title("Random words of code: exposure")
    _differences(more_words, [one for one in left if one.kind == "words"])
    more_words.set_title("Random words: exposure over itself never seen")
    _curves(detection, curves)
    detection.set_title("What finds the memorized")
    for axes in figure.axes:
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _curves(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, colour in zip(curves[:SHOWN], COLOURS, strict=False):
        axes.step(curve.recall, curve.precision, where="post", color=colour, label=curve.signal)
    axes.axhline(curves[0].base, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    axes.set(xlabel="recall", ylabel="precision", ylim=(-0.04, 1.04))
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _shares(axes: Axes, levels: Sequence[Level]) -> None:
    for own in _by_policy(axes, levels):
        shares = [100 * one.extracted for one in own]
        within = [(100 * low, 100 * high) for low, high in (one.extracted_within for one in own)]
        _points(axes, own[0].policy, shares, within)
    axes.set(ylabel="%", ylim=(-4, 104))


def _exposures(axes: Axes, levels: Sequence[Level]) -> None:
    """Draw mean exposures with their intervals, over the band in which those of unseen canaries lie."""
    own = levels[: len({one.repetitions for one in levels})]
    low, high = zip(*(one.chance for one in own), strict=True)
    axes.fill_between(range(len(own)), low, high, color="0.88", linewidth=0, zorder=0)
    for own in _by_policy(axes, levels):
        exposures, within = [one.exposure for one in own], [one.exposure_within for one in own]
        _points(axes, own[0].policy, exposures, within)
    axes.set(ylabel="bits")


def _differences(axes: Axes, left: Sequence[Traces]) -> None:
    """Draw by how much canaries are more exposed than the same canaries never seen, with intervals."""
    for own in _by_policy(axes, [one for one in left if one.repetitions is not None]):
        means = [one.more_exposure for one in own]
        _points(axes, own[0].policy, [one.value for one in means], [one.within for one in means])
    axes.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(ylabel="bits")


def _by_policy(axes: Axes, levels: Sequence[Group]) -> list[list[Group]]:
    policies = list(dict.fromkeys(one.policy for one in levels))
    found = [[one for one in levels if one.policy == policy] for policy in policies]
    axes.set(xlabel="times a canary came", xticks=range(len(found[0])))
    axes.set_xticklabels([str(one.repetitions) for one in found[0]])
    return found


def _points(axes: Axes, policy: str, values: Sequence[float], within: Sequence[Interval]) -> None:
    """Draw values with their intervals."""
    number = STYLES.index(policy)
    low = [value - least for value, (least, _) in zip(values, within, strict=True)]
    high = [most - value for value, (_, most) in zip(values, within, strict=True)]
    places = [place + SHIFT * (number - 2) for place in range(len(values))]
    style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "label": policy}
    axes.errorbar(places, values, (low, high), linewidth=1, elinewidth=0.8, **style)
