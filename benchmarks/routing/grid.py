"""The grid: the engine's step over the plain one, by network, batch and depth."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from benchmarks.routing.cases import cases
from benchmarks.routing.core import SETTLING
from benchmarks.routing.figures import Figure, place, times
from benchmarks.routing.methods import GOVERNED, Bench
from benchmarks.routing.timing import alternate, timed
from benchmarks.routing.workload import Family, Shape, Workload

CASES = ("fractional", "half_rows", "random_mask", "bottom_half")
BATCHES = (8, 24, 64)
DEPTHS = (4, 12, 24)

WIDTHS: dict[Family, int] = {"gpt": 384, "llama": 384, "resnet": 64}
TOKENS: dict[Family, int] = {"gpt": 128, "llama": 128, "resnet": 32}
"""The usual networks: as wide as the decoders of the core table, and as residual networks begin."""

NARROW_WIDTHS: dict[Family, dict[int, int]] = {
    "gpt": {4: 320, 12: 192, 24: 192},
    "llama": {4: 320, 12: 192, 24: 192},
    "resnet": {4: 32, 12: 24, 24: 24},
}
NARROW_TOKENS: dict[Family, int] = {"gpt": 64, "llama": 64, "resnet": 32}
"""The narrow ones, and shorter examples: a step is so short that what a call costs shows."""


UNTIMED = 8
"""Pairs that are not timed, before the first case; the engine looks closely at batch 16 among them."""

SECONDS, MOST_PAIRS = 2.0, 31
"""Short steps are timed more often than asked for: until plain ones take so long, or are so many."""


def shapes(tiny: bool = False, narrow: bool = False) -> list[Shape]:
    """Return the networks and batches of the grid; tiny: one small network of each family."""
    tokens = NARROW_TOKENS if narrow else TOKENS
    found = [
        Shape(
            family,
            NARROW_WIDTHS[family][depth] if narrow else width,
            depth,
            batch,
            tokens[family],
            10 if family == "resnet" else 256,
        )
        for family, width in WIDTHS.items()
        for depth in DEPTHS
        for batch in BATCHES
    ]
    return list(dict.fromkeys(shape.tiny() for shape in found)) if tiny else found


def cell(shape: Shape) -> str:
    """Return what a network and batch of the grid are called: the family, blocks and examples."""
    return f"{shape.family}:{shape.depth}x{shape.batch}"


def measure(
    shape: Shape,
    pairs: int,
    device: str = "cpu",
    amp: bool = False,
    only: Collection[str] = (),
    seconds: float = SECONDS,
) -> Iterator[Figure]:
    """Yield the figures of one network and batch, case by case.

    only: other cases than those of the grid. seconds: of plain steps, however short each may be.
    """
    work = Workload(shape, device, amp)
    bench = Bench(work)
    plain = bench.plain()
    chosen = [case for case in cases(shape) if case.name in (only or CASES) and case.weights is not None]
    for number, case in enumerate(chosen):
        method = bench.engine_method(GOVERNED, case)
        # The engine looks closely at its first batches, and at the first with a new kind of graph.
        for _ in range(SETTLING if number == 0 else 2):
            method.step(work.draw())
        if number == 0:  # and a process asks for memory until both steps have had what they need
            alternate(work, plain.step, {GOVERNED: method.step}, {GOVERNED: UNTIMED})
        once = timed(work, plain.step).clock
        often = max(pairs, min(MOST_PAIRS, int(seconds / once)))
        found = alternate(work, plain.step, {GOVERNED: method.step}, {GOVERNED: often})[GOVERNED]
        yield Figure(
            **place(shape.family, shape),
            case=case.name,
            method=GOVERNED,
            **times(shape, found),
        )
