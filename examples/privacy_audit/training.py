"""Training on records of patients, some of them canaries: made up, and trained on by the flip of a coin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.policy import compile_policy, load_policy
from gradwarden.policy.array_types import BoolArray
from gradwarden.policy.context import FloatArray
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.options import Privacy
from gradwarden.runtime.privacy.accounting import JointPlan, PrivacyRule, privacy_rules
from gradwarden.runtime.privacy.sampling import MixedSampler

POLICIES = Path(__file__).parent / "policies"
WIDTH = 128


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done. rate: a private patient's chance to be in a step. batch: others in it."""

    canaries: int = 240
    steps: int = 600
    rate: float = 0.2
    batch: int = 32
    shadows: int = 16
    guesses: int = 120


@dataclass(frozen=True, slots=True)
class Ward:
    """Standardised records [patients, features], diagnoses; the first patients are canaries."""

    features: Tensor
    labels: Tensor
    canaries: int

    @classmethod
    def load(cls, canaries: int) -> Ward:
        """Return scikit-learn's breast-cancer records behind canaries: noise, with any diagnosis."""
        data = load_breast_cancer()
        real = torch.tensor(data.data, dtype=torch.float32)
        real = (real - real.mean(0)) / real.std(0)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(canaries, real.shape[1], generator=generator)
        coins = torch.randint(2, (canaries,), generator=generator)
        labels = torch.tensor(data.target, dtype=torch.long)
        return cls(torch.cat([noise, real]), torch.cat([coins, labels]), canaries)

    def record(self, patient: int) -> dict[str, Any]:
        return {"id": f"record-{patient}", "consent": patient >= self.canaries, "patient": f"p{patient}"}


def draw(ward: Ward, seed: int) -> BoolArray:
    """Flip a coin for every canary."""
    return np.asarray(np.random.default_rng([seed, 1]).random(ward.canaries) < 0.5)


def train(policy: str, ward: Ward, inside: BoolArray, effort: Effort, seed: int) -> tuple[FloatArray, float]:
    """Train under a policy on consenting patients and the canaries inside.

    Returns how much surer than before the model is of each canary's diagnosis (the rise of its log-odds,
    [canaries]), and the accuracy for consenting patients.
    """
    torch.manual_seed(seed)
    size = ward.features.shape[1]
    model = nn.Sequential(
        nn.Linear(size, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)
    )
    program = compile_policy(load_policy(POLICIES / f"{policy}.policy"), ModelMap.from_module(model))
    rules = privacy_rules(program)
    plan = _plan(rules, effort.rate, effort.steps) if rules else None
    public = np.arange(ward.canaries, len(ward.labels))
    units = [np.array([patient]) for patient in np.flatnonzero(inside).tolist()]
    sampler = MixedSampler(public, units, batch_size=effort.batch, rate=effort.rate, seed=seed)
    before = _margins(model, ward)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    normaliser = float(effort.batch + effort.rate * ward.canaries / 2)
    # The sampler's rows are patients, canaries that stay outside among them, and so no places in a data set.
    privacy = None if plan is None else Privacy(plan, on_trust=["sampling"])
    terms = {"privacy": privacy, "normaliser": normaliser}
    with (
        TemporaryDirectory() as folder,
        Governor(program, model, optimizer, ledger=_ledger(Path(folder)), **terms) as governor,
    ):
        while governor.next_step < effort.steps:
            for batch in sampler:
                if governor.next_step == effort.steps:
                    break
                rows = torch.from_numpy(batch.rows)
                with governor.step([ward.record(patient) for patient in batch.rows.tolist()]) as proposal:
                    found = model(ward.features[rows])
                    proposal.backward(functional.cross_entropy(found, ward.labels[rows], reduction="none"))
    right = model(ward.features[public]).argmax(1) == ward.labels[public]
    return _margins(model, ward) - before, float(right.double().mean())


@cache
def _plan(rules: tuple[PrivacyRule, ...], rate: float, steps: int) -> JointPlan:
    return JointPlan.for_steps(rules, rate, steps)


def _ledger(folder: Path) -> Ledger:
    return Ledger.open(folder / "run.ledger", signer=Signer.generate("audit"), durability="os")


@torch.no_grad()
def _margins(model: nn.Module, ward: Ward) -> FloatArray:
    logits, labels = model(ward.features[: ward.canaries]), ward.labels[: ward.canaries, None]
    margins = (logits.gather(1, labels) - logits.gather(1, 1 - labels)).squeeze(1)
    return np.asarray(margins.double().numpy())
