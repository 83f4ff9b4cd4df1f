"""Compiled models: exact, or an error, whenever and however they were compiled; never silently wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config

from gradwarden.runtime.batching.packing import mean_by_document, pack
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import make_engine

pytestmark = pytest.mark.usefixtures("double")

SIZE = 5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Compile anew, graphs that may be differentiated several times."""
    torch.compiler.reset()
    with functorch_config.patch(donated_buffer=False):
        yield
    torch.compiler.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x)).sin()))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h).cos()
        return self.head(h)


def blocks(model: nn.Module, **options: Any) -> nn.Module:
    for block in model.blocks:
        block.compile(**options)
    return model


def in_place(model: nn.Module, **options: Any) -> nn.Module:
    model.compile(**options)
    return model


WAYS: dict[str, Callable[..., Any]] = {"wrapped": torch.compile, "in place": in_place, "blocks": blocks}
MOMENTS = ["before the engine", "and run before the engine", "after the engine"]

EVERY_TIME = {
    ("fused", "wrapped", "after the engine"),
    ("fused", "in place", "and run before the engine"),
    ("fused", "blocks", "before the engine"),
    ("split", "wrapped", "and run before the engine"),
}
"""Each way, moment and engine; compilation is slow, so the other combinations are left to long runs."""


def combinations() -> Iterator[Any]:
    for engine, way in [*(("fused", way) for way in WAYS), ("split", "wrapped")]:
        for moment in MOMENTS:
            often = (engine, way, moment) in EVERY_TIME
            yield pytest.param(engine, way, moment, marks=() if often else pytest.mark.soak)


@pytest.mark.parametrize(("engine", "way", "moment"), combinations())
def test_a_compiled_model_is_exact(
    way: str, moment: str, engine: str, bands_of: Any, some_weights: Any, by_definition: Any, worst_error: Any
) -> None:
    """A graph made without an engine is not used with one, and one made under a plan not under another."""
    model = Net()
    plain, bands = copy.deepcopy(model), bands_of(model)
    call: Any = model
    if moment != "after the engine":
        call = WAYS[way](model, backend="aot_eager")
    if moment == "and run before the engine":
        call(torch.randn(SIZE, 4)).sum().backward()
    masks = make_engine(model, bands, engine)
    if moment == "after the engine":
        call = WAYS[way](model, backend="aot_eager")
    for step in range(4):
        x = torch.randn(SIZE, 4)
        weights = some_weights(SIZE, 3, seed=step, closed=2 if step == 2 else None)
        want = by_definition(plain, bands, weights, lambda row, x=x: plain(x[row][None]).square().sum())
        model.zero_grad(set_to_none=True)
        masks.arm(weights)
        masks.backward(call(x).square().sum(1), 1.0)
        assert worst_error(model, want) <= 1e-9
    assert masks.name == engine


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "blocks" else pytest.mark.soak) for way in WAYS]
)
def test_a_compiled_model_is_exact_whatever_plan_comes_after_which(
    way: str, bands_of: Any, some_weights: Any, by_definition: Any, worst_error: Any
) -> None:
    """Without a plan and under full weights, whole graphs are run; they may not be where weights differ."""
    model = Net()
    plain, bands = copy.deepcopy(model), bands_of(model)
    masks = make_engine(model, bands, "fused")
    call = WAYS[way](model, backend="aot_eager")
    full = torch.ones(SIZE, 3)
    for step, kind in enumerate(
        ["full", "other", "none", "full", "watched", "other", "none", "other", "full"]
    ):
        x = torch.randn(SIZE, 4)
        weights = some_weights(SIZE, 3, seed=step) if kind == "other" else full
        want = by_definition(plain, bands, weights, lambda row, x=x: plain(x[row][None]).square().sum())
        model.zero_grad(set_to_none=True)
        if kind == "none":
            call(x).square().sum().backward()
        else:
            masks.arm(weights)
            losses = call(x).square().sum(1)
            with torch.no_grad():
                torch.testing.assert_close(call(x), plain(x), rtol=1e-9, atol=1e-9)
            masks.backward(losses, 1.0)
        masks.disarm()
        assert worst_error(model, want) <= 1e-9


def counted(run: Callable[[], Any]) -> tuple[int, int]:
    """The operations that are compiled in a run, and the breaks between them."""
    counters.clear()
    run()
    return counters["stats"]["calls_captured"], sum(counters["graph_break"].values())


def test_where_the_graph_breaks(bands_of: Any, some_weights: Any) -> None:
    """Nowhere but at the governor's hook where no weight matters; else at every governed layer and block."""
    model, x = Net(), torch.randn(SIZE, 4)
    bare = counted(lambda: torch.compile(copy.deepcopy(model), backend="aot_eager")(x).sum().backward())
    masks = make_engine(model, bands_of(model), "fused")
    call = torch.compile(model, backend="aot_eager")

    def step(weights: Tensor) -> None:
        masks.arm(weights)
        masks.backward(call(x).square().sum(1), 1.0)

    step(some_weights(SIZE, 3))  # the engine tries the model in the first one
    torch.compiler.reset()
    assert counted(lambda: step(torch.ones(SIZE, 3))) == (bare[0], 1)
    torch.compiler.reset()
    captured, breaks = counted(lambda: step(some_weights(SIZE, 3)))
    assert captured < bare[0]
    assert breaks > len(model.blocks)
    masks.disarm()
    torch.compiler.reset()
    with torch.no_grad():
        assert counted(lambda: call(x)) == (bare[0], 1)


def test_a_graph_that_can_be_differentiated_once_is_refused_where_it_must_be_twice(
    bands_of: Any,
) -> None:
    model = Net()
    masks = make_engine(model, bands_of(model), "split")
    call = in_place(model, backend="aot_eager")
    masks.arm(torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    with functorch_config.patch(donated_buffer=True), pytest.raises(MaskError, match="only once") as caught:
        masks.backward(call(torch.randn(3, 4)).square().sum(1), 1.0)
    assert "donated_buffer" in (caught.value.help or "")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_packed_sequences_in_a_compiled_model(
    bands_of: Any, some_weights: Any, by_definition: Any, worst_error: Any
) -> None:
    model = nn.Sequential(nn.Embedding(9, 8), Block(), Block(), nn.Linear(8, 3))
    plain, bands = copy.deepcopy(model), bands_of(model)
    masks = make_engine(model, bands, "fused")
    call = torch.compile(model, backend="aot_eager")
    for step in range(3):
        texts = [torch.randint(9, (length,)) for length in (4, 3, 5, 2, 4)]
        tokens, documents = pack(texts, 9)
        weights = some_weights(SIZE, 3, seed=step)
        want = by_definition(
            plain, bands, weights, lambda row, texts=texts: plain(texts[row][None]).square().mean()
        )
        model.zero_grad(set_to_none=True)
        masks.arm(weights, documents)
        masks.backward(mean_by_document(call(tokens).square().mean(2), documents, SIZE), 1.0)
        assert worst_error(model, want) <= 1e-9


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_may_not_break_refuses_the_step(way: str, lab: Any, state_of: Any, changes: Any) -> None:
    """`fullgraph` forbids what an engine needs: torch says so, and the step is a refusal on record."""
    model = Net()
    governor = lab.governor(model=model, engine="fused")
    call = WAYS[way](model, backend="eager", fullgraph=True)
    before = state_of(governor)
    with pytest.raises(Exception, match="disable"), governor.step(lab.batch("abdab")) as proposal:
        proposal.backward(call(lab.inputs(SIZE)).square().sum(1))
    assert not proposal.committed
    assert changes(before, state_of(governor)) == []
    governor.ledger.flush()
    assert len(lab.bodies("refused")) == 1


def test_a_wrapped_model_may_be_given_to_the_governor(lab: Any, reference: Any) -> None:
    """Its map has the wrapper's names; what is trained is the model within."""
    model = Net()
    wrapped = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    governor = lab.governor(model=wrapped, optimizer=optimizer, engine="fused")
    inputs = lab.inputs(SIZE)
    with governor.step(lab.batch("abdCb")) as proposal:
        proposal.backward(wrapped(inputs).square().sum(1))
    assert proposal.committed, proposal.refusal
    have = {p: None if p.grad is None else p.grad.clone() for p in model.parameters()}
    governor.engine.disarm()
    bands = list(governor.parameters.values())
    for parameter, want in reference(model(inputs).square().sum(1), proposal.weights, bands, 5.0).items():
        torch.testing.assert_close(have[parameter], want, rtol=1e-9, atol=1e-12)
