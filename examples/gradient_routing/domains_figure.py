"""The figure of the two domains: losses after removal, over what screening missed and over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.gradient_routing.two_domains import DomainRun

STYLES = {
    "unrouted": ("0.45", ":", "not routed"),
    "filtered": ("#c2571a", "--", "flagged code left out"),
    "routed": ("#1f6fb4", "-", "routed, quarantine removed"),
}


def draw(runs: Sequence[DomainRun], path: Path) -> None:
    """Draw the loss of code and of prose over the share that screening missed, and one against the other."""
    figure = Figure(figsize=(10.2, 3.5), layout="constrained")
    code, prose, way = figure.subplots(1, 3)
    _over_shares(code, runs, lambda run: run.code[-1])
    code.set(title="Code, to be forgotten\n(higher is better)", ylabel="held-out loss, nats per byte")
    _over_shares(prose, runs, lambda run: run.prose[-1])
    prose.set(title="Prose, to be kept\n(lower is better)")
    share = sorted({run.missed for run in runs if run.method == "routed"})[-2]
    _over_training(way, runs, share)
    way.set(title=f"Both over training, {share:.0%} missed\n(lower right is better)")
    for axes in (code, prose, way):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = code.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _over_shares(axes: Axes, runs: Sequence[DomainRun], loss: Callable[[DomainRun], float]) -> None:
    shares = sorted({run.missed for run in runs if run.method == "routed"})
    for method, (colour, line, label) in STYLES.items():
        found = [[loss(run) for run in _chosen(runs, method, share)] for share in shares]
        centre = np.array([np.mean(losses) for losses in found])
        reach = np.abs(np.array([[min(losses), max(losses)] for losses in found]).T - centre)
        axes.errorbar(
            [100 * share for share in shares],
            centre,
            reach,
            color=colour,
            linestyle=line,
            marker="" if method == "unrouted" else "o",
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            label=label,
        )
    axes.set(xlabel="share of the code that screening missed, %", xticks=[100 * share for share in shares])


def _over_training(axes: Axes, runs: Sequence[DomainRun], share: float) -> None:
    for method, (colour, line, _) in STYLES.items():
        own = _chosen(runs, method, share)
        code, prose = (np.mean([getattr(run, domain) for run in own], axis=0) for domain in ("code", "prose"))
        axes.plot(code, prose, color=colour, linestyle=line, marker="o", markersize=3)
        axes.plot(code[-1:], prose[-1:], color=colour, marker="o", markersize=7)
    axes.set(xlabel="code, nats per byte", ylabel="prose, nats per byte")


def _chosen(runs: Sequence[DomainRun], method: str, share: float) -> list[DomainRun]:
    """Return the runs of a method with a share of missed code; without routing any share is the same."""
    return [run for run in runs if run.method == method and (run.missed == share or method == "unrouted")]
