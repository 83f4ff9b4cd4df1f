"""What measuring memorization in the loop costs: a governed step with all signals over one without any.

The same GPT, batches and optimizer, under three governors in turns: without signals; with every known signal
declared, read by a guard and recorded, in a step that does not measure depth; and in one that does. One step
in `EVERY` is of the last kind, so a round's ratio is ((EVERY - 1) a + b) / EVERY over the plain step beside
them. The order is reversed from round to round. Medians and quartiles over rounds are of processor time,
which other guests of the machine do not add to as they do to the clock; both are written.

    python -m benchmarks.memorization_cost [--blocks 6] [--width 384] [--batch 16] [--tokens 128]
    [--rounds 21]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.results import write_results
from benchmarks.routing.models import gpt
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.runtime import Governor, Ledger, Measuring, ModelMap, Signer

WORDS, EXAMPLES = 256, 512
WARM_UP = 3
EVERY, BAR = 16, 1.05
NEVER = 1 << 62

POLICY = """policy measured version 1 language 1
examples { kind : one of text }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth taught { when kind == text  reach all }
"""
SIGNALS = "signals {\n" + "\n".join(signal.declaration for signal in KNOWN_SIGNALS) + "\n}\n"
GUARDS = "\n".join(
    f"advisory memorization by_{s.name} {{ when {s.name} > {s.default}  refuse }}" for s in KNOWN_SIGNALS
)


@dataclass(slots=True)
class Run:
    """One governor. clock, processor: seconds of each timed step."""

    governor: Governor
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def step(self, names: Sequence[str], x: Tensor) -> None:
        """Make one training step on words [B, T]."""
        governor = self.governor
        with governor.step([{"id": name, "kind": "text"} for name in names]) as proposal:
            logits = governor.model(x[:, :-1])
            each = functional.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
            proposal.observe_tokens(logits, x[:, 1:])
            proposal.backward(each.mean(1))

    def timed(self, names: Sequence[str], x: Tensor) -> None:
        """Make a step, and note how long it took."""
        clock, processor = time.perf_counter(), time.process_time()
        self.step(names, x)
        synchronize(x)
        self.clock.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


def synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def open_run(text: str, model: nn.Module, every: int, stack: ExitStack) -> Run:
    """Open a governor on a copy of the model."""
    model = copy.deepcopy(model)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ledger = Ledger.open(folder / "run.ledger", signer=Signer.generate("benchmark"))
    program = compile_policy(parse_policy(text), ModelMap.from_module(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Run(
        stack.enter_context(
            Governor(program, model, optimizer, ledger=ledger, measuring=Measuring(every=every))
        )
    )


def ratios(plain: Sequence[float], light: Sequence[float], full: Sequence[float]) -> list[float]:
    """Return each round's cost over the plain step."""
    return [((EVERY - 1) * a + b) / EVERY / base for base, a, b in zip(plain, light, full, strict=True)]


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run all three in turns; return quartiles of the ratios."""
    torch.manual_seed(0)
    model = gpt(options.width, options.blocks, options.tokens, WORDS).to(options.device)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(WORDS, (EXAMPLES, options.tokens + 1), generator=generator)
    with ExitStack() as stack:
        runs = [
            open_run(POLICY, model, EVERY, stack),
            open_run(POLICY + SIGNALS + GUARDS, model, NEVER, stack),
            open_run(POLICY + SIGNALS + GUARDS, model, 1, stack),
        ]
        for number in range(WARM_UP + options.rounds):
            rows = torch.randint(EXAMPLES, (options.batch,), generator=generator)
            names, x = [f"text-{row}" for row in rows.tolist()], text[rows].to(options.device)
            for run in runs if number % 2 else reversed(runs):
                if number < WARM_UP:
                    run.step(names, x)
                else:
                    run.timed(names, x)
    return {
        kind: {
            "all signals": quartiles(ratios(*(getattr(run, kind) for run in runs))),
            "no depth measured": quartiles(pairs(runs[1], runs[0], kind)),
            "depth measured": quartiles(pairs(runs[2], runs[0], kind)),
            "plain seconds": statistics.median(getattr(runs[0], kind)),
        }
        for kind in ("processor", "clock")
    }


def pairs(own: Run, plain: Run, kind: str) -> list[float]:
    """Return the ratio of each round's steps."""
    return [a / b for a, b in zip(getattr(own, kind), getattr(plain, kind), strict=True)]


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4, method="inclusive")]


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("blocks", 6), ("width", 384), ("batch", 16), ("tokens", 128), ("rounds", 21)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    figures = measure(options)
    for kind, found in figures.items():
        print(kind, found)
    low, middle, high = figures["clock" if options.device == "cuda" else "processor"]["all signals"]  # type: ignore[index]
    print(f"{middle:.3f} ({low:.3f}-{high:.3f}) of the plain governed step; at most {BAR}: {middle <= BAR}")
    write_results("memorization_cost", {"options": vars(options), **figures}, ["torch"])


if __name__ == "__main__":
    main()
