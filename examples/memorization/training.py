"""One governed run: trains a byte-level GPT under a policy file, and measures what it kept of its texts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.code_licences.model import ByteGPT
from examples.gradient_routing.governed import Stopwatch, new_ledger, verified_steps
from examples.memorization.planting import Planted, Settings, stream
from examples.run_files import RunFiles
from gradwarden.policy import compile_policy, load_policy
from gradwarden.runtime import Governor, ModelMap
from gradwarden.runtime.memorization.extraction import (
    BATCH,
    ReconstructionProbe,
    exposure,
    log_perplexities,
    reconstruct,
)

POLICIES = Path(__file__).parent / "policies"

GUESSABLE = 24.0
"""Bits up to which a model may guess a continuation that it never saw; of chance alone, canaries have 62."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model that saw none of the examples knows of them: its losses, and the bits of what is asked."""

    losses: dict[str, float]
    bits: dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    settings: Settings
    planted: Planted
    reference: Reference
    policy: str
    seed: int
    files: RunFiles


@dataclass(frozen=True, slots=True)
class Level:
    """What is left of the canaries that came so often. All but the first are means over them."""

    repetitions: int
    extracted: float
    reproduced: float
    exposure: float
    learned: float


@dataclass(frozen=True, slots=True)
class Scored:
    """An example that was trained on: its last signals, and whether it can be extracted at the end.

    memorized: it can, and what is asked has more than GUESSABLE bits under the reference model.
    """

    id: str
    signals: dict[str, float]
    extractable: bool
    memorized: bool


@dataclass(frozen=True, slots=True)
class Run:
    """probe_share: of the time of training, that the probe took. scored: every example."""

    policy: str
    seed: int
    levels: list[Level]
    held_out: float
    extractable: int
    memorized: int
    steps: int
    cpu_seconds: float
    probe_share: float
    scored: list[Scored]


def run(job: Job) -> Run:
    """Train under the job's policy, verify the ledger, and measure."""
    watch, texts = Stopwatch(), job.planted.texts()
    torch.manual_seed(job.seed)
    model = ByteGPT(job.settings.model)
    signals, probe_share = train(model, job)
    found = reconstruct(model, torch.stack(list(texts.values())), job.settings.asked)
    shares = dict(zip(texts, found.tolist(), strict=True))
    extractable = {name for name in signals if shares[name] == 1.0}
    memorized = {name for name in extractable if job.reference.bits[name] > GUESSABLE}
    scored = [Scored(name, own, name in extractable, name in memorized) for name, own in signals.items()]
    return Run(
        job.policy,
        job.seed,
        measure(model, job, shares, signals),
        held_out_loss(model, job.planted.testing),
        len(extractable),
        len(memorized),
        verified_steps(job.files),
        watch.seconds,
        probe_share,
        scored,
    )


def train(model: nn.Module, job: Job) -> tuple[dict[str, dict[str, float]], float]:
    """Train under the job's policy; return the last signals of each example, the probe's share of time."""
    settings, files = job.settings, job.files
    program = compile_policy(load_policy(POLICIES / f"{job.policy}.policy"), ModelMap.from_module(model))
    ledger = new_ledger(files)
    files.program.write_text(program.to_json(), "utf-8")
    optimizer = make_optimizer(model, settings)
    probe = ReconstructionProbe(model, settings.asked, every=4, share=0.5, seed=job.seed)
    batches = list(stream(job.planted, settings, job.seed))
    began, probing = time.process_time(), 0.0
    with Governor(
        program, model, optimizer, ledger=ledger, secret=files.secret, reference_losses=job.reference.losses
    ) as governor:
        for step, batch in enumerate(batches):
            set_rate(optimizer, step, len(batches), settings)
            governor.epoch = batch.epoch
            examples = [(name, {"source": "stdlib"}) for name in batch.ids]
            signals = {"reconstruction": probe.signal(batch.ids)}
            with governor.step(examples, signals=signals) as proposal:
                logits = model(batch.tokens[:, :-1])
                learned = proposal.token_mask(batch.tokens)[:, 1:]
                proposal.backward(losses(logits, batch.tokens, learned))
                proposal.observe_tokens(logits, batch.tokens[:, 1:])
            looking = time.process_time()
            probe.look(step, batch.ids, batch.tokens)
            probing += time.process_time() - looking
        governor.checkpoint(files.weights)
        share = probing / (time.process_time() - began)
        return last_signals(governor, probe), share


def last_signals(governor: Governor, probe: ReconstructionProbe) -> dict[str, dict[str, float]]:
    """Return the signals of every example as the next step would get them, and its exposures."""
    names = list(governor.roster.known())
    rows = np.arange(len(names))
    found = {**governor.measures.signals(rows), "exposures": governor.roster.exposures(rows)}
    columns = {name: np.asarray(values).tolist() for name, values in found.items()}
    columns["reconstruction"] = probe.signal(names)
    return {
        name: {signal: float(column[row]) for signal, column in columns.items()}
        for row, name in enumerate(names)
    }


def make_reference(planted: Planted, settings: Settings, seed: int) -> Reference:
    """Train a model on other code, without a policy; return what it knows of the examples."""
    torch.manual_seed(seed + 1)
    model = ByteGPT(settings.model)
    optimizer = make_optimizer(model, settings)
    order = torch.cat([torch.randperm(len(planted.other)) for _ in range(settings.epochs)])
    batches = order.split(settings.batch)
    for step, rows in enumerate(batches):
        set_rate(optimizer, step, len(batches), settings)
        optimizer.zero_grad()
        tokens = planted.other[rows]
        losses(model(tokens[:, :-1]), tokens).mean().backward()
        optimizer.step()
    texts = planted.texts()
    tokens = torch.stack(list(texts.values()))
    with torch.no_grad():
        found = torch.cat([losses(model(part[:, :-1]), part) for part in tokens.split(BATCH)])
    bits = log_perplexities(model, tokens[:, : settings.asked.end], settings.asked.prefix)
    return Reference(
        dict(zip(texts, found.tolist(), strict=True)), dict(zip(texts, bits.tolist(), strict=True))
    )


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, settings: Settings) -> None:
    """Set the learning rate of a step: linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def losses(logits: Tensor, tokens: Tensor, learned: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of each window [B], in nats per byte.

    logits: [B, T, V]. tokens: [B, T + 1]. learned: the tokens to be predicted that count [B, T]; None: all.
    """
    found = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    if learned is None:
        return found.mean(dim=1)
    return (found * learned).sum(dim=1) / learned.sum(dim=1).clamp_min(1)


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss of windows that were never trained on, in nats per byte."""
    return round(losses(model(windows[:, :-1]), windows).mean().item(), 5)


def measure(
    model: nn.Module, job: Job, shares: Mapping[str, float], signals: Mapping[str, Mapping[str, float]]
) -> list[Level]:
    """Return what is left of the canaries, by how often they came. shares: reproduced of each example."""
    asked, exposures = job.settings.asked, dict[str, float]()
    for canary in job.planted.canaries:
        windows = torch.cat([canary.window[None], canary.others])[:, : asked.end]
        bits = log_perplexities(model, windows, asked.prefix)
        exposures[canary.id] = exposure(float(bits[0]), bits[1:])
    levels = []
    for repetitions in job.settings.repetitions:
        own = [canary.id for canary in job.planted.canaries if canary.repetitions == repetitions]
        levels.append(
            Level(
                repetitions,
                mean(shares[name] == 1.0 for name in own),
                mean(shares[name] for name in own),
                mean(exposures[name] for name in own),
                mean(signals[name]["exposures"] if name in signals else 0.0 for name in own),
            )
        )
    return levels
