"""Times of steps as ratios to the plain step beside them.

Load, heat and other guests of a machine slow whatever runs at the time, so a method's step is compared with a
plain step just before or just after it: `a plain b`, and `b plain a` in the next round. The median of the
pairs' ratios is reported, with quartiles; the processor time of all threads is compared too, to tell a slow
method from a machine that was taken away.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.routing.workload import Batch, Workload

Step: TypeAlias = Callable[[Batch], None]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one step, by the clock and of processor time."""

    clock: float
    processor: float


@dataclass(slots=True)
class Pairs:
    """Steps of a method and the plain steps beside them."""

    own: list[Timed]
    plain: list[Timed]

    @property
    def ratios(self) -> list[float]:
        return [one.clock / other.clock for one, other in zip(self.own, self.plain, strict=True)]

    def quartiles(self) -> tuple[float, float, float]:
        """Return the lower quartile, the median and the upper quartile of the ratios."""
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, middle, high

    def processor_ratio(self) -> float:
        """Return the median ratio of processor time."""
        pairs = zip(self.own, self.plain, strict=True)
        return statistics.median(one.processor / other.processor for one, other in pairs)

    def seconds(self) -> float:
        """Return the median seconds of the method's step."""
        return statistics.median(one.clock for one in self.own)

    def plain_seconds(self) -> float:
        """Return the median seconds of the plain step."""
        return statistics.median(one.clock for one in self.plain)


def alternate(
    work: Workload, plain: Step, steps: Mapping[str, Step], pairs: Mapping[str, int]
) -> dict[str, Pairs]:
    """Time every method as often as `pairs` says, each time beside a plain step; two methods share one."""
    found = {name: Pairs([], []) for name in steps}
    for number in range(max(pairs.values())):
        due = [name for name in steps if pairs[name] > number]
        for start in range(0, len(due), 2):
            first, *second = due[start : start + 2]
            turn: list[str | None] = [first, None, *second]
            if number % 2:
                turn.reverse()
            times = {name: timed(work, plain if name is None else steps[name]) for name in turn}
            for name in (first, *second):
                found[name].own.append(times[name])
                found[name].plain.append(times[None])
    return found


def timed(work: Workload, step: Step) -> Timed:
    """Take one step on a new batch and return its times."""
    batch = work.draw()
    work.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    step(batch)
    work.synchronize()
    return Timed(time.perf_counter() - clock, time.process_time() - processor)
