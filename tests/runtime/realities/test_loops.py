"""Loops as people write them: evaluation in between, several forward passes a step, losses of many kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine

pytestmark = pytest.mark.usefixtures("double")

engines = pytest.mark.parametrize("engine", ["fused", "split"])

SIZES = [4, 4, 3]
WIDTH, WORDS = 8, 11


class Block(nn.Module):
    """Pre-norm causal attention and an MLP, with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm_1(x)).chunk(3, dim=2)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.proj(mixed))
        return x + self.dropout(self.down(functional.gelu(self.up(self.norm_2(x)))))


class Encoder(nn.Module):
    """Tokens [B, T] -> vectors [B, T, W]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(3))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def tokens(size: int, length: int = 5) -> Tensor:
    return torch.randint(WORDS, (size, length))


def log_likelihood(model: nn.Module, x: Tensor) -> Tensor:
    """That of each example's next tokens, [B]."""
    logits = model(x)[:, :-1].log_softmax(2)
    return logits.gather(2, x[:, 1:, None]).squeeze(2).sum(1)


def vector(model: nn.Module, x: Tensor) -> Tensor:
    return functional.normalize(model(x).mean(1), dim=1)


# --- several forward passes in one step ---------------------------------------------------------------------

Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]

REFERENCE: dict[str, nn.Module] = {}


def two_views(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    """Each example's two views agree; neither is learned from through the other (SimSiam)."""
    one, other = vector(model, x[0]), vector(model, x[1])
    return -(one * other.detach()).sum(1) - (other * one.detach()).sum(1)


def triplets(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    """An anchor, a match and another length of something else, each example its own."""
    anchor, match, other = (vector(model, part) for part in x)
    return (1 + (anchor * other).sum(1) - (anchor * match).sum(1)).clamp(min=0)


def preferences(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    """Direct preference optimization, against a frozen copy of the model."""
    frozen = REFERENCE["model"]
    with torch.no_grad():
        margin = log_likelihood(frozen, x[0]) - log_likelihood(frozen, x[2])
    return -functional.logsigmoid(log_likelihood(model, x[0]) - log_likelihood(model, x[2]) - margin)


def distilled(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    """A teacher's soft targets, and the student's own earlier layers' through a second pass."""
    with torch.no_grad():
        soft = REFERENCE["model"](x[0]).softmax(2)
    return -(soft * model(x[0]).log_softmax(2)).sum((1, 2)) + model(x[1]).square().mean((1, 2))


def rolled_out(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    """The model is called on its own growing output, greedily; every pass is learned from."""
    text, total = x[0], torch.zeros(len(x[0]))
    for _ in range(3):
        logits = model(text)[:, -1].log_softmax(1)
        choice = logits.argmax(1, keepdim=True)
        total = total - logits.gather(1, choice).squeeze(1)
        text = torch.cat([text, choice], dim=1)
    return total


LOSSES: dict[str, Loss] = {
    loss.__name__: loss for loss in (two_views, triplets, preferences, distilled, rolled_out)
}


@engines
@pytest.mark.parametrize("loss", LOSSES)
def test_several_forward_passes_a_step(engine: str, loss: str, assert_exact: Any) -> None:
    model = Encoder()
    REFERENCE["model"] = copy.deepcopy(model).requires_grad_(False)
    batches = [(tokens(size), tokens(size), tokens(size, 7)) for size in SIZES]
    masks = assert_exact(
        model,
        lambda n: LOSSES[loss](model, batches[n]),
        lambda n, row: LOSSES[loss](model, tuple(x[row : row + 1] for x in batches[n])).sum(),
        SIZES,
        engine,
    )
    assert masks.name == engine


@engines
def test_negatives_from_the_batch_count_as_constants(engine: str, assert_exact: Any) -> None:
    """A contrastive loss whose negatives are the other examples' vectors, detached, is each example's own."""
    model = Encoder()
    batches = [(tokens(size), tokens(size)) for size in SIZES]
    keys = [torch.stack([vector(model, x[r : r + 1])[0] for r in range(len(x))]).detach() for x, _ in batches]

    def losses(number: int) -> Tensor:
        one, other = (vector(model, x) for x in batches[number])
        negatives = (one @ vector(model, batches[number][0]).detach().t()).exp().sum(1)
        return negatives.log() - (one * other).sum(1)

    def alone(number: int, row: int) -> Tensor:
        one, other = (vector(model, x[row : row + 1])[0] for x in batches[number])
        return (keys[number] @ one).exp().sum().log() - one @ other

    assert_exact(model, losses, alone, SIZES, engine)


class Recurrent(nn.Module):
    """One step of a recurrence; the loop over time is the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.enter(x) + self.again(self.norm(state)))
        return self.leave(state), state


@engines
def test_a_loop_over_time_outside_of_the_model(engine: str, assert_exact: Any) -> None:
    model = Recurrent()
    batches = [torch.randn(size, 6, WIDTH) for size in SIZES]

    def run(x: Tensor) -> Tensor:
        state, total = torch.zeros(len(x), WIDTH), torch.zeros(len(x))
        for moment in x.unbind(1):
            output, state = model(moment, state)
            total = total + output.square().mean(1)
        return total

    assert_exact(
        model,
        lambda n: run(batches[n]),
        lambda n, row: run(batches[n][row : row + 1]).sum(),
        SIZES,
        engine,
    )


# --- evaluation in between ----------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("careless", [False, True], ids=["without a graph", "with a graph"])
def test_evaluation_between_and_within_steps(engine: str, careless: bool, lab: Any, reference: Any) -> None:
    """Other batches, of other sizes, in evaluation mode, before, within and after a step, leave no trace."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Dropout(0.5), nn.LayerNorm(6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )
    governor = lab.governor(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), engine=engine)

    def evaluate(size: int) -> None:
        model.eval()
        with torch.set_grad_enabled(careless):
            model(lab.inputs(size, seed=9)).sum()
        model.train()

    for step, kinds in enumerate(("abda", "ab", "aaacb")):
        inputs = lab.inputs(len(kinds), seed=step)
        evaluate(3)
        with governor.step(lab.batch(kinds, prefix=f"s{step}-")) as proposal:
            if not careless:
                evaluate(7)
            state = torch.get_rng_state()
            proposal_losses = lab.losses(model, inputs)
            evaluate(2)
            proposal.backward(proposal_losses)
            evaluate(5)
        assert proposal.committed, proposal.refusal
        have = {p: None if p.grad is None else p.grad.clone() for p in model.parameters()}
        governor.engine.disarm()
        torch.set_rng_state(state)
        losses = lab.losses(model, inputs)
        want = reference(losses, proposal.weights, list(governor.parameters.values()), float(len(kinds)))
        for parameter, gradient in want.items():
            assert (have[parameter] is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(have[parameter], gradient, rtol=1e-9, atol=1e-12)


# --- activation checkpointing -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=WORDS, max_position_embeddings=16, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return lambda: transformers.LlamaForCausalLM(config)


class Logits(nn.Module):
    """A library's language model, as a function from tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits


@engines
def test_checkpointing_of_a_library_changes_no_gradient(engine: str, llama: Any, lab: Any) -> None:
    """Hugging Face's `gradient_checkpointing_enable`: whole batches, parts by depth, blocks in parts."""
    gradients = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        model = llama().to(torch.float64)
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        governor = lab.governor(model=model, optimizer=optimizer, engine=engine, name=f"run{recompute}")
        generator = torch.Generator().manual_seed(1)
        for step, kinds in enumerate(("abdbba", "bbb", "abdbba")):
            x = torch.randint(WORDS, (len(kinds), 5), generator=generator)
            with governor.step(lab.batch(kinds, prefix=f"s{step}-")) as proposal:
                for part in proposal.depth_batches(2) if step == 2 else [slice(None)]:
                    proposal.backward(-log_likelihood(Logits(model), x[part]))
            assert proposal.committed, proposal.refusal
            gradients[recompute, step] = [p.grad for p in model.parameters()]
        governor.close()
    for step in range(3):
        for one, other in zip(gradients[False, step], gradients[True, step], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_reentrant_checkpointing_of_a_library_is_refused_with_its_remedy(llama: Any, lab: Any) -> None:
    model = llama().to(torch.float64)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    governor = lab.governor(model=model)
    x = tokens(4)
    with (
        pytest.warns(UserWarning, match="split"),
        pytest.raises(MaskError, match="reentrant") as caught,
        governor.step(lab.batch("abab")) as proposal,
    ):
        proposal.backward(-log_likelihood(Logits(model), x))
    assert "use_reentrant=False" in (caught.value.help or "")


# --- what a single backward pass cannot do ------------------------------------------------------------------


def penalised(model: nn.Module, x: Tensor) -> Tensor:
    """A loss with a penalty on the gradient of the score by the input, per example."""
    x = x.clone().requires_grad_()
    score = model(x).square().sum(1)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return score + slope.square().sum(1)


def smooth() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def test_gradient_penalties_are_exact_by_the_reference_engine(assert_exact: Any) -> None:
    model = smooth()
    batches = [torch.randn(size, 4) for size in SIZES]
    assert_exact(
        model,
        lambda n: penalised(model, batches[n]),
        lambda n, row: penalised(model, batches[n][row : row + 1]).sum(),
        SIZES,
        "split",
    )


@pytest.mark.parametrize("engine", ["fused", "auto"])
def test_gradient_penalties_are_refused_with_their_remedy_in_one_backward_pass(
    engine: str, bands_of: Any, some_weights: Any
) -> None:
    model = smooth()
    masks = make_engine(model, bands_of(model), engine)
    masks.arm(some_weights(4, 3, seed=1))
    with pytest.raises(MaskError, match="gradients of the model") as caught:
        penalised(model, torch.randn(4, 4))
    assert "split" in (caught.value.help or "")
    assert all(parameter.grad is None for parameter in model.parameters())
