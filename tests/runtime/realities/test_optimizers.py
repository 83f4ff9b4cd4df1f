"""Every optimizer of torch that a governor takes, in each of its implementations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "adafactor foreach": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.1),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, fused=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1, weight_decay=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True, foreach=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.1)

engines = pytest.mark.parametrize("engine", ["fused", "split"])


def net() -> nn.Sequential:
    """Matrices alone, as Muon wants them. Layer 0 is `deep`, layers 2 and 4 are `shallow`."""
    torch.manual_seed(0)
    layers = (nn.Linear(*sizes, bias=False) for sizes in ((4, 6), (6, 5), (5, 3)))
    one, two, three = layers
    return nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), three).double()


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A copy of what an optimizer remembers of a parameter."""
    return {name: copy.deepcopy(torch.as_tensor(v)) for name, v in optimizer.state[parameter].items()}


@engines
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_closed_band_keeps_its_bits_and_its_state_and_goes_on_as_if_no_time_had_passed(
    lab: Any, engine: str, kind: str
) -> None:
    """Two steps, three that the deep band is closed in, two more: as four steps without the three, for it."""
    found = {}
    for name, kinds in (("closed", "aabbbaa"), ("never", "aaaa")):
        model = net()
        optimizer = OPTIMIZERS[kind](model.parameters())
        governor = lab.governor(model=model, optimizer=optimizer, engine=engine, name=name)
        deep = model[0].weight
        for step, letter in enumerate(kinds):
            before = (deep.detach().clone(), state_of(optimizer, deep))
            with governor.step(lab.batch(letter * 3, prefix=f"s{step}-")) as proposal:
                # The gradient of the deep band, so that what the others have done meanwhile is left out.
                losses = (model(lab.inputs(3)) - lab.inputs(3)[:, :3]).square().sum(1)
                direct = (deep * torch.arange(24.0).view(6, 4).cos()).sum() * torch.tensor([1.0, 2.0, 3.0])
                proposal.backward(losses.detach() * 0 + direct + 0 * losses if letter == "a" else losses)
            assert proposal.committed, proposal.refusal
            if letter == "b":
                assert torch.equal(deep, before[0])
                after = state_of(optimizer, deep)
                assert after.keys() == before[1].keys()
                assert all(torch.equal(after[key], value) for key, value in before[1].items())
            else:
                assert not torch.equal(deep, before[0])
        found[name] = (deep.detach().clone(), state_of(optimizer, deep))
        governor.close()
    assert torch.equal(found["closed"][0], found["never"][0])
    assert all(torch.equal(value, found["never"][1][key]) for key, value in found["closed"][1].items())


@engines
@pytest.mark.parametrize("kind", ["adamw fused", "adafactor", "sgd foreach"])
def test_full_weights_are_plain_training(lab: Any, engine: str, kind: str) -> None:
    plain, governed = net(), net()
    optimizer = OPTIMIZERS[kind](plain.parameters())
    governor = lab.governor(model=governed, optimizer=OPTIMIZERS[kind](governed.parameters()), engine=engine)
    for step in range(4):
        inputs = lab.inputs(4, seed=step)
        optimizer.zero_grad()
        lab.losses(plain, inputs).mean().backward()
        optimizer.step()
        with governor.step(lab.batch("aaaa", prefix=f"s{step}-")) as proposal:
            proposal.backward(lab.losses(governed, inputs))
    for one, other in zip(plain.parameters(), governed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@engines
def test_one_optimizer_may_have_groups_and_schedules(lab: Any, engine: str) -> None:
    """Learning rates by group and by step are the user's, and a refused step is none of the schedule's."""
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2:].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    governor = lab.governor(model=model, optimizer=optimizer, engine=engine)
    for step, letter in enumerate("aca"):  # nobody may learn from `c`
        with governor.step(lab.batch(letter * 2, prefix=f"s{step}-")) as proposal:
            proposal.backward(lab.losses(model, lab.inputs(2)))
        if proposal.committed:
            schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025, 0.025]


@engines
def test_sparse_gradients_of_embeddings(lab: Any, engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    governor = lab.governor(model=model, optimizer=optimizer, engine=engine, clip_norm=0.05)
    ids = torch.tensor([[1, 2], [3, 3], [4, 1]])
    losses = model(ids).square().sum(1)
    want = torch.autograd.grad((losses * torch.tensor([1.0, 0.25, 0.0])).sum() / 3, model[0].weight)[0]
    with governor.step(lab.batch("adb")) as proposal:
        proposal.backward(model(ids).square().sum(1))
    assert proposal.committed
    have = model[0].weight.grad
    assert have.is_sparse
    scale = float(have.to_dense().norm() / want.to_dense().norm())
    torch.testing.assert_close(have.to_dense(), want.to_dense() * scale, rtol=1e-9, atol=0)
    assert sum(norm**2 for norm in proposal.norms.values()) ** 0.5 == pytest.approx(0.05, rel=1e-9)
    with governor.step(lab.batch("bb", prefix="f")) as proposal:
        proposal.backward(model(ids[:2]).square().sum(1))
    assert proposal.committed
    assert model[0].weight.grad is None
