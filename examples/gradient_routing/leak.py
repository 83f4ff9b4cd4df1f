"""Measures what a mask does not stop: how far flagged code moves the parameters that it may not reach.

The two-domain job is trained with the flagged code and without it (`measure_leak`), three times over: with
masks alone, where every example passes the quarantine that the code shaped; with the quarantine hidden from
prose that was cleared; and with it hidden from all but flagged code. The policy, and so every mask, is the
same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from examples.gradient_routing.corpus import Corpus, collect
from examples.gradient_routing.governed import (
    Stopwatch,
    default_workers,
    make_room,
    new_ledger,
    program_of,
    run_all,
)
from examples.gradient_routing.gpt import GPTConfig, QuarantineGPT, per_example_loss
from examples.gradient_routing.results import console, write_results
from examples.gradient_routing.two_domains import Settings as Training
from examples.gradient_routing.two_domains import as_tensor, batches, held_out_loss, open_gates
from examples.run_files import RunFiles
from gradwarden.runtime import Governor
from gradwarden.runtime.influence import WatchedRun, measure_leak
from gradwarden.runtime.influence_report import LeakReport, percent

SEEN_BY = ("all", "all but cleared prose", "flagged code alone")
"""Who passes the quarantine. For the last of them all prose is cleared, and no code is missed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """compared: the steps after which the runs are compared."""

    training: Training = field(default_factory=lambda: Training(steps=128))
    compared: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a test: a model of nothing, but the law holds for it as well."""
        small = GPTConfig(width=16, heads=2, units=32, spare_units=8, context=32)
        return cls(Training(steps=4, batch=8, testing=8, model=small), compared=(1, 2, 4))


@dataclass(frozen=True, slots=True)
class Job:
    settings: Settings
    corpus: Corpus
    seen_by: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Leak:
    """What was measured of one setting. report: as JSON data."""

    seen_by: str
    report: dict[str, Any]
    cpu_seconds: float
    measured: LeakReport = field(repr=False)


def run(job: Job) -> Leak:
    """Measure one setting."""
    watch = Stopwatch()
    training = job.settings.training
    alone = job.seen_by == "flagged code alone"
    training = replace(training, cleared=1.0 if alone else training.cleared)
    missed = 0.0 if alone else 0.25
    job = replace(job, settings=replace(job.settings, training=training))
    known = {
        name: about for batch in batches(job.corpus, training, missed, 0) for name, about in batch.examples
    }
    report = measure_leak(
        partial(train, job=job, missed=missed),
        known.items(),
        lambda name, about: about["screening"] == "flagged",
        steps=job.settings.compared,
        folder=job.folder,
    )
    return Leak(job.seen_by, report.to_json(), watch.seconds, report)


def train(run: WatchedRun, job: Job, missed: float) -> None:
    """Train one of the two models that are compared."""
    training = job.settings.training
    torch.manual_seed(0)
    model = QuarantineGPT(training.model)
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, betas=(0.9, 0.99))
    prose, code = as_tensor(job.corpus.prose.testing), as_tensor(job.corpus.code.testing)
    held_out = {
        "prose": lambda model: held_out_loss(model, prose, 0.0),
        "code": lambda model: held_out_loss(model, code, 0.0),
    }
    program = program_of("domains_routed", model)
    ledger = new_ledger(RunFiles(run.folder))
    with Governor(program, model, optimizer, ledger=ledger, dataset=run.examples) as governor:
        run.watch(governor, held_out)
        for batch in batches(job.corpus, training, missed, 0):
            with governor.step([name for name, _ in batch.examples]) as proposal:
                gates = open_gates(proposal, program.band_names)
                if job.seen_by == "all":
                    gates = torch.ones_like(gates)
                proposal.backward(per_example_loss(model, batch.windows, gates))
            run.record(proposal)


def summary(leaks: Sequence[Leak]) -> list[dict[str, str]]:
    """Return a row for each setting and band."""
    rows = []
    for leak in leaks:
        for band in leak.measured.bands:
            row = {"quarantine seen by": leak.seen_by, "band": band.name}
            row["influence"] = "direct" if band.direct else "indirect"
            row |= {f"step {m.step}": percent(m.relative) for m in band.movements}
            rows.append(row)
    return rows


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/gradient_routing/leak"))
@click.option("--quick", is_flag=True, help="Seconds instead of a minute, with a model of nothing.")
@click.option("--workers", type=click.IntRange(1), default=default_workers, help="Runs side by side.")
def main(out: Path, quick: bool, workers: int) -> None:
    settings = Settings.quick() if quick else Settings()
    make_room(out)
    training = settings.training
    corpus = collect(training.model.context + 1, training.steps * training.batch // 2, training.testing)
    jobs = [Job(settings, corpus, who, out / "runs" / who.replace(" ", "-")) for who in SEEN_BY]
    leaks = sorted(run_all(run, jobs, workers), key=lambda leak: SEEN_BY.index(leak.seen_by))
    write_results(out, "What a mask does not stop", settings, leaks, summary(leaks))
    for leak in leaks:
        console.print(f"\nquarantine seen by {leak.seen_by}:", style="bold")
        console.print(*leak.measured.tables())
        leak.measured.save_plot(out / f"{leak.seen_by.replace(' ', '_')}.png")
    console.print(f"Tables, figures and ledgers are in {out}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
