"""What is measured of a method in a case, and the one step in which all but time is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.routing.arithmetic import Counter
from benchmarks.routing.cases import Case
from benchmarks.routing.memory import peak_memory
from benchmarks.routing.methods import Method
from benchmarks.routing.models import Stack
from benchmarks.routing.timing import Pairs
from benchmarks.routing.workload import Batch, Shape, Workload

Gradients = list[Tensor | None]

ROUNDING = 2e-5
"""By how much gradients in float32 may differ for the order in which they were added up."""


@dataclass(frozen=True, slots=True)
class Examined:
    """One step, looked at. operations: counted; peak: bytes above network and optimizer.

    error: the largest distance, over bands, of the gradient from the exact one, as a share of the norm of the
    unmasked gradient of the band; None where a method does not show its gradients.
    """

    operations: int
    peak: int
    error: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A method in a case. Ratios are to the plain step of the same network.

    ratio, quartile_1, quartile_3: of the clock; processor_ratio: of processor time. limit: the least share
    of the plain step's operations; operations: the share that was counted. memory_ratio, peak_bytes: of a
    step, above network and optimizer; first_peak_bytes: of the engine's first step with this case, in which
    it looks more closely. units: tokens, or pictures. failed: why there are no figures.
    """

    model: str
    width: int
    depth: int
    batch: int
    tokens: int
    case: str
    method: str
    limit: float | None = None
    pairs: int = 0
    ratio: float | None = None
    quartile_1: float | None = None
    quartile_3: float | None = None
    processor_ratio: float | None = None
    milliseconds: float | None = None
    plain_milliseconds: float | None = None
    units_per_second: float | None = None
    operations: float | None = None
    peak_bytes: int | None = None
    first_peak_bytes: int | None = None
    memory_ratio: float | None = None
    error: float | None = None
    failed: str | None = None

    @property
    def over_limit(self) -> float | None:
        """The time as a multiple of what the limit alone would take."""
        return None if self.ratio is None or self.limit is None else self.ratio / self.limit


def times(shape: Shape, pairs: Pairs) -> dict[str, Any]:
    """Return the fields of a figure that tell the time."""
    low, middle, high = pairs.quartiles()
    return {
        "pairs": len(pairs.own),
        "ratio": round(middle, 4),
        "quartile_1": round(low, 4),
        "quartile_3": round(high, 4),
        "processor_ratio": round(pairs.processor_ratio(), 4),
        "milliseconds": round(1000 * pairs.seconds(), 3),
        "plain_milliseconds": round(1000 * pairs.plain_seconds(), 3),
        "units_per_second": round(shape.units / pairs.seconds(), 1),
    }


def place(model: str, shape: Shape) -> dict[str, Any]:
    """Return the fields of a figure that say what was trained."""
    return {
        "model": model,
        "width": shape.width,
        "depth": shape.depth,
        "batch": shape.batch,
        "tokens": shape.tokens,
    }


def examine(work: Workload, method: Method, batch: Batch, exact: Reference | None) -> Examined:
    """Take one step; count its operations, record its memory and compare its gradients."""
    method.trainee.optimizer.zero_grad(set_to_none=True)
    with peak_memory(work.device) as peak:
        with Counter() as counter:
            method.gradients(batch)
        method.update()
    found = [parameter.grad for parameter in method.trainee.model.parameters()]
    error = exact.error(found) if exact is not None and method.exposed else None
    method.trainee.optimizer.zero_grad(set_to_none=True)
    return Examined(counter.operations, peak.bytes, error)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The exact gradients of a batch, and the unmasked ones; with the places of each band's parameters."""

    exact: list[Tensor]
    unmasked: list[Tensor]
    bands: list[list[int]]

    @classmethod
    def of(cls, work: Workload, model: Stack, batch: Batch, case: Case) -> Reference:
        """Back-propagate every example alone, in plain PyTorch; weigh and add up."""
        assert case.weights is not None
        parameters = list(model.parameters())
        places = {id(parameter): number for number, parameter in enumerate(parameters)}
        bands = [[places[id(parameter)] for parameter in members] for members in model.members()]
        exact, unmasked = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        x, y = batch
        for row, weights in enumerate((case.weights / len(x)).tolist()):
            loss = work.losses(model, x[row : row + 1], y[row : row + 1])[0]
            found = torch.autograd.grad(loss, parameters)
            for band, weight in zip(bands, weights, strict=True):
                for number in band:
                    exact[number].add_(found[number], alpha=weight)
                    unmasked[number].add_(found[number], alpha=1 / len(x))
        return cls(exact, unmasked, bands)

    def smooth(self, work: Workload, model: Stack, batch: Batch) -> bool:
        """Return whether plain autograd agrees with itself: the batch at once, and its examples alone.

        They differ where a pre-activation is within rounding of the kink of a ReLU, and falls on either side
        of it. Then no gradient can be told from a wrong one.
        """
        found = torch.autograd.grad(work.losses(model, *batch).mean(), list(model.parameters()))
        off = [own - alone for own, alone in zip(found, self.unmasked, strict=True)]
        return all(
            float(_norm([off[n] for n in band])) <= ROUNDING * float(_norm([self.unmasked[n] for n in band]))
            for band in self.bands
        )

    def error(self, found: Gradients) -> float:
        """Return the largest error of a band, as a share of the norm of its unmasked gradient."""
        return max(self._error(found, band) for band in self.bands)

    def _error(self, found: Gradients, band: list[int]) -> float:
        off = [self.exact[n] if found[n] is None else found[n] - self.exact[n] for n in band]
        return float(_norm(off) / _norm([self.unmasked[n] for n in band]))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.float().norm() for tensor in tensors]).norm()


class Failure:
    """Why a method could not be measured; empty where it could."""

    def __init__(self) -> None:
        self.reason = ""


@contextmanager
def out_of_memory() -> Iterator[Failure]:
    """Note, rather than raise, that a device has not enough memory for what is done inside."""
    failure = Failure()
    try:
        yield failure
    except torch.OutOfMemoryError:
        failure.reason = "out of memory"
        torch.cuda.empty_cache()
