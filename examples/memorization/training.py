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
    ReconstructionProbe,
    exposure,
    log_perplexities,
    reconstruct,
)

POLICIES = Path(__file__).parent / "policies"


@dataclass(frozen=True, slots=True)
class Job:
    settings: Settings
    planted: Planted
    policy: str
    seed: int
    files: RunFiles


@dataclass(frozen=True, slots=True)
class Level:
    """What is left of the canaries that came so often. extracted, reproduced: means over them."""

    repetitions: int
    extracted: float
    reproduced: float
    exposure: float


@dataclass(frozen=True, slots=True)
class Scored:
    """An example that was trained on: what the detector said, and whether it can be extracted at the end."""

    id: str
    exposures: int
    loss_ratio: float
    reconstruction: float
    extractable: bool


@dataclass(frozen=True, slots=True)
class Run:
    """scored: every example. probe_share: of the time of training, that the probe took."""

    policy: str
    seed: int
    levels: list[Level]
    held_out: float
    steps: int
    cpu_seconds: float
    probe_share: float
    scored: list[Scored]


def run(job: Job) -> Run:
    """Train under the job's policy, verify the ledger, and measure."""
    watch, settings, planted = Stopwatch(), job.settings, job.planted
    torch.manual_seed(job.seed)
    model = ByteGPT(settings.model)
    scored, probe_share = train(model, job)
    seen = torch.cat([planted.code, torch.stack([canary.window for canary in planted.canaries])])
    names = [f"code-{n}" for n in range(len(planted.code))] + [canary.id for canary in planted.canaries]
    shares = dict(zip(names, reconstruct(model, seen, settings.asked).tolist(), strict=True))
    return Run(
        job.policy,
        job.seed,
        measure(model, job, shares),
        held_out_loss(model, planted.testing),
        verified_steps(job.files),
        watch.seconds,
        probe_share,
        [Scored(*facts, extractable=shares[facts[0]] == 1.0) for facts in scored],
    )


def train(model: nn.Module, job: Job) -> tuple[list[tuple[str, int, float, float]], float]:
    """Train under the job's policy; return the last signals of each example, the probe's share of time."""
    settings, files = job.settings, job.files
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    program = compile_policy(load_policy(POLICIES / f"{job.policy}.policy"), ModelMap.from_module(model))
    ledger = new_ledger(files)
    files.program.write_text(program.to_json(), "utf-8")
    probe = ReconstructionProbe(model, settings.asked, every=4, share=0.5, seed=job.seed)
    batches = list(stream(job.planted, settings, job.seed))
    began, probing = time.process_time(), 0.0
    with Governor(program, model, optimizer, ledger=ledger, secret=files.secret) as governor:
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, len(batches), settings)
            governor.epoch = batch.epoch
            examples = [(name, {"source": "stdlib"}) for name in batch.ids]
            signals = {"reconstruction": probe.signal(batch.ids)}
            with governor.step(examples, signals=signals) as proposal:
                proposal.backward(losses(model, batch.tokens))
            looking = time.process_time()
            probe.look(step, batch.ids, batch.tokens)
            probing += time.process_time() - looking
        governor.checkpoint(files.weights)
        rows = np.arange(len(governor.roster.known()))
        ratios, counts = governor.references.signal(rows), governor.roster.exposures(rows)
        names = list(governor.roster.known())
    signals = zip(names, counts.tolist(), ratios.tolist(), probe.signal(names), strict=True)
    return list(signals), probing / (time.process_time() - began)


def losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of each window [B], in nats per byte. tokens: [B, T + 1]."""
    logits = model(tokens[:, :-1]).transpose(1, 2)
    return functional.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(dim=1)


def schedule(step: int, steps: int, settings: Settings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss of windows that were never trained on, in nats per byte."""
    return round(losses(model, windows).mean().item(), 5)


def measure(model: nn.Module, job: Job, shares: Mapping[str, float]) -> list[Level]:
    """Return what is left of the canaries, by how often they came. shares: reproduced of each example."""
    asked, exposures = job.settings.asked, dict[str, float]()
    for canary in job.planted.canaries:
        windows = torch.cat([canary.window[None], canary.references])[:, : asked.end]
        bits = log_perplexities(model, windows, asked.prefix)
        exposures[canary.id] = exposure(float(bits[0]), bits[1:])
    levels = []
    for repetitions in (0, *job.settings.repetitions):
        own = [canary.id for canary in job.planted.canaries if canary.repetitions == repetitions]
        levels.append(
            Level(
                repetitions,
                mean(shares[name] == 1.0 for name in own),
                mean(shares[name] for name in own),
                mean(exposures[name] for name in own),
            )
        )
    return levels
