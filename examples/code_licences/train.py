"""Trains a byte-level GPT under a policy, records every step, verifies the record, and reports from it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from examples.code_licences.corpus import Corpus, collect, write_manifest
from examples.code_licences.display import TrainingDisplay
from examples.code_licences.evidence import Evidence, gather
from examples.code_licences.model import PADDING, ByteGPT, GPTConfig, per_example_loss
from examples.code_licences.report import corpus_table, influence_table, restraint_table, sentences
from examples.code_licences.settings import POLICY, Settings
from examples.code_licences.tamper import demonstrate
from examples.code_licences.verification import command_line, verify, write_report
from examples.code_licences.windows import CorpusTooSmallError, Windows
from examples.run_files import RunFiles
from gradwarden.policy import Program, compile_policy, load_policy
from gradwarden.policy.errors import GradwardenError
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.ledger.reader import read_entries

Engine = Literal["auto", "fused", "split"]

WIDTH = 120
"""Columns of output that goes to a file."""


def run(settings: Settings, folder: Path, console: Console, minutes: float = math.inf) -> bool:
    """Collect, train, verify and report; return whether the ledger holds and the tampering was found.

    minutes: training stops after this time even where steps are left.
    """
    files = RunFiles(folder)
    program_source = load_policy(settings.policy)  # before anything slow: a faulty policy shows at once
    if moved := files.make_room():
        console.print(f"The earlier run is now in {moved}.")
    corpus = gather_corpus(settings, console)
    write_manifest(corpus.files, folder)
    console.print(corpus_table(corpus.files))

    torch.manual_seed(settings.seed)
    model = ByteGPT(settings.model)
    program = compile_policy(program_source, ModelMap.from_module(model))
    files.program.write_text(program.to_json(), "utf-8")
    windows = Windows(corpus, settings.model.context, settings.batch, settings.seed)
    before = held_out_losses(model, windows)
    seconds = train(settings, model, program, windows, files, console, minutes)
    after = held_out_losses(model, windows)

    console.print(f"\n$ {command_line(files)}", style="dim", highlight=False, soft_wrap=True)
    holds, printed = verify(files)
    console.print(printed, markup=False, highlight=False, soft_wrap=True)
    evidence = learned_from(files, corpus)
    report(files, settings, program, corpus, evidence, before, after, seconds, console)
    return holds and demonstrate(files, console)


def gather_corpus(settings: Settings, console: Console) -> Corpus:
    """Collect the corpus behind a progress bar."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading the installed packages", total=None)
        return collect(
            settings.cap,
            settings.seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def train(
    settings: Settings,
    model: nn.Module,
    program: Program,
    windows: Windows,
    files: RunFiles,
    console: Console,
    minutes: float,
) -> float:
    """Train under the program, with every step in the ledger; return the seconds it took."""
    signer = Signer.generate(files.key.stem)
    signer.save(files.key)
    signer.public.save(files.public_key)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    ledger = Ledger.open(files.ledger, signer=signer)
    began = time.monotonic()
    with (
        Governor(
            program,
            model,
            optimizer,
            ledger=ledger,
            engine=settings.engine,
            secret=files.secret,
            dataset=windows.dataset(),
        ) as governor,
        TrainingDisplay(console, settings.steps) as display,
    ):
        for step, batch in zip(range(settings.steps), windows.forever(), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings)
            governor.epoch = batch.epoch
            with governor.step(batch.examples) as proposal:
                losses = per_example_loss(model(batch.inputs), batch.targets)
                proposal.backward(losses)
            verdicts = Counter[str](decision.verdict for decision in proposal.decisions)
            norms = {band: norm or 0.0 for band, norm in proposal.norms.items()}
            display.update(step, proposal.mean_loss, verdicts, norms)
            if time.monotonic() - began > 60 * minutes:
                console.print(f"Stopped after {step + 1} steps: {minutes:g} minutes are over.")
                break
        governor.checkpoint(files.weights)
    return time.monotonic() - began


def schedule(step: int, settings: Settings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    way = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * way))


@torch.no_grad()
def held_out_losses(model: nn.Module, windows: Windows) -> dict[str, float]:
    """Return the mean loss of held-out windows in nats per byte, by licence and for `all`."""
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for batch in windows.held_out():
        losses = per_example_loss(model(batch.inputs), batch.targets)
        lengths = (batch.targets != PADDING).sum(dim=1)
        for record, loss, length in zip(batch.examples, losses.tolist(), lengths.tolist(), strict=True):
            for name in (record["license"], "all"):
                total[name] += loss * length
                count[name] += length
    return {name: total[name] / count[name] for name in total}


def learned_from(files: RunFiles, corpus: Corpus) -> Evidence:
    """Return what the ledger says of each licence, found again with the run's secret."""
    committer = Committer.load_or_create(files.secret)
    licences = {committer.commit(file.id): file.license for file in corpus.files}
    return gather(read_entries(files.ledger), licences)


def report(
    files: RunFiles,
    settings: Settings,
    program: Program,
    corpus: Corpus,
    evidence: Evidence,
    before: Mapping[str, float],
    after: Mapping[str, float],
    seconds: float,
    console: Console,
) -> None:
    """Print the tables and the result in words, and write `summary.json`."""
    reasons = {
        rule.name: rule.because
        for rules in (program.grants, program.limits, program.modulations)
        for rule in rules
    }
    lines = sentences(corpus.files, evidence, before, after)
    console.print()
    console.print(influence_table(corpus.files, evidence, before, after))
    console.print(restraint_table(evidence, reasons))
    for line in lines:
        console.print(line, highlight=False)
    write_report(files)
    console.print(f"Open {files.report} in a browser to read all of this.", highlight=False, soft_wrap=True)
    console.print(
        f"Model, ledger, keys, manifest and summary are in {files.folder}.", highlight=False, soft_wrap=True
    )
    summary = {
        "settings": settings.to_json(),
        "policy": {"name": program.name, "version": program.version, "digest": program.digest},
        "files": len(corpus.files),
        "bytes": sum(file.bytes for file in corpus.files),
        "seconds": round(seconds, 1),
        "steps": {"committed": evidence.committed, "refused": evidence.refused},
        "learned_from": evidence.to_json(),
        "held_out_loss": {name: {"before": before[name], "after": after[name]} for name in sorted(after)},
        "summary": lines,
    }
    files.summary.write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", "utf-8")


def console() -> Console:
    """Return where to print; output that is no terminal is wide enough for the tables."""
    standard = Console()
    return standard if standard.is_terminal else Console(width=WIDTH)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/code_licences"), help="Where to write."
)
@click.option("--policy", type=click.Path(exists=True, path_type=Path), default=POLICY, help="A policy file.")
@click.option("--steps", type=click.IntRange(1), default=600, help="Training steps.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=10.0, help="Longest training time."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Fixes the corpus, the order and the weights."
)
@click.option("--engine", type=click.Choice(["auto", "fused", "split"]), default="auto", help="Mask engine.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Examples per step.")
@click.option("--layers", type=click.IntRange(1), default=GPTConfig().layers, help="Blocks of the model.")
@click.option(
    "--megabytes", type=click.FloatRange(0, min_open=True), default=24.0, help="Size of the corpus."
)
def main(
    out: Path,
    policy: Path,
    steps: int,
    minutes: float,
    seed: int,
    engine: Engine,
    batch: int,
    layers: int,
    megabytes: float,
) -> None:
    settings = Settings(
        policy=policy,
        steps=steps,
        seed=seed,
        engine=engine,
        batch=batch,
        cap=round(megabytes * 1e6),
        model=GPTConfig(layers=layers),
    )
    try:
        holds = run(settings, out, console(), minutes)
    except (GradwardenError, CorpusTooSmallError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    sys.exit(0 if holds else 1)
