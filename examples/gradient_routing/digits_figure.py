"""The figure of the digits: what certificates on the top half of the code make of every digit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.gradient_routing.digits import DigitRun

COLOURS = {"unrouted": "#9aa5b1", "own_sparsity": "#d3b15f", "routed": "#2f7fc1", "own_encoders": "#0b3c66"}
TITLES = {
    "unrouted": "not routed",
    "own_sparsity": "routed, own sparsity only",
    "routed": "routed",
    "own_encoders": "routed, an encoder for each half",
}
PANELS = {
    "certificate": "A decoder trained on the top half of the code, for all digits",
    "strict": "The same, and the code standardised",
}


def draw(runs: Sequence[DigitRun], path: Path) -> None:
    """Draw losses by digit as bars, and the first test image of each digit through the certificates."""
    variants = [name for name in TITLES if any(run.variant == name for run in runs)]
    shown = [name for name in variants if name != "own_sparsity"]
    figure = Figure(figsize=(8.6, 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2.1, 1))
    panels = above.subplots(2, 1, sharex=True, sharey=True)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        _bars(axes, runs, variants, name)
        axes.set_title(title, loc="left", fontsize=10)
    panels[1].set(xlabel="digit", xticks=range(10))
    handles, labels = panels[0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=8)
    _pictures(below.subplots(1 + len(shown), 10), runs, shown)
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, runs: Sequence[DigitRun], variants: Sequence[str], name: str) -> None:
    width = 0.8 / len(variants)
    for place, variant in enumerate(variants):
        losses = np.array([getattr(run, name) for run in runs if run.variant == variant])
        centre = losses.mean(axis=0)
        reach = np.abs(np.stack([losses.min(axis=0), losses.max(axis=0)]) - centre)
        at = np.arange(10) + (place - (len(variants) - 1) / 2) * width
        axes.bar(at, centre, width, color=COLOURS[variant], label=TITLES[variant])
        axes.errorbar(at, centre, reach, fmt="none", ecolor="0.3", elinewidth=0.8)
    constant = np.array([run.constant for run in runs]).mean(axis=0)
    for digit, level in enumerate(constant):
        label = "best constant image" if digit == 0 else None
        axes.plot([digit - 0.42, digit + 0.42], [level, level], color="0.2", linestyle=":", label=label)
    axes.axvline(4.5, color="0.8", linewidth=0.8)
    axes.set_ylabel("mean absolute error")
    axes.spines[["top", "right"]].set_visible(False)


def _pictures(grid: np.ndarray, runs: Sequence[DigitRun], variants: Sequence[str]) -> None:
    seed = min(run.seed for run in runs)
    chosen = [next(run for run in runs if run.variant == name and run.seed == seed) for name in variants]
    rows = [("test image", chosen[0].samples[:, 0]), *((TITLES[r.variant], r.samples[:, 1]) for r in chosen)]
    for axes_row, (title, images) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.85")
        axes_row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
