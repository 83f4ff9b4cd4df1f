"""What measuring memorization in the loop costs: a governed step with all signals over one without any.

The same GPT, batches and optimizer, under four governors in turns: without signals; with every known signal
and those of both probes declared, read by a guard and recorded, in a step that does not measure the gradients
of parameters; and in one that does. `--signals` takes some of them instead, such as those that shipped
policies ask for. The probes look at every example of every step, by the logits and the losses that the loop
has. One step in `EVERY` is of the last kind, so a round's ratio is ((EVERY - 1) a + b) / EVERY over the plain
step beside them. The fourth has no signals, and its steps record what every example adds to each band. The
order is reversed from round to round. Medians and quartiles over
rounds are of processor time, which other guests of the machine do not add to as they do to the clock; both
are written.

    python -m benchmarks.memorization_cost [--blocks 6] [--width 384] [--batch 16] [--tokens 128]
    [--rounds 21] [--signals NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.results import write_results
from benchmarks.routing.models import gpt
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import FloatArray
from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.runtime import Governor, Ledger, Measuring, ModelMap, Signer
from gradwarden.runtime.memorization.extraction import Continuation, ReconstructionProbe
from gradwarden.runtime.memorization.spans import SpanProbe, reference_bits

WORDS, EXAMPLES = 256, 256
WARM_UP = 3
EVERY, BAR = 16, 1.05
NEVER = 1 << 62

POLICY = """policy measured version 1 language 1
examples { kind : one of text }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth taught { when kind == text  reach all }
"""
PROBED = ("reconstruction", "surprisal", "span_gap", "recital")
DECLARED = {s.name: s.declaration for s in KNOWN_SIGNALS}
DECLARED |= {name: f"{name} : number -1000..1000 places 3 default 0" for name in PROBED}
SPAN = 8
RECORDING = "gradient { record 1 in 1 steps }\n"


def watching(asked: Sequence[str]) -> str:
    """Return a policy that has some signals, each with a guard."""
    signals = "\n".join(DECLARED[name] for name in asked)
    guards = "\n".join(f"advisory memorization by_{name} {{ when {name} > 0  refuse }}" for name in asked)
    return f"{POLICY}signals {{\n{signals}\n}}\n{guards}"


class Probes:
    """What a loop measures itself of texts, by the logits that it has.

    bits: see `SpanProbe`. asked: the signals that the policy has; a probe of none of them does not look.
    """

    def __init__(self, model: nn.Module, bits: Mapping[str, FloatArray], asked: Sequence[str]) -> None:
        length = len(next(iter(bits.values()))) // 3
        self._asked = frozenset(asked)
        self._recited = ReconstructionProbe(model, Continuation(length, length))
        self._spans = SpanProbe(bits, SPAN)

    def signals(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the signals of some examples."""
        spans = self._spans
        of = dict(zip(PROBED, (self._recited.signal, spans.surprisal, spans.gap, spans.recital), strict=True))
        return {name: tell(names) for name, tell in of.items() if name in self._asked}

    def look(self, step: int, names: Sequence[str], x: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Look at a batch [B, T + 1] by its logits [B, T, V] and its losses [B, T]."""
        if "reconstruction" in self._asked:
            self._recited.look(step, names, x, logits)
        if self._asked & {"span_gap", "recital"}:
            self._spans.look(names, logits, x[:, 1:], losses)


def name_of(row: int) -> str:
    return f"text-{row}"


@dataclass(slots=True)
class Run:
    """One governor, and what the loop measures besides. clock, processor: seconds of each timed step."""

    governor: Governor
    probes: Probes | None = None
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def step(self, names: Sequence[str], x: Tensor) -> None:
        """Make one training step on words [B, T]."""
        governor, probes, step = self.governor, self.probes, self.governor.next_step
        signals = None if probes is None else probes.signals(names)
        examples = [{"id": name, "kind": "text"} for name in names]
        with governor.step(examples, signals=signals) as proposal:
            logits = governor.model(x[:, :-1])
            each = functional.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
            proposal.observe_tokens(logits, x[:, 1:])
            proposal.backward(each.mean(1))
        if probes is not None:
            probes.look(step, names, x, logits, each)

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
    """Run all four in turns; return quartiles of the ratios."""
    torch.manual_seed(0)
    model = gpt(options.width, options.blocks, options.tokens, WORDS).to(options.device)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(WORDS, (EXAMPLES, options.tokens + 1), generator=generator)
    with ExitStack() as stack:
        runs = [
            open_run(POLICY, model, EVERY, stack),
            open_run(watching(options.signals), model, NEVER, stack),
            open_run(watching(options.signals), model, 1, stack),
            open_run(POLICY + RECORDING, model, NEVER, stack),
        ]
        bits = reference_bits(model, text.to(options.device))
        for run in runs[1:3]:
            run.probes = Probes(model, {name_of(row): own for row, own in enumerate(bits)}, options.signals)
        for number in range(WARM_UP + options.rounds):
            rows = torch.randint(EXAMPLES, (options.batch,), generator=generator)
            names, x = [name_of(row) for row in rows.tolist()], text[rows].to(options.device)
            for run in runs if number % 2 else reversed(runs):
                if number < WARM_UP:
                    run.step(names, x)
                else:
                    run.timed(names, x)
    return {
        kind: {
            "all signals": quartiles(ratios(*(getattr(run, kind) for run in runs[:3]))),
            "no parameters measured": quartiles(pairs(runs[1], runs[0], kind)),
            "parameters measured": quartiles(pairs(runs[2], runs[0], kind)),
            "contributions recorded": quartiles(pairs(runs[3], runs[0], kind)),
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
    parser.add_argument("--signals", nargs="+", choices=list(DECLARED), default=list(DECLARED))
    options = parser.parse_args()
    figures = measure(options)
    for kind, found in figures.items():
        print(kind, found)
    low, middle, high = figures["clock" if options.device == "cuda" else "processor"]["all signals"]  # type: ignore[index]
    print(f"{middle:.3f} ({low:.3f}-{high:.3f}) of the plain governed step; at most {BAR}: {middle <= BAR}")
    write_results("memorization_cost", {"options": vars(options), **figures}, ["torch"])


if __name__ == "__main__":
    main()
