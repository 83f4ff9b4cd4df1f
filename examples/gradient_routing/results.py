"""What an experiment leaves behind: every number as JSON, a summary as Markdown, and what it ran with."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PACKAGES = ("gradwarden", "torch", "numpy", "scikit-learn", "matplotlib")

NO_DATA = ("samples", "measured")
"""Fields of a run that are for figures."""

WIDTH = 120
"""Columns of output that goes to a file."""

console = Console() if Console().is_terminal else Console(width=WIDTH)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean of some values, and their least and greatest where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def write_results(
    out: Path,
    title: str,
    settings: DataclassInstance,
    runs: Sequence[DataclassInstance],
    rows: Sequence[Mapping[str, str]],
) -> None:
    """Write `results.json` and `results.md`, and print the summary. Only data go into the JSON."""
    numbers = [{k: value for k, value in asdict(run).items() if k not in NO_DATA} for run in runs]
    seconds = round(sum(run["cpu_seconds"] for run in numbers))
    facts = {
        "at": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "settings": asdict(settings),
        "cpu_seconds": seconds,
    }
    data = {**facts, "summary": list(rows), "runs": numbers}
    (out / "results.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    text = f"# {title}\n\n{markdown(rows)}\n{facts['at']}; {versions}; {seconds} processor seconds.\n"
    (out / "results.md").write_text(text, "utf-8")
    console.print(_table(title, rows))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table; the first row has every column."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(row.get(column, "") for column in rows[0]))
    return table
