"""The norm of each example's own parameter gradient, and its share by depth: those of plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.runtime import Measuring

WATCHED = ("parameter_gradient_norm", "depth_share")

DECLARED = "signals {\n" + "\n".join(s.declaration for s in KNOWN_SIGNALS if s.name in WATCHED) + "\n}\n"

WORDS, PLACES, WIDTH = 7, 3, 4

REACH = {"a": (1, 1), "b": (1, 0), "d": (0, 1)}
"""By kind, whether it may shape the shallow band and the deep one."""


class Tied(nn.Module):
    """Words in, words out, by one table; a layer of two uses and a bias between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.tanh(self.inner(self.table(x)))))


class Loose(nn.Module):
    """A parameter for each place that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.ones(PLACES, WIDTH))
        self.table = nn.Embedding(WORDS, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x) + self.places))


class Borrowed(nn.Module):
    """A layer whose weight is used outside of it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(self.inner(self.table(x)))
        return self.head(nn.functional.linear(inner, self.inner.weight))


class Gain(nn.Module):
    """A module of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((WIDTH,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.gain


class Packable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.gain = Gain()
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gain(self.norm(self.table(x))))


MODELS = {"tied": Tied, "loose": Loose, "borrowed": Borrowed, "packable": Packable}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def words(count: int, places: int = PLACES) -> Tensor:
    return torch.randint(WORDS, (count, places), generator=torch.Generator().manual_seed(1))


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """One loss for each place [B, T], of a different size for each word."""
    return nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * (1 + targets)


def noted(governor, monkeypatch) -> dict[int, float]:
    """Return a table that will have the norm that is measured of each row."""
    found: dict[int, float] = {}
    kept = governor.measures._kept["parameter_gradient_norm"]
    monkeypatch.setattr(
        kept, "observe", lambda rows, norms: found.update(zip(rows.tolist(), norms.tolist(), strict=True))
    )
    return found


def wanted(governor, each: Tensor, kinds: str) -> tuple[list[float], list[float]]:
    """Return the norms and the deep shares of losses [B], by a backward pass for each."""
    norms, shares = [], []
    for loss, kind in zip(each, kinds, strict=True):
        squares = []
        for may, members in zip(REACH[kind], governor.parameters.values(), strict=True):
            gradients = torch.autograd.grad(loss, members, retain_graph=True, allow_unused=True)
            squares.append(may * sum(g.square().sum().item() for g in gradients if g is not None))
        norms.append(sum(squares) ** 0.5)
        shares.append(squares[1] / sum(squares))
    return norms, shares


def shares_of(governor, count: int) -> list[float]:
    rows = governor.roster.rows([f"e{place}" for place in range(count)])
    return governor.measures.signals(rows)["depth_share"].tolist()


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [3, 6])
def test_norms_are_those_of_each_examples_own_gradient(lab, monkeypatch, engine, model, size):
    kinds, x, y = "abdaba", words(6), words(6).flip(1)
    governor = lab.governor(
        lab.policy + DECLARED, made(model), engine=engine, measuring=Measuring(every=1), normaliser=5.0
    )
    norms, shares = wanted(governor, losses(governor.model(x), y).sum(1), kinds)
    found = noted(governor, monkeypatch)
    with governor.step(lab.batch(kinds)) as proposal:
        for rows in proposal.micro_batches(size):
            proposal.backward(losses(governor.model(x[rows]), y[rows]).sum(1))
    assert proposal.committed
    assert [found[row] for row in range(6)] == pytest.approx(norms, rel=1e-9)
    assert shares_of(governor, 6) == pytest.approx(shares, rel=1e-9)


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("packed", [True, False])
def test_norms_of_examples_that_share_rows_or_have_several(lab, monkeypatch, engine, packed):
    kinds, x, y = "abdab", words(4, 5), words(4, 5).flip(1)
    owners = torch.tensor([[0, 0, 1, 1, -1], [2, 2, 2, 2, 2], [3, 3, 3, -1, -1], [4, 1, 4, 1, 4]])
    if not packed:
        kinds, owners = "abd", torch.tensor([1, 2, 0, 1])
    governor = lab.governor(
        lab.policy + DECLARED, made("packable"), engine=engine, measuring=Measuring(every=1)
    )

    def each(logits: Tensor) -> Tensor:
        of = losses(logits, y)
        flat, by = (of.flatten(), owners.flatten()) if packed else (of.sum(1), owners)
        return torch.zeros(len(kinds) + 1).double().index_add(0, by % (len(kinds) + 1), flat)[:-1]

    norms, shares = wanted(governor, each(governor.model(x)), kinds)
    found = noted(governor, monkeypatch)
    with governor.step(lab.batch(kinds)) as proposal:
        proposal.assign(owners)
        proposal.backward(each(governor.model(x)))
    assert proposal.committed, proposal.refusal
    assert [found[row] for row in range(len(kinds))] == pytest.approx(norms, rel=1e-9)
    assert shares_of(governor, len(kinds)) == pytest.approx(shares, rel=1e-9)
