"""What a training step with differential privacy costs, beside the plain step and Opacus's ways of taking it.

`python -m benchmarks.private_step [gpt|resnet ...] [--pairs N] [--quick]`. Every step is a whole one: forward
and backward pass, clipping of each example, noise on all private parameters, SGD. Each is timed next to plain
steps, in turn; the ratio is the median over pairs.

The process starts itself anew with an allocator that keeps freed memory (`KEEPING`), for all steps, the plain
ones too; `--as-is` leaves it as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping, DPPerLayerOptimizer
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.results import write_results
from benchmarks.routing.memory import peak_memory
from benchmarks.routing.models import Stack
from benchmarks.routing.timing import Pairs, Step, alternate
from benchmarks.routing.workload import SHAPES, Batch, Workload
from gradwarden.runtime.masks.engine import make_engine
from gradwarden.runtime.privacy.clipping import Clipping, Unit, clip_groups
from gradwarden.runtime.privacy.noise import FastNoise, add_noise, add_to_gradients
from gradwarden.runtime.privacy.units import UnitSums

CLIP, NOISE, RATE = 1.0, 1.0, 0.01
PLAIN = "plain"

KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""For glibc, in bytes: so much may lie free, and what is larger comes from the kernel by itself.

Else what a step frees goes back to the kernel, and the next one gets it page by page, zeroed.
"""

BARS = {
    "gpt": {"gradwarden, by layer": 1.15, "gradwarden, flat": 1.45, "gradwarden, a tenth private": 1.0},
    "resnet": {"gradwarden, by layer": 1.3},
}
"""At most so many times the plain step."""


class Places(nn.Module):
    """The words and positions of a GPT with positions looked up for every example, as Opacus needs it."""

    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.words, self.positions = stem.words, stem.positions

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape).contiguous()
        h: Tensor = self.words(x) + self.positions(places)
        return h


@dataclass(frozen=True, slots=True)
class Method:
    """A way to take a step, by name."""

    name: str
    step: Step


def build(work: Workload) -> Stack:
    """Return the network that all methods train."""
    model = work.build()
    if work.shape.family == "gpt":
        model.stem = Places(model.stem)
    return model


def plain(work: Workload) -> Method:
    """Return the ordinary step."""
    model = build(work)
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        work.losses(model, *batch).mean().backward()
        optimizer.step()

    return Method(PLAIN, step)


def governed(work: Workload, clipping: Clipping, *, share: float = 1.0, noise: bool = True) -> Step:
    """Return a step whose first examples are private. share: how many; if not all, within the top quarter.

    noise: whether there is any.
    """
    model = build(work)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    batch_size, bands, members = work.shape.batch, model.bands(), model.members()
    reached = len(bands) if share == 1.0 else max(1, round(len(bands) / 4))
    private = max(1, round(batch_size * share))
    engine = make_engine(model, bands, "fused")
    weights = torch.ones(batch_size, len(bands), dtype=torch.float64)
    weights[:private, reached:] = 0.0
    columns = dict(enumerate(members[:reached]))
    units = [Unit((row,), CLIP) for row in range(private)]
    public = torch.arange(batch_size) >= private
    source = FastNoise()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        sink = UnitSums(units, weights, columns, clip_groups(model, columns, clipping))
        engine.arm(weights, units=sink.members())
        engine.backward(work.losses(model, *batch), float(batch_size), rows=public, sink=sink)
        sink.check()
        if noise:
            add_noise(sink.sums, NOISE * CLIP, source, normaliser=float(batch_size))
        add_to_gradients(sink.sums, None if noise else float(batch_size))
        optimizer.step()

    return step


def opacus_hooks(work: Workload, per_layer: bool) -> Step:
    """Return a step by Opacus with per-example gradients from hooks."""
    model = GradSampleModule(build(work))
    inner = torch.optim.SGD(model.parameters(), RATE)
    size = work.shape.batch
    if per_layer:
        count = len(list(model.parameters()))
        bounds = [CLIP / count**0.5] * count
        optimizer: Any = DPPerLayerOptimizer(
            inner, noise_multiplier=NOISE, max_grad_norm=bounds, expected_batch_size=size
        )
    else:
        optimizer = DPOptimizer(inner, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=size)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        work.losses(model, *batch).mean().backward()
        optimizer.step()

    return step


def opacus_fast(work: Workload, ghost: bool) -> Step:
    """Return a step by Opacus in two backward passes: norms first, then the sum."""
    model = GradSampleModuleFastGradientClipping(build(work), max_grad_norm=CLIP, use_ghost_clipping=ghost)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=work.shape.batch,
    )
    criterion = DPLossFastGradientClipping(model, optimizer, _Losses(work), "mean")

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


class _Losses:
    """A workload's losses as the criterion that Opacus wraps."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self.reduction = "mean"

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return self._work.losses(lambda _: logits, logits, y)


def methods(work: Workload) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Yield the private steps, and how each is made."""
    yield "gradwarden, by layer", lambda: governed(work, "layer")
    yield "gradwarden, by layer, no noise", lambda: governed(work, "layer", noise=False)
    yield "gradwarden, by band", lambda: governed(work, "band")
    yield "gradwarden, flat", lambda: governed(work, "flat")
    yield "gradwarden, a tenth private", lambda: governed(work, "layer", share=0.1)
    yield "Opacus hooks, flat", lambda: opacus_hooks(work, per_layer=False)
    yield "Opacus hooks, by parameter", lambda: opacus_hooks(work, per_layer=True)
    yield "Opacus ghost clipping, flat", lambda: opacus_fast(work, ghost=True)
    yield "Opacus fast gradient clipping, flat", lambda: opacus_fast(work, ghost=False)


def measure(work: Workload, pairs: int, only: str = "") -> list[dict[str, Any]]:
    """Return the figures of every method on a network whose name holds `only`."""
    base = plain(work)
    rows = []
    for name, make in methods(work):
        if only not in name:
            continue
        step = make()
        for _ in range(2):
            base.step(work.draw())
            step(work.draw())
        timed = alternate(work, base.step, {name: step}, {name: pairs})[name]
        rows.append(figure(work, name, timed, step, base.step))
        bar = rows[-1]["bar"]
        print(f"{work.shape.family}: {name}: {rows[-1]['ratio']:.3f}" + (f" (bar {bar})" if bar else ""))
    return rows


def figure(work: Workload, name: str, timed: Pairs, step: Step, base: Step) -> dict[str, Any]:
    """Return what is written of one method."""
    low, middle, high = timed.quartiles()
    memory = {}
    for key, one in (("bytes", step), ("plain_bytes", base)):
        with peak_memory(work.device) as peak:
            one(work.draw())
        memory[key] = peak.bytes
    return {
        "model": work.shape.family,
        "method": name,
        "ratio": middle,
        "quartiles": [low, high],
        "processor_ratio": timed.processor_ratio(),
        "seconds": timed.seconds(),
        "plain_seconds": timed.plain_seconds(),
        "bar": BARS.get(work.shape.family, {}).get(name),
        **memory,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(
        "model", "step", "x plain", "quartiles", "processor time", "memory above the model, MB", "bar"
    )
    for row in rows:
        low, high = row["quartiles"]
        table.add_row(
            row["model"],
            row["method"],
            f"{row['ratio']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['processor_ratio']:.2f}",
            f"{row['bytes'] / 1e6:,.0f} (plain {row['plain_bytes'] / 1e6:,.0f})",
            ""
            if row["bar"] is None
            else f"{row['bar']} {'met' if row['ratio'] <= row['bar'] else 'NOT met'}",
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_step", description=__doc__)
    parser.add_argument("models", nargs="*", default=["gpt", "resnet"], metavar="gpt|resnet")
    parser.add_argument("--pairs", type=int, default=9, help="timed steps of each method (default 9)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="methods with this in their names; nothing is written"
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks, nothing is written")
    parser.add_argument("--as-is", action="store_true", help="with the allocator as it is")
    options = parser.parse_args(arguments)
    if not (options.as_is or options.quick or KEEPING.items() <= os.environ.items()):
        given = sys.argv[1:] if arguments is None else arguments
        again = [sys.executable, "-m", "benchmarks.private_step", *given]
        os.execve(sys.executable, again, {**os.environ, **KEEPING})
    rows = []
    for name in options.models:
        shape = SHAPES[name].tiny() if options.quick else SHAPES[name]
        rows += measure(Workload(shape), 2 if options.quick else options.pairs, options.only)
    show(rows)
    if not options.quick and not options.only:
        load = os.getloadavg()[0]
        figures = {"steps": rows, "load_average": load, "keeps_freed_memory": not options.as_is}
        write_results("private_step", figures, ("torch", "opacus"))


if __name__ == "__main__":
    main()
