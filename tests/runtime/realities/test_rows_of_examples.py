"""Several rows of one example: held to the same examples run one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.runtime import Privacy
from gradwarden.runtime.masks import make_engine
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

pytestmark = pytest.mark.usefixtures("double")

engines = pytest.mark.parametrize("engine", ["fused", "split"])

WIDTH, WORDS = 8, 11


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens)
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return self.head(h.mean(1)).squeeze(1)


def pooled(scores: Tensor, owners: Tensor, count: int) -> Tensor:
    """A loss over all rows of each example: the log of the sum of exponentials."""
    return torch.stack([scores[owners == number].logsumexp(0) for number in range(count)])


@engines
@pytest.mark.parametrize("order", ["one below the other", "side by side", "as many as there are"])
def test_several_rows_of_one_example(engine: str, order: str, assert_exact: Any) -> None:
    """Chosen and rejected answers in one forward pass, or a choice among several, from the first batch on."""
    model = Scorer()
    owners = {
        "one below the other": [torch.arange(n).repeat(2) for n in (4, 4, 3)],
        "side by side": [torch.arange(n).repeat_interleave(3) for n in (4, 3, 1)],
        "as many as there are": [
            torch.tensor(o) for o in ([0, 2, 1, 0, 1, 3, 3, 3], [1, 0, 0], [2, 2, 0, 1, 0])
        ],
    }[order]
    batches = [torch.randint(WORDS, (len(o), 5)) for o in owners]
    sizes = [int(o.max()) + 1 for o in owners]
    masks = assert_exact(
        model,
        lambda n: pooled(model(batches[n]), owners[n], sizes[n]),
        lambda n, row: model(batches[n][owners[n] == row]).logsumexp(0),
        sizes,
        engine,
        arm=lambda masks, n, weights: masks.arm(weights, owners[n]),
    )
    assert masks.name == engine
    if engine == "fused":
        assert set(masks.paths.values()) == {"fast"}


def test_rows_of_nobody_count_for_nothing(assert_exact: Any) -> None:
    model = Scorer()
    owners = [torch.tensor(o) for o in ([0, -1, 1, 0, -1, 2], [-1, 1, 0], [2, -1, 0, 1, 0])]
    batches = [torch.randint(WORDS, (len(o), 5)) for o in owners]
    assert_exact(
        model,
        lambda n: pooled(model(batches[n]), owners[n], int(owners[n].max()) + 1),
        lambda n, row: model(batches[n][owners[n] == row]).logsumexp(0),
        [int(o.max()) + 1 for o in owners],
        "fused",
        arm=lambda masks, n, weights: masks.arm(weights, owners[n]),
    )


def test_blocks_are_run_in_parts_by_whole_examples(
    bands_of: Any, by_definition: Any, worst_error: Any
) -> None:
    model = Scorer()
    bands = bands_of(model)
    masks = make_engine(model, bands, "fused")
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 0.7, 0.2]])
    for owners in (torch.arange(4).repeat(2), torch.tensor([3, 1, 1, -1, 0, 2, 3, 3, 0])):
        batch = torch.randint(WORDS, (len(owners), 5))
        model.zero_grad(set_to_none=True)
        masks.arm(weights, owners)
        masks.backward(pooled(model(batch), owners, 4), 1.0)
        ways = {choice.name: choice.way for choice in masks.explain()}
        masks.disarm()
        want = by_definition(
            model, bands, weights, lambda row, b=batch, o=owners: model(b[o == row]).logsumexp(0)
        )
        assert worst_error(model, want) <= 1e-9
        assert ways["blocks.0"] == "split"


class Gated(nn.Module):
    """A module whose gain no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.mix = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.mix(h))


def test_modules_are_differentiated_as_pieces(assert_exact: Any) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Gated(), nn.Linear(WIDTH, 1), nn.Flatten(0))
    owners = [torch.arange(n).repeat(2) for n in (4, 3)] + [torch.tensor([2, 2, 0, 1, 0])]
    batches = [torch.randn(len(o), WIDTH) for o in owners]
    sizes = [int(o.max()) + 1 for o in owners]
    masks = assert_exact(
        model,
        lambda n: pooled(model(batches[n]), owners[n], sizes[n]),
        lambda n, row: model(batches[n][owners[n] == row]).logsumexp(0),
        sizes,
        "fused",
        arm=lambda masks, n, weights: masks.arm(weights, owners[n]),
    )
    assert masks.paths["1.gain"] == "general"


# --- in a governed run --------------------------------------------------------------------------------------


class Pairs(Scorer):
    """Two rows of each example behind one another, [B, 2, T] -> [B, 2]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, 1)).view(-1, 2)


def one_step(
    lab: Any, text: str, engine: str, kind: type[Scorer], run: Callable[[Any, nn.Module], Tensor]
) -> list[Tensor | None]:
    torch.manual_seed(0)
    model = kind()
    rules = privacy_rules(lab.program(text))
    plan = JointPlan.for_noise(rules, 0.01, noise_multiplier=4.0)
    privacy = Privacy(plan, on_trust=["sampling"], noise_seed=11)
    governor = lab.governor(
        text, model=model, name=kind.__name__, engine=engine, privacy=privacy, normaliser=4.0
    )
    with governor.step(lab.batch("aadbd")) as proposal:
        proposal.backward(run(proposal, model))
    assert proposal.committed, proposal.refusal
    return [p.grad for p in model.parameters()]


@engines
def test_private_examples_of_several_rows_are_clipped_as_wholes(engine: str, lab: Any) -> None:
    """As where every example has one row and its loss is over two forward passes."""
    text = lab.policy + "privacy p { when kind == d  within shallow  epsilon 3  delta 1e-6  clip 0.01 }\n"
    first, second = torch.randint(WORDS, (2, 5, 5))

    def at_once(proposal: Any, model: nn.Module) -> Tensor:
        owners = torch.arange(5).repeat(2)
        proposal.assign(owners)
        return pooled(model(torch.cat([first, second])), owners, 5)

    def side_by_side(proposal: Any, model: nn.Module) -> Tensor:
        return model(torch.stack([first, second], dim=1)).logsumexp(1)

    have = one_step(lab, text, engine, Scorer, at_once)
    want = one_step(lab, text, "split", Pairs, side_by_side)
    for one, other in zip(have, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
