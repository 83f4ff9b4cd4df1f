"""Pictures of the figures.

limit: time against the least arithmetic that the weights leave, in the manner of a roofline.
cases: time and peak memory of every method in every case.
rows: time by the share of rows that are masked below the top two blocks.
grid: time by network, batch, depth and case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from benchmarks.routing.bars import NEAR_LIMIT
from benchmarks.routing.cases import cases
from benchmarks.routing.figures import Figure
from benchmarks.routing.methods import GOVERNED, PLAIN
from benchmarks.routing.workload import Shape

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": 150,
    "legend.frameon": False,
    "savefig.bbox": "tight",
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn. Colours are told apart by the colour-blind (Okabe and Ito)."""

    label: str
    colour: str
    marker: str


OWN = "#000000"

LOOKS = {
    "governed": Look("governed (gradwarden)", OWN, "o"),
    "governor": Look("whole governor, ledger on disk", OWN, "*"),
    "split": Look("reference engine (split)", "#0072B2", "s"),
    "detach_outputs": Look("gradient routing, block outputs", "#E69F00", "^"),
    "detach_hidden": Look("gradient routing, MLP activations", "#F0C419", "v"),
    "group_masking": Look("gradients zeroed by group (SGTM)", "#009E73", "D"),
    "zero_after": Look("gradients zeroed after the step", "#56B4E9", "X"),
    "per_example": Look("per-example gradients (vmap)", "#CC79A7", "P"),
}

TOP_OF_SCALE = 4.0


def draw(name: str, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw what figures show, the grid or the cases; return the paths of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [figure for figure in figures if figure.ratio is not None and figure.method != PLAIN]
    if not shown:
        return []
    gridded = len({(figure.model, figure.batch, figure.depth) for figure in shown}) > 1
    with mpl.rc_context(STYLE):
        if gridded:
            pictures = {"": grid_picture(shown)}
        else:
            pictures = {"_limit": limit_picture(shown), "_cases": cases_picture(shown)}
            if len([f for f in shown if f.method == GOVERNED and _share(f) is not None]) > 1:
                pictures["_rows"] = rows_picture(shown)
        paths = []
        for part, picture in pictures.items():
            paths.append(folder / f"{name}{part}.png")
            picture.savefig(paths[-1], metadata={"Software": None})
    return paths


def limit_picture(figures: Sequence[Figure]) -> Picture:
    """Draw time against the arithmetic limit: on the line nothing but the arithmetic left costs time."""
    picture = Picture(figsize=(7.2, 5.4))
    axes = picture.add_subplot()
    limits = sorted({figure.limit for figure in figures})
    low = min(0.5, *limits) - 0.02
    line = [low, 1.02]
    axes.plot(line, line, color="#D55E00", linewidth=1.2, label="arithmetic limit")
    top = [NEAR_LIMIT * x for x in line]
    axes.fill_between(line, line, top, color="#D55E00", alpha=0.12, linewidth=0, label="within 10 % of it")
    axes.axhline(1.0, color="#888888", linewidth=0.8, linestyle=":", label="plain step")
    for method, look in LOOKS.items():
        own = [figure for figure in figures if figure.method == method]
        if own:
            _mark(axes, [f.limit for f in own], [f.ratio for f in own], look, vertical=True)
    for before, limit in zip([0.0, *limits], limits, strict=False):
        names = "\n".join(_names(figures, limit))
        axes.axvline(limit, color="#CCCCCC", linewidth=0.5, zorder=0)
        # Names of cases that lie close together would be written over each other.
        aside = 14 if limit - before < 0.03 else 0
        axes.annotate(
            names,
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(aside, 4),
            textcoords="offset points",
            rotation=50,
            fontsize=7,
        )
    axes.set_yscale("log")
    _scale(axes.yaxis, axes.set_ylim, low)
    axes.set_xlim(*line)
    axes.set_xlabel("arithmetic that the weights leave, as a share of the plain step's")
    axes.set_ylabel("time, as a multiple of the plain step's")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return picture


def cases_picture(figures: Sequence[Figure]) -> Picture:
    """Draw time and peak memory of every method, a row for every case."""
    names = list(dict.fromkeys(figure.case for figure in figures))
    picture = Picture(figsize=(9.6, 0.42 * len(names) + 1.6))
    time, memory = picture.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    for method, look in LOOKS.items():
        own = [figure for figure in figures if figure.method == method]
        rows = [names.index(figure.case) for figure in own]
        if own:
            _mark(time, [f.ratio for f in own], rows, look, vertical=False)
            _mark(memory, [f.memory_ratio for f in own], rows, look, vertical=False)
    for row, name in enumerate(names):
        limit = next(figure.limit for figure in figures if figure.case == name)
        time.plot([limit, limit], [row - 0.35, row + 0.35], color="#D55E00", linewidth=2)
    time.plot([], [], color="#D55E00", linewidth=2, label="arithmetic limit")
    for axes, title in ((time, "time"), (memory, "peak memory")):
        axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(f"{title}, as a multiple of the plain step's")
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
        axes.set_axisbelow(True)
        shown = [f.ratio if axes is time else f.memory_ratio for f in figures]
        _scale(axes.xaxis, axes.set_xlim, min(0.5, *shown) * 0.95)
    time.set_yticks(range(len(names)), names)
    time.invert_yaxis()
    handles, labels = time.get_legend_handles_labels()
    picture.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, fontsize=8)
    return picture


def rows_picture(figures: Sequence[Figure]) -> Picture:
    """Draw time by the share of the rows that are masked below the top two blocks."""
    picture = Picture(figsize=(6.4, 4.2))
    axes = picture.add_subplot()
    lines = {method: _curve(figures, method) for method in LOOKS}
    for method, look in LOOKS.items():
        if len(lines[method]) > 1:
            shares, ratios = zip(*lines[method], strict=True)
            axes.plot(
                shares,
                ratios,
                color=look.colour,
                marker=look.marker,
                markersize=5,
                label=look.label,
                zorder=4 if look.colour == OWN else 2,
            )
    own = [figure for figure in figures if figure.method == GOVERNED]
    limits = sorted((share, figure.limit) for figure in own if (share := _share(figure)) is not None)
    shares, least = zip(*limits, strict=True)
    axes.plot(shares, least, color="#D55E00", linewidth=2, label="arithmetic limit")
    axes.axhline(1.0, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, min(TOP_OF_SCALE, axes.get_ylim()[1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.set_xticks(shares)
    axes.set_xlabel("rows masked below the top two blocks")
    axes.set_ylabel("time, as a multiple of the plain step's")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return picture


def grid_picture(figures: Sequence[Figure]) -> Picture:
    """Draw the time for every batch and depth: a row of panels for a network, a column for a case."""
    models = list(dict.fromkeys(figure.model for figure in figures))
    names = list(dict.fromkeys(figure.case for figure in figures))
    picture = Picture(figsize=(2.1 * len(names) + 0.8, 2.0 * len(models) + 0.6))
    panels = picture.subplots(len(models), len(names), squeeze=False, gridspec_kw={"hspace": 0.45})
    norm = TwoSlopeNorm(1.0, 0.5, 1.5)
    for model, row in zip(models, panels, strict=True):
        for name, axes in zip(names, row, strict=True):
            own = [figure for figure in figures if figure.model == model and figure.case == name]
            _heat(axes, own, norm)
            axes.set_title(f"{model}, {name}", fontsize=8)
        row[0].set_ylabel("blocks")
    for axes in panels[-1]:
        axes.set_xlabel("batch")
    picture.suptitle("time of a governed step, as a multiple of the plain step's", x=0.12, ha="left")
    return picture


def _heat(axes: Axes, figures: Sequence[Figure], norm: TwoSlopeNorm) -> None:
    """Fill a panel: a row for a depth, a column for a batch."""
    batches = sorted({figure.batch for figure in figures})
    depths = sorted({figure.depth for figure in figures})
    found = {(figure.depth, figure.batch): figure.ratio for figure in figures}
    values = [[found[depth, batch] for batch in batches] for depth in depths]
    axes.imshow(values, norm=norm, cmap="RdBu_r", aspect="auto")
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    axes.tick_params(length=0)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = not 0.72 < value < 1.35
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )


def _mark(axes: Axes, across: Sequence[float], up: Sequence[float], look: Look, vertical: bool) -> None:
    """Put a method's marks; those beyond the scale at its end, with their figure.

    vertical: whether the ratio goes up rather than across.
    """
    ratios = up if vertical else across
    kept = [min(ratio, TOP_OF_SCALE) for ratio in ratios]
    xs, ys = (across, kept) if vertical else (kept, up)
    own = look.colour == OWN
    axes.scatter(
        xs,
        ys,
        c=look.colour,
        marker=look.marker,
        s=48 if own else 30,
        label=look.label,
        zorder=4 if own else 3,
        linewidths=0,
        alpha=0.9,
    )
    for x, y, ratio in zip(xs, ys, ratios, strict=True):
        if ratio > TOP_OF_SCALE:
            axes.annotate(
                f"{ratio:.1f}",
                (x, y),
                xytext=(-6, 0),
                textcoords="offset points",
                fontsize=7,
                color=look.colour,
                ha="right",
                va="center",
            )


def _scale(axis: Axis, set_limits: Callable[[float, float], object], low: float) -> None:
    """Label a logarithmic axis of ratios from `low` to the top of the scale."""
    marks = [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0]
    set_limits(low, TOP_OF_SCALE * 1.06)
    axis.set_major_locator(FixedLocator([mark for mark in marks if mark >= low]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axis.set_minor_formatter(NullFormatter())


def _names(figures: Sequence[Figure], limit: float) -> list[str]:
    return list(dict.fromkeys(figure.case for figure in figures if figure.limit == limit))


def _curve(figures: Sequence[Figure], method: str) -> list[tuple[float, float]]:
    own = [figure for figure in figures if figure.method == method]
    return sorted((share, figure.ratio) for figure in own if (share := _share(figure)) is not None)


def _share(figure: Figure) -> float | None:
    """Return the share of rows that are masked below the top two blocks in a figure's case."""
    shape = Shape("gpt", figure.width, figure.depth, figure.batch, figure.tokens, 2)
    return next(case.masked_rows for case in cases(shape) if case.name == figure.case)
