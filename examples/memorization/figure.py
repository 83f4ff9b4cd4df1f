"""The figure of the canaries: what is left of them by repetition, and how well the detector finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.memorization.detection import Curve
    from examples.memorization.training import Run

COLOURS = ("0.35", "#c2571a", "#1f6fb4", "#3b8f4a", "#7d4fa8")
MARKERS = ("o", "s", "^", "D", "v")


def draw(runs: Sequence[Run], curves: Sequence[Curve], path: Path) -> None:
    """Draw extraction and exposure over repetitions, by policy, and precision over recall, by signal."""
    figure = Figure(figsize=(10.2, 3.5), layout="constrained")
    extraction, exposures, detection = figure.subplots(1, 3)
    for run, colour, marker in zip(runs, COLOURS, MARKERS, strict=False):
        places = range(len(run.levels))
        style = {"color": colour, "marker": marker, "markersize": 4, "label": run.policy}
        extraction.plot(places, [100 * level.extracted for level in run.levels], **style)
        exposures.plot(places, [level.exposure for level in run.levels], **style)
    for axes in (extraction, exposures):
        axes.set(xlabel="times a canary came", xticks=range(len(runs[0].levels)))
        axes.set_xticklabels([str(level.repetitions) for level in runs[0].levels])
    extraction.set(title="Canaries extracted", ylabel="%", ylim=(-4, 104))
    exposures.set(title="Exposure", ylabel="bits")
    exposures.axhline(1.44, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    extraction.legend(frameon=False, fontsize=8)
    for curve, colour in zip(curves, COLOURS, strict=False):
        detection.step(curve.recall, curve.precision, where="post", color=colour, label=curve.signal)
    detection.set(title="What finds the memorized", xlabel="recall", ylabel="precision", ylim=(-0.04, 1.04))
    detection.legend(frameon=False, fontsize=8)
    for axes in (extraction, exposures, detection):
        _plain(axes)
    figure.savefig(path, dpi=110)


def _plain(axes: Axes) -> None:
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
