"""Trains on two domains and removes one of them again, though screening missed some of it.

After Expand-Route-Ablate (Cloud et al. 2024, arXiv 2410.04332, section 4.2) and selective gradient masking
(Shilov et al. 2025, arXiv 2512.05648). English prose is to be kept, Python code is to be removed. A GPT has
spare capacity in quarantine. Code that screening flagged is learned there alone; prose that was cleared is
learned outside and does not see the quarantine; what nobody looked at, prose and missed code alike, sees
and shapes both. Then the quarantine is removed. Compared with leaving flagged code out, and with no
routing, where screening misses 0, 10, 25 and 50% of the code. The policy files say what is routed;
everything else is the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from examples.gradient_routing.corpus import Bytes, Corpus, collect
from examples.gradient_routing.domains_figure import draw
from examples.gradient_routing.governed import (
    Stopwatch,
    default_workers,
    governed,
    make_room,
    run_all,
    verified_steps,
)
from examples.gradient_routing.gpt import GPTConfig, QuarantineGPT, per_example_loss
from examples.gradient_routing.results import console, spread, write_results
from examples.run_files import RunFiles
from gradwarden.runtime.steps.proposal import Proposal

METHODS = ("unrouted", "filtered", "routed", "routed, seen by all")
"""The first word is a policy, `domains_<word>.policy`. `seen by all`: every example passes the quarantine."""


@dataclass(frozen=True, slots=True)
class Settings:
    """missed: shares of the code that screening did not flag. cleared: share of the prose that it cleared.

    batch: examples per step, half of them prose. looks: how often the held-out losses are measured.
    """

    missed: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)
    cleared: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 240
    batch: int = 32
    testing: int = 128
    looks: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 20
    model: GPTConfig = field(default_factory=GPTConfig)

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a test: it shows that everything works, and no result."""
        small = GPTConfig(width=16, heads=2, units=32, spare_units=8, context=32)
        return cls((0.0, 0.5), seeds=(0,), steps=6, batch=8, testing=8, looks=2, model=small)


@dataclass(frozen=True, slots=True)
class Job:
    settings: Settings
    corpus: Corpus
    method: str
    missed: float
    seed: int
    files: RunFiles


@dataclass(frozen=True, slots=True)
class DomainRun:
    """The result of one run: held-out losses in nats per byte, over training.

    prose, code: after removing the quarantine, at each of `at` steps. prose_before, code_before: with it, at
    the end.
    """

    method: str
    missed: float
    seed: int
    at: list[int]
    prose: list[float]
    code: list[float]
    prose_before: float
    code_before: float
    steps: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's examples (ids and what screening said), in the order of their windows [B, T + 1]."""

    examples: list[tuple[str, dict[str, Any]]]
    windows: Tensor


def run(job: Job) -> DomainRun:
    """Train one model under one policy, looking now and then at what it would be without its quarantine."""
    watch, settings = Stopwatch(), job.settings
    torch.manual_seed(job.seed)
    model = QuarantineGPT(settings.model)
    prose, code = as_tensor(job.corpus.prose.testing), as_tensor(job.corpus.code.testing)
    at, released = list[int](), list[tuple[float, float]]()
    for step in train(model, job):
        if step % math.ceil(settings.steps / settings.looks) == 0 or step == settings.steps:
            at.append(step)
            released.append((held_out_loss(model, prose, 0.0), held_out_loss(model, code, 0.0)))
    return DomainRun(
        job.method,
        job.missed,
        job.seed,
        at,
        prose=[loss for loss, _ in released],
        code=[loss for _, loss in released],
        prose_before=held_out_loss(model, prose, 1.0),
        code_before=held_out_loss(model, code, 1.0),
        steps=verified_steps(job.files),
        cpu_seconds=watch.seconds,
    )


def train(model: QuarantineGPT, job: Job) -> Iterator[int]:
    """Train under the job's policy; yield the number of steps after each."""
    settings = job.settings
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    policy = f"domains_{job.method.partition(',')[0]}"
    with governed(policy, model, optimizer, job.files) as governor:
        for step, batch in enumerate(batches(job.corpus, settings, job.missed, job.seed)):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings)
            with governor.step(batch.examples) as proposal:
                gates = open_gates(proposal, governor.program.band_names)
                if job.method.endswith("seen by all"):
                    gates = torch.ones_like(gates)
                proposal.backward(per_example_loss(model, batch.windows, gates))
            yield step + 1


def open_gates(proposal: Proposal, bands: Sequence[str]) -> Tensor:
    """Let those examples see the quarantine that the policy lets shape it. Returns [B], 0.0 or 1.0."""
    return torch.from_numpy(proposal.weights[:, bands.index("quarantine")] > 0).float()


def batches(corpus: Corpus, settings: Settings, missed: float, seed: int) -> Iterator[Batch]:
    """Yield the steps' batches. What screening missed of more is a part of what it missed of less.

    A batch is sorted by what screening said, so that masks cut it in slices.
    """
    generator = torch.Generator().manual_seed(seed)
    prose, code = corpus.prose.training, corpus.code.training
    orders = [torch.randperm(len(windows), generator=generator) for windows in (prose, code)]
    cleared = torch.rand(len(prose), generator=generator) < settings.cleared
    flagged = torch.rand(len(code), generator=generator) >= missed
    half = settings.batch // 2
    for step in range(settings.steps):
        chosen = [order[(step * half + torch.arange(half)) % len(order)] for order in orders]
        rows = [
            *(("prose", row, "cleared" if cleared[row] else "unscreened") for row in chosen[0].tolist()),
            *(("code", row, "flagged" if flagged[row] else "unscreened") for row in chosen[1].tolist()),
        ]
        rows.sort(key=lambda row: ("cleared", "unscreened", "flagged").index(row[2]))
        windows = np.stack([(prose if domain == "prose" else code)[row] for domain, row, _ in rows])
        examples = [(f"{domain}-{row}", {"screening": said}) for domain, row, said in rows]
        yield Batch(examples, as_tensor(windows))


def as_tensor(windows: Bytes) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64))


def schedule(step: int, settings: Settings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / settings.steps)))


@torch.no_grad()
def held_out_loss(model: QuarantineGPT, windows: Tensor, gate: float) -> float:
    """Return the mean loss of windows in nats per byte; gate 0.0: of the model without its quarantine."""
    return round(per_example_loss(model, windows, torch.full((len(windows),), gate)).mean().item(), 5)


def summary(runs: Sequence[DomainRun]) -> list[dict[str, str]]:
    """Return a row for each method and share: the losses at the end, as mean and spread over the seeds."""
    rows = []
    for method, missed in dict.fromkeys((run.method, run.missed) for run in runs):
        own = [run for run in runs if (run.method, run.missed) == (method, missed)]
        rows.append(
            {
                "method": method,
                "code missed": "any" if method == "unrouted" else f"{missed:.0%}",
                "prose (keep)": spread([run.prose[-1] for run in own], 2),
                "code (forget)": spread([run.code[-1] for run in own], 2),
                "prose before removal": f"{mean(run.prose_before for run in own):.2f}",
                "code before removal": f"{mean(run.code_before for run in own):.2f}",
            }
        )
    return rows


def plan(settings: Settings, corpus: Corpus, out: Path) -> list[Job]:
    """Return every run. Without routing, what screening says makes no difference."""
    shares = dict.fromkeys(METHODS, settings.missed)
    shares["unrouted"] = settings.missed[:1]
    shares["routed, seen by all"] = settings.missed[len(settings.missed) // 2 :][:1]
    return [
        Job(settings, corpus, method, share, seed, RunFiles(out / "runs" / folder_name(method, share, seed)))
        for seed in settings.seeds
        for method in METHODS
        for share in shares[method]
    ]


def folder_name(method: str, missed: float, seed: int) -> str:
    return f"{method.replace(', ', '-').replace(' ', '-')}-{missed:.0%}-{seed}".replace("%", "")


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/gradient_routing/two_domains"))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes; shows no result.")
@click.option("--workers", type=click.IntRange(1), default=default_workers, help="Runs side by side.")
def main(out: Path, quick: bool, workers: int) -> None:
    settings = Settings.quick() if quick else Settings()
    make_room(out)
    needed = settings.steps * settings.batch // 2
    corpus = collect(settings.model.context + 1, needed, settings.testing)
    runs = []
    for finished in run_all(run, plan(settings, corpus, out), workers):
        runs.append(finished)
        console.print(
            f"{finished.method}, {finished.missed:.0%} missed (seed {finished.seed}): "
            f"{finished.steps} steps, ledger verified",
            highlight=False,
        )
    runs.sort(key=lambda one: (METHODS.index(one.method), one.missed, one.seed))
    write_results(out, "Two domains", settings, runs, summary(runs))
    draw(runs, out / "two_domains.png")
    console.print(f"Tables, figure and ledgers are in {out}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
