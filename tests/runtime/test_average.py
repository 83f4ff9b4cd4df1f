"""A band that a step does not reach keeps its bits: in the moving average, and under the optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradwarden.policy.program import Band
from gradwarden.runtime.average import GovernedAverage
from gradwarden.runtime.errors import MaskError

BANDS = (Band("shallow", (), ("1.weight", "1.bias")), Band("deep", (), ("0.weight", "0.bias")))


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def train_shallow(net: nn.Sequential, optimizer: torch.optim.Optimizer, deep: bool = False) -> None:
    """Take one step that reaches the shallow band, and the deep one on request."""
    optimizer.zero_grad(set_to_none=True)
    net(torch.ones(1, 3)).square().sum().backward()
    if not deep:
        for parameter in net[0].parameters():
            parameter.grad = None
    optimizer.step()


def test_the_average_follows_the_formula_for_active_bands():
    net = model()
    average = GovernedAverage(net, BANDS, decay=0.75)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net[1].weight.add_(1.0)
    average.update(["shallow"])
    torch.testing.assert_close(
        average.state_dict()["1.weight"], 0.75 * before["1.weight"] + 0.25 * (before["1.weight"] + 1.0)
    )


def test_an_inactive_band_keeps_its_bits_though_the_parameter_differs_from_its_average():
    net = model()
    average = GovernedAverage(net, BANDS, decay=0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    kept = average.state_dict()
    for _ in range(5):
        average.update({"shallow"})
    now = average.state_dict()
    assert torch.equal(now["0.weight"], kept["0.weight"])
    assert torch.equal(now["0.bias"], kept["0.bias"])
    assert not torch.equal(now["1.weight"], kept["1.weight"])


def test_the_averages_stand_in_for_the_length_of_a_block_even_when_it_fails():
    net = model()
    average = GovernedAverage(net, BANDS, decay=0.9)
    averaged = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    trained = net[0].weight.detach().clone()

    def fail_inside() -> None:
        with average.applied():
            assert torch.equal(net[0].weight, averaged)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail_inside()
    assert torch.equal(net[0].weight, trained)


def test_a_saved_average_is_restored_bit_for_bit():
    net = model()
    first = GovernedAverage(net, BANDS, decay=0.5)
    with torch.no_grad():
        net[0].weight.add_(0.3)
    first.update(["deep"])
    second = GovernedAverage(net, BANDS, decay=0.5)
    second.load_state_dict(first.state_dict())
    saved, restored = first.state_dict(), second.state_dict()
    assert all(torch.equal(saved[name], restored[name]) for name in saved)


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    average = GovernedAverage(model(), BANDS, decay=0.5)
    kept = average.state_dict()
    with pytest.raises(MaskError, match=r"0\.bias"):
        average.load_state_dict({name: value for name, value in kept.items() if name != "0.bias"})
    with pytest.raises(MaskError, match="another shape"):
        average.load_state_dict(
            {name: value + 1 if value.dim() > 1 else value[:1] for name, value in kept.items()}
        )
    assert all(torch.equal(value, kept[name]) for name, value in average.state_dict().items())


def test_a_tied_parameter_may_go_by_either_name():
    net = model()
    net.add_module("2", nn.Linear(4, 2))
    net[2].weight = net[1].weight
    average = GovernedAverage(net, (Band("shallow", (), ("2.weight",)),), decay=0.5)
    assert torch.equal(average.state_dict()["2.weight"], net[1].weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_makes_no_average_is_refused(decay):
    with pytest.raises(MaskError, match="decay"):
        GovernedAverage(model(), BANDS, decay)


def test_a_band_of_another_model_is_refused():
    with pytest.raises(MaskError, match="`nowhere`"):
        GovernedAverage(model(), (Band("shallow", (), ("nowhere",)),), 0.5)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.5}),
    ],
)
def test_a_parameter_without_a_gradient_keeps_its_bits_and_its_optimizer_state(kind, options, foreach):
    net = model()
    optimizer = kind(net.parameters(), foreach=foreach, **options)
    train_shallow(net, optimizer, deep=True)  # gives the deep band momentum that would carry it on
    kept = [p.detach().clone() for p in net[0].parameters()]
    state = [
        {name: torch.as_tensor(value).clone() for name, value in optimizer.state[p].items()}
        for p in net[0].parameters()
    ]
    shallow = net[1].weight.detach().clone()
    for _ in range(10):
        train_shallow(net, optimizer)
    assert not torch.equal(net[1].weight, shallow)
    for parameter, before, memory in zip(net[0].parameters(), kept, state, strict=True):
        assert torch.equal(parameter, before)
        assert all(torch.equal(torch.as_tensor(optimizer.state[parameter][k]), v) for k, v in memory.items())
