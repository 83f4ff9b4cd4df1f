"""Training time of the code-licences job with and without batches by depth, and what the model learned.

The same corpus, model, policy, seed and number of steps, trained four times in turns: with every step's batch
in one forward pass (the peer); with each step cut by `Proposal.depth_batches`, which leaves out what may
shape nothing and changes nothing that is learned; with steps formed by `DepthSampler`; and with both. Times
are of the training loop alone, as ratios to the first; held-out losses are in nats per byte. Turns alternate
step by step, so that a busy machine slows all of them alike.

Batches formed in another order teach something else in as many steps. So held-out losses are taken along the
way as well, and times are compared once more at equal loss: how long each run took to the greatest of the
final losses, which all of them have reached, between marks by straight lines.

    python -m benchmarks.depth_batches [--steps 200] [--batch 16] [--layers 4] [--threads 2]

About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.results import write_results
from examples.code_licences.corpus import collect
from examples.code_licences.model import ByteGPT, GPTConfig, per_example_loss
from examples.code_licences.settings import Settings
from examples.code_licences.train import held_out_losses
from examples.code_licences.windows import Batch, Windows
from gradwarden.policy import Program, compile_policy, load_policy
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.batching.depth_batches import DepthSampler, reach_groups

WARM_UP = 8
"""Steps that are not timed: the engine probes the model in the first ones."""

MARKS = 8
"""How often held-out losses are taken along the way."""


@dataclass(slots=True)
class Run:
    """One way to train. cut: micro-batches by depth. grouped: steps by depth.

    clock, processor: seconds of each step. marks: steps timed so far, and the held-out loss then.
    """

    name: str
    cut: bool
    grouped: bool
    model: nn.Module
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    marks: list[tuple[int, float]] = field(default_factory=list)

    def time_to(self, loss: float, times: Sequence[float]) -> float:
        """Return the seconds until the held-out loss came down to this. times: of each step.

        It is 0 where the loss was there before the first step that was timed.
        """
        for (before, high), (after, low) in pairwise(self.marks):
            if low <= loss:
                share = min(1.0, (high - loss) / (high - low)) if high > low else 0.0
                return sum(times[:before]) + max(0.0, share) * sum(times[before:after])
        return sum(times)


def open_run(run: Run, program: Program, windows: Windows, settings: Settings, stack: ExitStack) -> Governor:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ledger = Ledger.open(folder / "run.ledger", signer=Signer.generate("benchmark"))
    optimizer = torch.optim.AdamW(run.model.parameters(), settings.learning_rate, weight_decay=0.1)
    return stack.enter_context(
        Governor(program, run.model, optimizer, ledger=ledger, dataset=windows.dataset())
    )


def grouped(governor: Governor, windows: Windows, settings: Settings) -> Iterator[Batch]:
    """Yield batches of files that may reach equally deep, refused files in batches of their own."""
    rows = windows.training
    names = [windows.dataset()[row][0] for row in rows]
    groups = reach_groups(governor.reach(names))
    sampler = DepthSampler(groups, batch_size=settings.batch, seed=settings.seed, all_rows=True)
    while True:
        offsets = np.random.default_rng((settings.seed, sampler.epoch)).random(len(rows))
        epoch = sampler.epoch
        for batch in sampler:
            yield windows.batch_of(epoch, [rows[place] for place in batch], offsets[batch].tolist())


def take_step(run: Run, governor: Governor, batch: Batch, size: int, timed: bool) -> None:
    governor.epoch = batch.epoch
    clock, processor = time.perf_counter(), time.process_time()
    with governor.step(batch.examples) as proposal:
        for part in proposal.depth_batches(size) if run.cut else proposal.micro_batches(size):
            losses = per_example_loss(run.model(batch.inputs[part]), batch.targets[part])
            proposal.backward(losses)
    if timed:
        run.clock.append(time.perf_counter() - clock)
        run.processor.append(time.process_time() - processor)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=GPTConfig().layers)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = options_of()
    torch.set_num_threads(options.threads)
    settings = Settings(batch=options.batch, model=GPTConfig(layers=options.layers))
    windows = Windows(collect(settings.cap, settings.seed), settings.model.context, settings.batch)
    torch.manual_seed(settings.seed)
    model = ByteGPT(settings.model)
    program = compile_policy(load_policy(settings.policy), ModelMap.from_module(model))
    runs = [
        Run("whole", False, False, model),
        Run("cut", True, False, deepcopy(model)),
        Run("grouped", False, True, deepcopy(model)),
        Run("grouped_cut", True, True, deepcopy(model)),
    ]
    with ExitStack() as stack:
        governors = [open_run(run, program, windows, settings, stack) for run in runs]
        streams = [
            grouped(governor, windows, settings) if run.grouped else windows.forever()
            for run, governor in zip(runs, governors, strict=True)
        ]
        due = {round(options.steps * mark / MARKS) for mark in range(MARKS + 1)}
        for step in range(-WARM_UP, options.steps):
            for run, governor, stream in zip(runs, governors, streams, strict=True):
                if step in due:
                    run.marks.append((step, held_out_losses(run.model, windows)["all"]))
                take_step(run, governor, next(stream), settings.batch, step >= 0)
        for run in runs:
            run.marks.append((options.steps, held_out_losses(run.model, windows)["all"]))
    report(options, runs)


def report(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    peer = runs[0]
    common = max(run.marks[-1][1] for run in runs)
    figures: dict[str, dict[str, float | None]] = {}
    for run in runs:
        figures[run.name] = {
            "clock_ratio": round(sum(run.clock) / sum(peer.clock), 4),
            "processor_ratio": round(sum(run.processor) / sum(peer.processor), 4),
            "clock_seconds": round(sum(run.clock), 2),
            "held_out_loss": round(run.marks[-1][1], 4),
            "clock_ratio_at_equal_loss": _ratio(
                run.time_to(common, run.clock), peer.time_to(common, peer.clock)
            ),
            "processor_ratio_at_equal_loss": _ratio(
                run.time_to(common, run.processor), peer.time_to(common, peer.processor)
            ),
        }
        print(f"{run.name:12} " + "  ".join(f"{name} {value}" for name, value in figures[run.name].items()))
    settings = {name: getattr(options, name) for name in ("steps", "batch", "layers", "threads")}
    content = {**settings, "equal_loss": round(common, 4), "runs": figures}
    write_results("depth_batches", content, ["torch"])


def _ratio(own: float, peer: float) -> float | None:
    return round(own / peer, 4) if peer else None


if __name__ == "__main__":
    main()
