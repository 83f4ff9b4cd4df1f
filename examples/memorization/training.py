"""One governed run: trains a byte-level GPT under a policy file, and measures what it kept of its texts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.code_licences.model import ByteGPT
from examples.gradient_routing.governed import Stopwatch, new_ledger, verified_steps
from examples.memorization.planting import CANARY, Batch, Planted, Settings, plant, stream
from examples.run_files import RunFiles
from gradwarden.policy import compile_policy, load_policy
from gradwarden.policy.context import FloatArray
from gradwarden.runtime import Governor, Measuring, ModelMap
from gradwarden.runtime.memorization.extraction import (
    BATCH,
    ReconstructionProbe,
    exposure,
    greedy,
    log_perplexities,
    reconstruct,
)
from gradwarden.runtime.memorization.spans import SpanProbe, greatest_recital, reference_bits

POLICIES = Path(__file__).parent / "policies"

GUESSABLE = 24.0
"""Bits up to which a model may guess a continuation that it never saw; of chance alone, canaries have 62."""


SUSPECT = 0.1
"""The share of the examples that are looked at again at the end."""

SECOND_LOOK = "second_look"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model that saw none of the examples knows of them: the bits of each byte but the first."""

    bits: dict[str, FloatArray]

    def losses(self) -> dict[str, float]:
        """Return the mean loss of each example, in nats per byte."""
        return {name: float(bits.mean()) * math.log(2) for name, bits in self.bits.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """unseen: the canaries come at their places, and nothing of them is learned."""

    settings: Settings
    planted: Planted
    reference: Reference
    clusters: Mapping[str, str]
    policy: str
    seed: int
    files: RunFiles
    unseen: bool = False

    def source(self, name: str) -> str:
        """Return the source of an example; policies let the model learn from that of the library alone."""
        return "left out" if self.unseen and name.startswith(CANARY) else "stdlib"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of a canary. reproduced: the share of its secret. learned: how often it was learned from.

    exposure: in bits. advantage: by how many bits it is likelier than its other fillings are in the mean.
    """

    id: str
    kind: str
    repetitions: int
    reproduced: float
    exposure: float
    learned: int
    advantage: float


@dataclass(frozen=True, slots=True)
class Scored:
    """An example that was trained on: its last signals, and whether it can be extracted at the end.

    cluster: of near-duplicates. came: when it came last, as a share of the run. memorized: it can, and what
    can be extracted has more than GUESSABLE bits under the reference model.
    """

    id: str
    cluster: str
    came: float
    signals: dict[str, float]
    extractable: bool
    memorized: bool


@dataclass(frozen=True, slots=True)
class Run:
    """unseen: see `Job`; of such a run only the canaries and the held-out loss are measured.

    probe_share: of the time of training, that the probes took (of this thread: the ledger's has its own).
    scored: every example; of the copies of a canary, the last.
    """

    policy: str
    seed: int
    canaries: list[Kept]
    held_out: float
    extractable: int
    memorized: int
    steps: int
    cpu_seconds: float
    probe_share: float
    scored: list[Scored]
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Probes:
    """What the loop measures of its texts itself. declared: the signals that the policy has."""

    recited: ReconstructionProbe
    spans: SpanProbe
    declared: frozenset[str]

    def signals(self, ids: Sequence[str]) -> dict[str, list[float]]:
        """Return what the probes know of some examples, by signal."""
        told = {
            "reconstruction": self.recited.signal,
            "surprisal": self.spans.surprisal,
            "span_gap": self.spans.gap,
            "recital": self.spans.recital,
        }
        return {name: tell(ids) for name, tell in told.items() if name in self.declared}

    def look(self, step: int, batch: Batch, logits: Tensor, each: Tensor) -> None:
        """Look at a batch by its logits [B, T, V] and the losses of its bytes [B, T]."""
        if "reconstruction" in self.declared:
            self.recited.look(step, batch.ids, batch.tokens, logits)
        self.spans.look(batch.ids, logits, batch.tokens[:, 1:], each)


def prepare(settings: Settings, out: Path, policies: Mapping[str, bool], seed: int) -> list[Job]:
    """Plant a corpus and train its reference model; return all runs over it.

    policies: whether each has a twin from which nothing of canaries is learned (`unseen`).
    """
    planted = plant(settings, seed)
    reference, clusters = make_reference(planted, settings, seed), planted.clusters()
    return [
        Job(settings, planted, reference, clusters, policy, seed, RunFiles(out / "runs" / name), unseen)
        for policy, twin in policies.items()
        for name, unseen in ((f"{policy}-{seed}", False), (f"{policy}-{seed}-unseen", True))
        if twin or not unseen
    ]


def run(job: Job) -> Run:
    """Train under the job's policy, verify the ledger, and measure."""
    watch = Stopwatch()
    torch.manual_seed(job.seed)
    model = ByteGPT(job.settings.model)
    signals, probe_share = train(model, job)
    kept = measure(model, job, signals)
    scored = [] if job.unseen else score(model, job, signals)
    return Run(
        job.policy,
        job.seed,
        kept,
        held_out_loss(model, job.planted.testing),
        sum(one.extractable for one in scored),
        sum(one.memorized for one in scored),
        verified_steps(job.files),
        watch.seconds,
        probe_share,
        scored,
        job.unseen,
    )


def score(model: nn.Module, job: Job, signals: Mapping[str, dict[str, float]]) -> list[Scored]:
    """Return which examples can be extracted. signals: the last of every example."""
    texts = job.planted.texts()
    got = extracted(model, {name: texts[name] for name in signals}, job)
    came = last_steps(job)
    last = {job.clusters[name]: name for name in sorted(signals, key=came.__getitem__)}
    return [
        Scored(
            name,
            job.clusters[name],
            came[name],
            own,
            got[name] is not None,
            (got[name] or 0.0) > GUESSABLE,
        )
        for name, own in signals.items()
        if not name.startswith(CANARY) or last[job.clusters[name]] == name
    ]


def last_steps(job: Job) -> dict[str, float]:
    """Return when each example comes last, as a share of the run."""
    batches = list(stream(job.planted, job.settings, job.seed))
    return {name: step / len(batches) for step, batch in enumerate(batches, 1) for name in batch.ids}


def extracted(model: nn.Module, texts: Mapping[str, Tensor], job: Job) -> dict[str, float | None]:
    """Return the most bits that can be extracted of each text, under the reference model; None for nothing.

    What is extracted is as many bytes as a canary's secret has, after as many as come before that or more,
    each given the text's own before it.
    """
    asked, tokens = job.settings.asked, torch.stack(list(texts.values()))
    with torch.no_grad():
        parts = [greedy(model(part[:, :-1]), part[:, 1:]) for part in tokens.split(BATCH)]
        right = torch.cat(parts).numpy()[:, asked.prefix - 1 :]
    bits = np.stack([job.reference.bits[name] for name in texts])[:, asked.prefix - 1 :]
    any_at_all = greatest_recital(np.ones_like(bits), right, asked.length) > 0.0
    most = greatest_recital(bits, right, asked.length)
    return {
        name: bit if found else None
        for name, bit, found in zip(texts, most.tolist(), any_at_all.tolist(), strict=True)
    }


def train(model: nn.Module, job: Job) -> tuple[dict[str, dict[str, float]], float]:
    """Train under the job's policy; return the last signals of each example, the probe's share of time."""
    settings, files = job.settings, job.files
    program = compile_policy(load_policy(POLICIES / f"{job.policy}.policy"), ModelMap.from_module(model))
    ledger = new_ledger(files)
    files.program.write_text(program.to_json(), "utf-8")
    optimizer = make_optimizer(model, settings)
    probes = Probes(
        ReconstructionProbe(model, settings.asked, every=2),
        SpanProbe(job.reference.bits, settings.span),
        frozenset(spec.name for spec in program.signals),
    )
    batches = list(stream(job.planted, settings, job.seed))
    began, probing = time.process_time(), 0.0
    with Governor(
        program,
        model,
        optimizer,
        ledger=ledger,
        secret=files.secret,
        measuring=Measuring(job.reference.losses(), job.clusters),
    ) as governor:
        for step, batch in enumerate(batches):
            set_rate(optimizer, step, len(batches), settings)
            governor.epoch = batch.epoch
            examples = [(name, {"source": job.source(name)}) for name in batch.ids]
            looking = time.thread_time()
            signals = probes.signals(batch.ids)
            probing += time.thread_time() - looking
            with governor.step(examples, signals=signals) as proposal:
                logits = model(batch.tokens[:, :-1])
                learned = proposal.token_mask(batch.tokens)[:, 1:]
                each = token_losses(logits, batch.tokens)
                proposal.backward(mean_losses(each, learned))
                proposal.observe_tokens(logits, batch.tokens[:, 1:])
            looking = time.thread_time()
            probes.look(step, batch, logits, each)
            probing += time.thread_time() - looking
        looking = time.thread_time()
        again = second_look(model, job, probes.spans)
        probing += time.thread_time() - looking
        governor.checkpoint(files.weights)
        share = probing / (time.process_time() - began)
        signals = last_signals(governor, probes)
        for name, own in signals.items():
            own[SECOND_LOOK] = again.get(name, -1.0)
        return signals, share


@torch.no_grad()
def second_look(model: nn.Module, job: Job, spans: SpanProbe) -> dict[str, float]:
    """Return the recital, under the weights to be released, of the examples that are most suspect."""
    texts, found = job.planted.texts(), dict[str, float]()
    suspects = spans.suspects(SUSPECT)
    for start in range(0, len(suspects), BATCH):
        names = suspects[start : start + BATCH]
        tokens = torch.stack([texts[name] for name in names])
        measured = spans.measure(names, model(tokens[:, :-1]), tokens[:, 1:])
        found |= {name: recital for name, (_, recital) in measured.items()}
    return found


def last_signals(governor: Governor, probes: Probes) -> dict[str, dict[str, float]]:
    """Return the signals of every example as the next step would get them, and its exposures."""
    names = list(governor.roster.known())
    rows = np.arange(len(names))
    found = {**governor.measures.signals(rows), "exposures": governor.roster.exposures(rows)}
    columns = {name: np.asarray(values).tolist() for name, values in found.items()}
    columns |= probes.signals(names)
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
    bits = reference_bits(model, torch.stack(list(texts.values())))
    return Reference(dict(zip(texts, bits, strict=True)))


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, settings: Settings) -> None:
    """Set the learning rate of a step: linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of each byte [B, T], in nats. logits: [B, T, V]. tokens: [B, T + 1]."""
    return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def mean_losses(each: Tensor, learned: Tensor) -> Tensor:
    """Return the mean loss of each window [B], over the bytes that count. each, learned: [B, T]."""
    return (each * learned).sum(dim=1) / learned.sum(dim=1).clamp_min(1)


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of each window [B], in nats per byte; as `token_losses`."""
    return token_losses(logits, tokens).mean(dim=1)


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss of windows that were never trained on, in nats per byte."""
    return round(losses(model(windows[:, :-1]), windows).mean().item(), 5)


def measure(model: nn.Module, job: Job, signals: Mapping[str, Mapping[str, float]]) -> list[Kept]:
    """Return what is left of each canary. signals: the last of every example."""
    asked, canaries = job.settings.asked, job.planted.canaries
    windows = torch.stack([canary.window for canary in canaries])
    shares = reconstruct(model, windows, asked).tolist()
    found = []
    for canary, share in zip(canaries, shares, strict=True):
        fillings = torch.cat([canary.window[None], canary.others])[:, : asked.end]
        own, *others = log_perplexities(model, fillings, asked.prefix).tolist()
        came = {name for name, _ in canary.comings if name in signals}
        found.append(
            Kept(
                canary.id,
                canary.kind,
                canary.repetitions,
                share,
                exposure(own, np.array(others)),
                int(sum(signals[name]["exposures"] for name in came)),
                mean(others) - own,
            )
        )
    return found
