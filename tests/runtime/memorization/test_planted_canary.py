"""A planted canary is caught, the guard acts, and both are in a ledger that verifies (requirement R44)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.memorization.extraction import Continuation, ReconstructionProbe, reconstruct
from gradwarden.runtime.memorization.manifest import Manifest

POLICY = """policy canary version 1 language 1
examples { source : string }
signals { reconstruction : number 0..1 places 3 default 0 }
model { shallow = top 50%  deep = rest }
depth web { when source == "web"  reach all }
memorization recited { when reconstruction >= 0.5  refuse  because "the model says it by heart" }
"""
ADVISORY = POLICY.replace("memorization recited", "advisory memorization recited")

ASKED = Continuation(prefix=4, length=8)
LETTERS, STEPS, BATCH = 24, 60, 6


class Pairs(nn.Module):
    """Guesses each token from the two before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Embedding(LETTERS, 24)
        self.before = nn.Embedding(LETTERS, 24)
        self.mix = nn.Linear(24, 48)
        self.head = nn.Linear(48, LETTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        before = functional.pad(tokens, (1, 0))[:, :-1]
        return self.head(torch.tanh(self.mix(self.last(tokens) + self.before(before))))


@pytest.fixture
def texts():
    """The canary first, which comes in every step; each other text comes once."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(LETTERS, (1 + STEPS * BATCH, ASKED.end), generator=generator)


def train(lab, policy, texts):
    """Train on the canary and others; return the model and the canary's decision in each step."""
    model, canary = Pairs(), []
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    with lab.governor(policy, model, optimizer) as governor:
        probe = ReconstructionProbe(model, ASKED, every=2)
        for step in range(STEPS):
            rows = [0, *range(1 + step * BATCH, 1 + (step + 1) * BATCH)]
            ids, tokens = [f"text-{row}" for row in rows], texts[rows]
            examples = [(name, {"source": "web"}) for name in ids]
            with governor.step(examples, signals={"reconstruction": probe.signal(ids)}) as proposal:
                logits = model(tokens[:, :-1]).transpose(1, 2)
                losses = functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
                proposal.backward(losses.mean(dim=1))
            probe.look(step, ids, tokens)
            canary.append(proposal.decisions[0])
    return model, canary


def test_a_planted_canary_is_caught_and_the_guard_fires_on_record(lab, texts):
    _, canary = train(lab, POLICY, texts)
    caught = next(step for step, decision in enumerate(canary) if decision.verdict == "refuse")
    assert 2 <= caught < STEPS // 2
    assert all(decision.rules == ("recited", "web") for decision in canary[caught:])
    assert lab.verify().ok
    committer = Committer.load(lab.path().with_name("run.ledger.secret"))
    manifest = Manifest.read(lab.path())
    trace = manifest.traces[committer.commit("text-0")]
    assert (trace.first_flag, trace.risk, trace.deepest) == (caught, "stopped", "deep")
    assert (trace.exposures, trace.after, trace.flags) == (caught, 0, STEPS - caught)
    flagged = [commitment for commitment, found in manifest.traces.items() if found.flags]
    assert flagged == [committer.commit("text-0")]


def test_without_the_guard_it_is_extracted_and_only_noted(lab, texts):
    model, canary = train(lab, ADVISORY, texts)
    assert all(decision.verdict == "admit" for decision in canary)
    assert reconstruct(model, texts[:1], ASKED).tolist() == [1.0]
    assert lab.verify().ok
    traces = Manifest.read(lab.path()).traces.values()
    assert [trace.risk for trace in traces if trace.flags] == ["noted"]
