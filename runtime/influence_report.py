"""What was measured of a group's influence (`influence`): as data, as tables, as a picture. No torch.

The measure of a band is its *relative distance*: how far the run with the group and the run without it are
apart, over the longer of the two ways from the weights both began with,

    ||p_with - p_without|| / max(||p_with - p_0||, ||p_without - p_0||)

It is 0 for equal weights only, and at most 2. Where it is 100%, the group decides as much of where the band
ends up as everything else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gradwarden.runtime.errors import InfluenceError

COLUMNS = 7
"""Steps that a table shows at most."""


@dataclass(frozen=True, slots=True)
class Movement:
    """How far apart two runs are in one band after a step: L2 norms.

    distance: between them. travelled: the longer of their ways from the common start.
    """

    step: int
    distance: float
    travelled: float

    @property
    def relative(self) -> float:
        return self.distance / self.travelled if self.distance else 0.0


@dataclass(frozen=True, slots=True)
class BandInfluence:
    """What the group did to one band.

    parameters: how many numbers it holds. direct_steps: committed steps in which the policy let an example of
    the group shape the band, the first of them `first_direct`; before it, and in bands without any, all
    influence is indirect. noise: the greatest relative distance of two equal runs, None where not measured.
    """

    name: str
    parameters: int
    direct_steps: int
    first_direct: int | None
    movements: tuple[Movement, ...]
    noise: float | None = None

    @property
    def direct(self) -> bool:
        return self.direct_steps > 0

    @property
    def final(self) -> Movement:
        return self.movements[-1]

    def after(self, step: int) -> Movement:
        """Return the movement after a step. Raises KeyError for one that was not watched."""
        for movement in self.movements:
            if movement.step == step:
                return movement
        raise KeyError(step)


@dataclass(frozen=True, slots=True)
class LossPair:
    """A held-out loss after a step, in either run."""

    step: int
    with_group: float
    without_group: float

    @property
    def change(self) -> float:
        """What the group did to the loss; below 0 where it lowered it."""
        return self.with_group - self.without_group


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The losses of one held-out set, the one before any step first."""

    name: str
    pairs: tuple[LossPair, ...]

    @property
    def final(self) -> LossPair:
        return self.pairs[-1]


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a group of examples did to a model.

    examples: all there are; group: those in the group. exposures: how often one of the group was proposed.
    """

    examples: int
    group: int
    exposures: int
    steps: int
    bands: tuple[BandInfluence, ...]
    held_out: tuple[HeldOutLoss, ...]

    def band(self, name: str) -> BandInfluence:
        """Return a band by name. Raises KeyError."""
        return {band.name: band for band in self.bands}[name]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        return {
            "examples": self.examples,
            "group": self.group,
            "exposures": self.exposures,
            "steps": self.steps,
            "bands": {band.name: _band_json(band) for band in self.bands},
            "held_out": {
                loss.name: [
                    {"step": pair.step, "with": pair.with_group, "without": pair.without_group}
                    for pair in loss.pairs
                ]
                for loss in self.held_out
            },
        }

    def tables(self) -> tuple[Table, ...]:
        """Return the bands, and the held-out losses where there are any, to be printed with rich."""
        bands = self._band_table()
        return (bands, self._loss_table()) if self.held_out else (bands,)

    def _band_table(self) -> Table:
        title = f"What {self.group:,} of {self.examples:,} examples moved in {self.steps:,} steps"
        table = _table(f"{title} (relative distance)", "band")
        table.add_column("influence", no_wrap=True)
        shown = _spread([movement.step for movement in self.bands[0].movements])
        for step in shown:
            table.add_column(f"step {step:,}", justify="right", no_wrap=True)
        noisy = any(band.noise is not None for band in self.bands)
        if noisy:
            table.add_column("noise", justify="right", no_wrap=True)
        for band in self.bands:
            cells = [percent(band.after(step).relative) for step in shown]
            noise = [percent(band.noise or 0.0)] if noisy else []
            table.add_row(band.name, _influence(band), *cells, *noise)
        return table

    def _loss_table(self) -> Table:
        table = _table("Held-out losses", "set")
        for heading in ("before", "with", "without", "change"):
            table.add_column(heading, justify="right", no_wrap=True)
        for loss in self.held_out:
            last = loss.final
            numbers = (loss.pairs[0].with_group, last.with_group, last.without_group)
            table.add_row(loss.name, *(f"{number:.4f}" for number in numbers), f"{last.change:+.4f}")
        return table

    def save_plot(self, path: Path | str) -> None:
        """Draw both over the steps, into a file whose suffix says its format.

        Raises InfluenceError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InfluenceError(
                "a plot needs matplotlib, which is not installed", help="pip install 'gradwarden[plot]'"
            ) from error
        figure = Figure(figsize=(9.0 if self.held_out else 5.0, 3.4), layout="constrained")
        axes = figure.subplots(1, 2 if self.held_out else 1, squeeze=False)[0]
        for band in self.bands:
            axes[0].plot(
                [movement.step for movement in band.movements],
                [100 * movement.relative for movement in band.movements],
                "o-" if band.direct else "s--",
                markersize=4,
                label=f"{band.name} ({'direct' if band.direct else 'indirect'})",
            )
        axes[0].set(xscale="log", xlabel="step", ylabel="relative distance, %", title="Parameters")
        axes[0].set_ylim(bottom=0)
        if self.held_out:
            for loss in self.held_out:
                later = loss.pairs[1:]
                changes = [pair.change for pair in later]
                axes[1].plot([pair.step for pair in later], changes, "o-", markersize=4, label=loss.name)
            axes[1].axhline(0, color="0.6", linewidth=0.8)
            axes[1].set(xscale="log", xlabel="step", ylabel="loss with − loss without", title="Held-out loss")
        for panel in axes:
            panel.legend(frameon=False)
            panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=120)


def percent(share: float) -> str:
    """Return a share for a table. Only an exact zero is `0`."""
    if share == 0.0:
        return "0"
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"


def _influence(band: BandInfluence) -> str:
    if band.first_direct is None:
        return "indirect"
    return "direct" if band.first_direct == 1 else f"direct from step {band.first_direct:,}"


def _band_json(band: BandInfluence) -> dict[str, Any]:
    return {
        "parameters": band.parameters,
        "direct_steps": band.direct_steps,
        "first_direct": band.first_direct,
        "noise": band.noise,
        "movements": [
            {
                "step": movement.step,
                "distance": movement.distance,
                "travelled": movement.travelled,
                "relative": movement.relative,
            }
            for movement in band.movements
        ],
    }


def _spread(steps: Sequence[int]) -> list[int]:
    """Return at most COLUMNS of some steps: the first two, the last, and others evenly between."""
    if len(steps) <= COLUMNS:
        return list(steps)
    rest = steps[2:]
    places = range(COLUMNS - 2)
    return [*steps[:2], *(rest[round(i * (len(rest) - 1) / (COLUMNS - 3))] for i in places)]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table
