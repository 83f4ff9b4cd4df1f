"""Measure what governed training costs.

The core table takes every case by every method on one network: time over the plain step by alternating pairs,
operations left and the least that the weights leave, peak memory, absolute figures, and how far the gradients
are from each example's own, weighted. The grid takes the engine through networks, batches and depths.

    python -m benchmarks.routing                  the six-block GPT, all cases and methods: about 6 minutes
    python -m benchmarks.routing --grid           three networks by batch and depth: about an hour
    python -m benchmarks.routing --grid --narrow  narrower ones: about 15 minutes
    python -m benchmarks.routing --model resnet   another network; `llama`, `gpt-350m`
    python -m benchmarks.routing --device cuda --amp bf16 --model gpt-350m --pairs 30
    python -m benchmarks.routing --quick          tiny sizes, to see that all of it runs
    python -m benchmarks.routing --redraw         the pictures again, from the results

Whole runs write benchmarks/results/routing_*.json and docs/images/routing_*.png. A run of chosen cases or
methods, or of tiny sizes, writes nothing unless `--results` or `--images` says where.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import FOLDER
from benchmarks.routing import core, grid, plots, report
from benchmarks.routing.bars import judge
from benchmarks.routing.cases import NAMES, cases
from benchmarks.routing.figures import Figure
from benchmarks.routing.methods import GOVERNED, GOVERNOR, PEERS, SPLIT
from benchmarks.routing.workload import SHAPES, Workload

IMAGES = FOLDER.parents[1] / "docs" / "images"
METHODS = (GOVERNED, GOVERNOR, SPLIT, *PEERS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it, and write it where all of it was asked for."""
    options = _options(arguments)
    results: Path | None = options.results or (None if options.partial else FOLDER)
    images: Path | None = options.images or (None if options.partial else IMAGES)
    if options.redraw:
        for path in sorted((options.results or FOLDER).glob("routing_*.json")):
            plots.draw(path.stem, report.read(path), images or IMAGES)
        return
    torch.set_num_threads(options.threads)
    settings = _settings(options)
    name = _name(options)
    figures = _grid(options) if options.grid else _core(options)
    shape = SHAPES[options.model]
    masked = [case.name for case in cases(shape) if case.masked]
    bars = [] if options.quick else judge(figures, masked, exact=options.amp is None)
    for bar in bars:
        print(bar)
    if results is not None:
        report.write(name, settings, figures, bars, results)
    if images is not None:
        plots.draw(name, figures, images)


def _core(options: argparse.Namespace) -> list[Figure]:
    shape = SHAPES[options.model]
    work = Workload(shape.tiny() if options.quick else shape, options.device, options.amp == "bf16")
    effort = core.Effort(options.pairs, max(2, (options.pairs + 1) // 2))
    figures: list[Figure] = []
    for outcome in core.measure(options.model, work, effort, options.only, options.method):
        print("\n".join(report.outcome_lines(outcome, options.explain)), flush=True)
        figures += outcome.figures
    return figures


def _grid(options: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    shapes = grid.shapes(options.quick, options.narrow)
    for shape in (s for s in shapes if not options.cells or grid.cell(s) in options.cells):
        seconds = 0.0 if options.quick else grid.SECONDS
        amp = options.amp == "bf16"
        found = list(grid.measure(shape, options.pairs, options.device, amp, options.only, seconds))
        print(report.grid_line(found), flush=True)
        figures += found
    return figures


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "kind": "grid" if options.grid else "cases",
        "device": options.device,
        "precision": "bfloat16 autocast" if options.amp else "float32",
        "threads": options.threads,
        "tiny": options.quick,
        "load_before": round(os.getloadavg()[0], 2),
    }
    if torch.device(options.device).type == "cuda":
        settings["accelerator"] = torch.cuda.get_device_name(options.device)
    return settings


def _name(options: argparse.Namespace) -> str:
    """Return the name of the results: what was measured, and on what if not on a processor in float32."""
    device = torch.device(options.device).type
    parts = ["routing", "grid" if options.grid else options.model, *(["narrow"] if options.narrow else [])]
    parts += [part for part in (device if device != "cpu" else None, options.amp) if part]
    return "_".join([*parts, *(["quick"] if options.quick else [])])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=sorted(SHAPES), help="of the core table; gpt")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--narrow", action="store_true", help="networks of the grid whose steps are short")
    parser.add_argument(
        "--cells",
        type=lambda text: text.split(","),
        default=[],
        help="of the grid, as `resnet:4x8,llama:24x8`",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two pairs")
    parser.add_argument("--only", choices=NAMES, action="append", default=[], metavar="CASE")
    parser.add_argument("--method", choices=METHODS, action="append", default=[], metavar="METHOD")
    parser.add_argument("--pairs", type=int, help="of the engine; peers are timed half as often")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("bf16",), help="autocast to bfloat16")
    parser.add_argument("--explain", action="store_true", help="say how the engine ran each block")
    parser.add_argument("--redraw", action="store_true", help="draw the results that are there")
    parser.add_argument("--results", type=Path, help="folder of the results file")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    options = parser.parse_args(arguments)
    usual = 5 if options.narrow else 3 if options.grid else 9
    options.pairs = options.pairs or (2 if options.quick else usual)
    if options.pairs < 2:
        parser.error("--pairs must be at least 2: there are no quartiles of one ratio")
    if options.grid and (options.model or options.method or "whole_governor" in options.only):
        parser.error("--grid takes the engine through all networks; it has no --model, --method or governor")
    if options.narrow and not options.grid:
        parser.error("--narrow is for networks of the grid: --grid --narrow")
    known = [grid.cell(shape) for shape in grid.shapes(options.quick)]
    if options.cells and not (options.grid and set(options.cells) <= set(known)):
        parser.error(f"--cells are some of {', '.join(known)} with --grid: network:blocks x batch")
    options.model = options.model or "gpt"
    options.partial = bool(options.quick or options.only or options.method or options.cells)
    return options


if __name__ == "__main__":
    main()
