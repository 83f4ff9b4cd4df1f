"""Governed training on every device that is there decides, learns and records as on the processor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.runtime import Privacy
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ENGINES = ["fused", "split"]

PRIVATE = """
depth all_d { when kind == d  reach shallow at 0.5 }
privacy quiet { when kind == d and has who  within shallow  epsilon 2  delta 1e-5  clip 0.3  unit who }
"""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def train(lab: Any, device: torch.device, engine: str, name: str, **options: Any) -> dict[str, Tensor]:
    """Train three steps; return the parameters on the processor."""
    model = lab.model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with lab.governor(
        options.pop("text", lab.policy), model, optimizer, name=name, engine=engine, **options
    ) as governor:
        for step, kinds in enumerate(["aabbcA", "bbb", "ccA"]):
            with governor.step(lab.batch(kinds, prefix=f"{step}-")) as proposal:
                inputs = lab.inputs(len(proposal.rows), step).to(device)
                proposal.backward(lab.losses(model, inputs))
    return {key: parameter.detach().cpu() for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_learns_what_the_processor_learns(lab: Any, device: torch.device, engine: str) -> None:
    expected = train(lab, torch.device("cpu"), "split", "reference")
    for name, parameter in train(lab, device, engine, "run").items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-9, atol=1e-11)
    assert lab.verify("run").status == "OK"
    decided = [(b["classes"], b["decision"], b["verdict"]) for b in lab.bodies("step", "run")]
    assert decided == [(b["classes"], b["decision"], b["verdict"]) for b in lab.bodies("step", "reference")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_band_that_nobody_reaches_stays_bitwise_as_it_was(
    lab: Any, device: torch.device, engine: str
) -> None:
    model = lab.model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    with lab.governor(model=model, optimizer=optimizer, engine=engine) as governor:
        for kinds in ("aa", "bb"):
            before = copy.deepcopy(model[0].state_dict())
            with governor.step(lab.batch(kinds, prefix=kinds)) as proposal:
                proposal.backward(lab.losses(model, lab.inputs(2).to(device)))
    assert all(torch.equal(model[0].state_dict()[name], tensor) for name, tensor in before.items())
    assert proposal.verdict == "limit"


def test_a_refused_step_leaves_the_devices_generator_as_it_was(lab: Any, device: torch.device) -> None:
    model = nn.Sequential(*lab.model(), nn.Dropout(0.5)).to(device)
    get_state = torch.cuda.get_rng_state if device.type == "cuda" else torch.get_rng_state
    with lab.governor(model=model) as governor:
        before, weights = get_state(), copy.deepcopy(model.state_dict())
        with governor.step(lab.batch("ab")) as proposal:
            losses = lab.losses(model, lab.inputs(2).to(device))
            proposal.backward(losses * float("nan"))
        assert proposal.verdict == "refuse"
        assert torch.equal(get_state(), before)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_private_examples_are_clipped_and_noised_alike(lab: Any, device: torch.device, engine: str) -> None:
    text = lab.policy + PRIVATE
    examples = [lab.example("p"), lab.example("x", "d", who="ann"), lab.example("y", "d", who="bob")]

    def run(where: torch.device, name: str) -> list[Tensor]:
        model = lab.model().to(where)
        plan = JointPlan.for_noise(privacy_rules(lab.program(text)), 0.01, noise_multiplier=4.0)
        privacy = Privacy(plan, on_trust=["sampling"], noise_seed=11)
        options: dict[str, Any] = {"privacy": privacy, "normaliser": 4.0, "engine": engine}
        with lab.governor(text, model, name=name, **options) as governor, governor.step(examples) as proposal:
            proposal.backward(lab.losses(model, lab.inputs(3).to(where)))
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for got, expected in zip(run(device, "run"), run(torch.device("cpu"), "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert lab.verify("run").status == "OK"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_default_device_of_the_callers_changes_nothing(lab: Any, engine: str) -> None:
    """`meta` holds no values: whatever was made there by mistake would spoil the step."""
    text = lab.policy + PRIVATE
    batches = [lab.batch(kinds, f"{step}-") for step, kinds in enumerate(["aabbcA", "bbb", "ccA"])]
    batches.append([lab.example("x", "d", who="ann"), lab.example("p")])
    inputs = [lab.inputs(len(examples), seed) for seed, examples in enumerate(batches)]

    def run(default: str | None, name: str) -> list[Tensor]:
        model = lab.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # AdamW makes tensors of its own
        plan = JointPlan.for_noise(privacy_rules(lab.program(text)), 0.01, noise_multiplier=4.0)
        privacy = Privacy(plan, on_trust=["sampling"], noise_seed=11)
        options: dict[str, Any] = {"privacy": privacy, "normaliser": 4.0, "engine": engine}
        torch.set_default_device(default)
        try:
            with lab.governor(text, model, optimizer, name=name, **options) as governor:
                for examples, x in zip(batches, inputs, strict=True):
                    with governor.step(examples) as proposal:
                        proposal.backward(lab.losses(model, x[: len(proposal.rows)]))
        finally:
            torch.set_default_device(None)
        return [parameter.detach() for parameter in model.parameters()]

    for got, expected in zip(run("meta", "run"), run(None, "reference"), strict=True):
        assert torch.equal(got, expected)
    assert lab.verify("run").status == "OK"
