"""Tables for a reader, and the results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.results import write_results
from benchmarks.routing.bars import Bar
from benchmarks.routing.core import Outcome
from benchmarks.routing.figures import Figure

SCHEMA = Path(__file__).with_name("results.schema.json")

HEADINGS = (
    f"  {'method':16}{'time':>7}  {'quartiles':13}{'/limit':>7}{'arith.':>8}{'memory':>8}"
    f"{'MB':>9}{'ms':>10}{'units/s':>11}{'error':>9}"
)


def outcome_lines(outcome: Outcome, explain: bool) -> list[str]:
    """Return the table of one case. explain: also how the engine ran each block."""
    limit = outcome.figures[0].limit
    lines = [f"{outcome.case.name}: {outcome.case.title}; arithmetic limit {limit:.3f}", HEADINGS]
    lines += [figure_line(figure) for figure in outcome.figures]
    if explain:
        lines += [f"    {line}" for line in outcome.explained]
    return [*lines, ""]


def figure_line(figure: Figure) -> str:
    """Return the row of a method."""
    if figure.failed:
        return f"  {figure.method:16}{figure.failed}"
    spread = f"{figure.quartile_1:.3f}-{figure.quartile_3:.3f}"
    error = "-" if figure.error is None else f"{figure.error:.0e}"
    return (
        f"  {figure.method:16}{figure.ratio:7.3f}  {spread:13}{figure.over_limit:7.2f}"
        f"{figure.operations:8.3f}{figure.memory_ratio:8.3f}{figure.peak_bytes / 1e6:9.1f}"
        f"{figure.milliseconds:10.2f}{figure.units_per_second:11,.0f}{error:>9}"
    )


def grid_line(figures: Sequence[Figure]) -> str:
    """Return one line for a network and batch: the ratio of each case."""
    first = figures[0]
    where = f"{first.model:7} width {first.width:4} depth {first.depth:3} batch {first.batch:3}"
    ratios = "  ".join(f"{f.case} {f.ratio:.3f} (processor {f.processor_ratio:.3f})" for f in figures)
    return f"{where}  plain {first.plain_milliseconds:8.1f} ms  {ratios}"


def write(
    name: str,
    settings: Mapping[str, Any],
    figures: Sequence[Figure],
    bars: Sequence[Bar],
    folder: Path,
) -> Path:
    """Write the results file after holding it to its schema. settings: what was asked for."""
    content = {
        **settings,
        "figures": [_present(figure) for figure in figures],
        "bars": [{**asdict(bar), "held": bar.held} for bar in bars],
    }
    jsonschema.validate(content, json.loads(SCHEMA.read_text("utf-8")))
    return write_results(name, content, ["torch"], folder)


def read(path: Path) -> list[Figure]:
    """Return the figures of a results file."""
    content = json.loads(path.read_text("utf-8"))["figures"]
    jsonschema.validate(content, json.loads(SCHEMA.read_text("utf-8")))
    return [Figure(**figure) for figure in content["figures"]]


def _present(figure: Figure) -> dict[str, Any]:
    return {key: value for key, value in asdict(figure).items() if value is not None}
