"""A compiled model under governance: where its graph breaks, what that costs, and what compiling gains.

A GPT is trained eagerly and compiled (`torch.compile`, inductor), each without an engine and with one, under
weights of several kinds. Steps alternate with plain eager ones, so that a busy machine slows both alike.
Times are ratios, the median of pairs. Graphs, their operations and graph breaks are counted by TorchDynamo.

    python -m benchmarks.compiled [--blocks 4] [--width 128] [--batch 8] [--tokens 64] [--rounds 4]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch.nn import functional

from benchmarks.results import write_results
from benchmarks.routing.models import Stack, gpt
from gradwarden.runtime.masks import make_engine
from gradwarden.runtime.masks.engine import Engine

WORDS = 256
WARM_UP = 4
"""Steps that are not timed: the engine tries the model in them, and graphs are made."""


@dataclass(slots=True)
class Way:
    """One way to run a step. weights: [B, bands], None without an engine."""

    call: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    engine: Engine | None
    weights: Tensor | None

    def timed(self, x: Tensor) -> float:
        """Make a step; return its seconds."""
        begin = time.perf_counter()
        self.step(x)
        return time.perf_counter() - begin

    def step(self, x: Tensor) -> None:
        """Make one training step on words [B, T]."""
        if self.engine is not None and self.weights is not None:
            self.engine.arm(self.weights)
        each = functional.cross_entropy(self.call(x)[:, :-1].transpose(1, 2), x[:, 1:], reduction="none")
        losses = each.mean(1)
        if self.engine is None:
            losses.mean().backward()
        else:
            self.engine.backward(losses, float(len(x)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def counted(run: Callable[[], object]) -> dict[str, int]:
    """Return what TorchDynamo counts while graphs are made."""
    counters.clear()
    run()
    breaks = counters["graph_break"]
    stats: Counter[str] = counters["stats"]
    return {
        "graphs": stats["unique_graphs"],
        "operations": stats["calls_captured"],
        "breaks": sum(breaks.values()),
        "kinds of breaks": len(breaks),
    }


def way(model: Stack, kind: str, compiled: bool, batch: int) -> Way:
    model = copy.deepcopy(model)
    weights = None if kind == "none" else weights_of(kind, batch, len(model.bands()))
    engine = None if weights is None else make_engine(model, model.bands(), "fused")
    call: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    return Way(call, torch.optim.SGD(model.parameters(), lr=1e-4), engine, weights)


def weights_of(kind: str, batch: int, bands: int) -> Tensor:
    """`full`: all 1. `fractional`: all different. `half`: half the rows reach the upper half alone."""
    weights = torch.ones(batch, bands, dtype=torch.float64)
    if kind == "fractional":
        weights = 0.25 + 0.75 * torch.rand(weights.shape, dtype=torch.float64)
    if kind == "half":
        weights[: batch // 2, bands // 2 :] = 0.0
    return weights


KINDS = ("none", "full", "fractional", "half")


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return, for each way, its time over the plain eager step, and its graphs."""
    torch.manual_seed(0)
    model = gpt(arguments.width, arguments.blocks, arguments.tokens, WORDS)
    batches = [torch.randint(WORDS, (arguments.batch, arguments.tokens)) for _ in range(WARM_UP)]
    figures = {}
    for kind in KINDS:
        for compiled in (False, True):
            torch.compiler.reset()  # else graphs of one way would count against the limit of another
            plain = way(model, "none", False, arguments.batch)
            other = way(model, kind, compiled, arguments.batch)
            graphs = counted(lambda steps=(plain, other): [one.step(x) for x in batches for one in steps])
            ratios = [
                b / a for a, b in ((plain.timed(x), other.timed(x)) for x in batches * arguments.rounds)
            ]
            name = f"{kind}, {'compiled' if compiled else 'eager'}"
            figures[name] = {"ratio": round(statistics.median(ratios), 3), **graphs}
            print(f"{name:22}", "  ".join(f"{key} {value}" for key, value in figures[name].items()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with functorch_config.patch(donated_buffer=False):
        figures = measure(arguments)
    write_results("compiled", {"shape": vars(arguments), "steps": figures}, ["torch"])


if __name__ == "__main__":
    main()
