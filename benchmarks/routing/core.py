"""The core table: every case by every method, on one network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.routing.arithmetic import limit
from benchmarks.routing.cases import Case, cases
from benchmarks.routing.figures import Examined, Figure, Reference, examine, out_of_memory, place, times
from benchmarks.routing.methods import GOVERNED, GOVERNOR, PLAIN, SPLIT, Bench, Method, methods_of
from benchmarks.routing.timing import Pairs, alternate
from benchmarks.routing.workload import Batch, Shape, Workload

SETTLING = 9
"""Steps of a new governor that are not timed: engines look closely at batches 1, 2, 4, 8, 16, …"""

LOOKS = {GOVERNED: 3, SPLIT: 2}
"""Steps in which engines are examined; other methods are examined in one."""

DRAWS = 40
"""How many batches are tried for one in which gradients can be compared: one in five of a residual net."""

DEAR = 3.0
"""Methods that take this many times the plain step's operations are timed less often."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often to measure. pairs: of the engine and of the governor; peers: of the other methods."""

    pairs: int = 9
    peers: int = 5
    dear: int = 2

    def of(self, name: str, operations: float) -> int:
        if name in (GOVERNED, GOVERNOR):
            return self.pairs
        return self.dear if operations > DEAR else self.peers


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one case, and how the engine says that it has run it."""

    case: Case
    figures: list[Figure]
    explained: list[str]


def measure(
    name: str, work: Workload, effort: Effort, only: Collection[str] = (), methods: Collection[str] = ()
) -> Iterator[Outcome]:
    """Yield the figures of each case. only, methods: the cases and methods to measure; empty: all."""
    bench = Bench(work)
    bench.plain().step(work.draw())  # libraries allocate their workspace in the first step
    base = examine(work, bench.plain(), work.draw(), None)
    for case in cases(work.shape):
        if not only or case.name in only:
            with _candidates(bench, case) as candidates:
                chosen = [method for method in candidates if not methods or method.name in methods]
                if not chosen:
                    continue
                figures = _figures(name, bench, base, case, chosen, effort)
            choices = bench.engine(GOVERNED).explain() if GOVERNED in {m.name for m in chosen} else ()
            yield Outcome(case, figures, [str(choice) for choice in choices])


@contextmanager
def _candidates(bench: Bench, case: Case) -> Iterator[list[Method]]:
    if case.weights is not None:
        yield methods_of(bench, case)
        return
    with bench.governor() as method:
        for _ in range(SETTLING):
            method.step(bench.work.draw())
        yield [method]


def _figures(
    name: str, bench: Bench, base: Examined, case: Case, methods: list[Method], effort: Effort
) -> list[Figure]:
    """Examine and time the methods of a case. base: the plain step, examined."""
    work, plain = bench.work, bench.plain()
    start = Start.of(bench, case)
    looks: dict[str, Look] = {}
    failed: dict[str, str] = {}
    for method in methods:
        with out_of_memory() as failure:
            looks[method.name] = look_at(work, method, start)
        if failure.reason:
            failed[method.name] = failure.reason
            method.trainee.optimizer.zero_grad(set_to_none=True)
    steps = {method.name: method.step for method in methods if method.name in looks}
    often = {key: effort.of(key, looks[key].examined.operations / base.operations) for key in steps}
    timed = alternate(work, plain.step, steps, often) if steps else {}
    least = 1.0 if case.weights is None else limit(work, bench.shared.model, case.weights)
    common = {**place(name, work.shape), "case": case.name, "limit": round(least, 4)}
    figures = [_plain_figure(common, work.shape, base, timed)]
    for method in methods:
        if method.name in failed:
            figures.append(Figure(**common, method=method.name, failed=failed[method.name]))
        else:
            seen = looks[method.name].shares(base)
            seconds = times(work.shape, timed[method.name])
            figures.append(Figure(**common, method=method.name, **seconds, **seen))
    return figures


def _plain_figure(common: dict[str, Any], shape: Shape, base: Examined, timed: Mapping[str, Pairs]) -> Figure:
    """Return the figure of the plain step itself, whose absolute times are those of all pairs."""
    steps = [step for pairs in timed.values() for step in pairs.plain]
    if not steps:
        return Figure(**common, method=PLAIN, failed="nothing was timed beside it")
    seen = Look(base, None).shares(base)
    return Figure(**common, method=PLAIN, **times(shape, Pairs(steps, steps)), **seen)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What all methods of a case start from: a batch, the network's parameters, and the exact gradients.

    exact: None where there are none, or in no batch that was drawn can they be told from wrong ones.
    """

    batch: Batch
    state: dict[str, Tensor]
    exact: Reference | None

    @classmethod
    def of(cls, bench: Bench, case: Case) -> Start:
        model, work = bench.shared.model, bench.work
        state = {key: value.detach().clone() for key, value in model.named_parameters()}
        if case.weights is None:
            return cls(work.draw(), state, None)
        for _ in range(DRAWS):
            batch = work.draw()
            exact = Reference.of(work, model, batch, case)
            if work.amp or exact.smooth(work, model, batch):
                return cls(batch, state, exact)
        return cls(batch, state, None)


@dataclass(frozen=True, slots=True)
class Look:
    """A step of a method in the long run; first_peak: the memory of an engine's first step with a case."""

    examined: Examined
    first_peak: int | None

    def shares(self, base: Examined) -> dict[str, Any]:
        """Return the fields of a figure that compare with the plain step's operations and memory."""
        own = self.examined
        return {
            "operations": round(own.operations / base.operations, 4),
            "peak_bytes": own.peak,
            "first_peak_bytes": self.first_peak,
            "memory_ratio": round(own.peak / base.peak, 4),
            "error": own.error,
        }


def look_at(work: Workload, method: Method, start: Start) -> Look:
    """Examine a step of a method; of an engine one in which it does not look at the model more closely.

    The reference does so in its very first step; the fast engine when it first meets a case, and on every
    batch whose number is a power of two: of two in a row at most one, from the third on.
    """
    looks = []
    for _ in range(LOOKS.get(method.name, 1)):
        method.trainee.restart(start.state)
        looks.append(examine(work, method, start.batch, start.exact))
    if method.name != GOVERNED:
        return Look(looks[-1], None)
    first, *later = looks
    steady = min(later, key=lambda examined: (examined.operations, examined.peak))
    return Look(steady, first.peak)
