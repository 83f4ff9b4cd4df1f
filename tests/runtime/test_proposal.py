"""A step that no gate may let through: it changes nothing, it is recorded, and training goes on."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwarden.runtime.errors import ExampleError, LedgerError, MaskError


class Restless(nn.Module):
    """A model whose forward pass draws from every generator, and writes and replaces its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1 + random.random() + np.random.random()
            self.scale = self.scale + 1.0
        hidden = nn.functional.dropout(self.first(inputs).tanh(), 0.5)
        return self.second(hidden)


@pytest.fixture(params=["fused", "split"])
def governor(lab, request) -> Any:
    """A run after one committed step, so that the optimizer has a state to lose."""
    torch.manual_seed(0)
    model = Restless()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    governor = lab.governor(model=model, optimizer=optimizer, engine=request.param)
    assert lab.step(governor, lab.batch("ab")).committed
    return governor


def attempt(lab, governor, kinds: str, spoil: Any = lambda losses: losses) -> Any:
    with governor.step(lab.batch(kinds, kinds)) as proposal:
        losses = spoil(lab.losses(governor.model, lab.inputs(len(kinds))))
        if losses is not None:
            proposal.backward(losses)
    return proposal


def not_finite(value: float) -> Any:
    return lambda losses: losses * torch.tensor([1.0, value], dtype=torch.float64)


def steep(losses: Tensor) -> Tensor:
    """Finite losses with an infinite gradient."""
    return losses + (losses - losses.detach()).abs().sqrt()


class QuarrelError(Exception):
    pass


def failing(losses: Tensor) -> Tensor:
    raise QuarrelError("the patient's name is Ann")


REFUSALS = {
    "loss": ("ab", not_finite(float("nan")), "gradient", "loss_not_finite"),
    "infinite loss": ("ab", not_finite(float("inf")), "gradient", "loss_not_finite"),
    "gradient": ("ab", steep, "gradient", "gradient_not_finite"),
    "no backward": ("ab", lambda losses: None, "gradient", "no_backward"),
    "nothing admitted": ("cC", lambda losses: losses, "admission", "nothing_admitted"),
    "empty batch": ("", lambda losses: None, "admission", "nothing_admitted"),
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_a_refused_step_changes_nothing_and_is_recorded(lab, governor, state_of, changes, cause):
    kinds, spoil, gate, reason = REFUSALS[cause]
    before = state_of(governor)
    proposal = attempt(lab, governor, kinds, spoil)
    assert not changes(before, state_of(governor))
    assert all(parameter.grad is None for parameter in governor.model.parameters())
    assert (proposal.committed, proposal.verdict, proposal.active) == (False, "refuse", ())
    assert (proposal.refusal.gate, proposal.refusal.reason) == (gate, reason)
    assert attempt(lab, governor, "ab").committed
    assert changes(before, state_of(governor))
    governor.close()
    (refused,) = lab.bodies("refused")
    assert (refused["step"], refused["gate"], refused["reason"]) == (1, gate, reason)
    report = lab.verify()
    assert report.ok
    assert (report.facts["committed"], report.facts["refused"]) == (2, 1)


def shouting(gradient: Tensor) -> None:
    if not gradient.isfinite().all():
        raise QuarrelError


def test_what_the_loop_has_watch_its_gradients_makes_no_noise_over_losses_that_are_refused(lab, governor):
    (hooked,) = governor.parameters["shallow"][:1]
    hook = hooked.register_hook(shouting)
    assert attempt(lab, governor, "ab", not_finite(float("nan"))).refusal.reason == "loss_not_finite"
    hook.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            proposal = attempt(lab, governor, "ab", not_finite(float("nan")))
    assert proposal.refusal.reason == "loss_not_finite"
    hooked.register_hook(lambda gradient: shouting(gradient / 0.0))
    with pytest.raises(QuarrelError):
        attempt(lab, governor, "ab")


def test_an_exception_in_the_block_refuses_the_step_passes_on_and_leaks_no_words(
    lab, governor, state_of, changes
):
    before = state_of(governor)
    with pytest.raises(QuarrelError, match="Ann"):
        attempt(lab, governor, "ab", failing)
    assert not changes(before, state_of(governor))
    assert attempt(lab, governor, "ab").committed
    governor.close()
    (refused,) = lab.bodies("refused")
    assert (refused["gate"], refused["reason"]) == ("gradient", "interrupted")
    assert "QuarrelError" in refused["detail"]
    assert "Ann" not in refused["detail"]
    assert lab.verify().ok


def test_an_exception_after_backward_undoes_the_gradient(lab, governor, state_of, changes):
    before = state_of(governor)

    def interrupted() -> None:
        with governor.step(lab.batch("ab", "ab")) as proposal:
            proposal.backward(lab.losses(governor.model, lab.inputs(2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not changes(before, state_of(governor))
    assert all(parameter.grad is None for parameter in governor.model.parameters())
    assert attempt(lab, governor, "ab").committed


def test_an_error_of_backward_that_the_caller_swallows_still_refuses_the_step(lab, governor):
    with governor.step(lab.batch("ab", "ab")) as proposal:
        losses = lab.losses(governor.model, lab.inputs(2))
        with pytest.raises(MaskError):
            proposal.backward(losses.detach())
    assert not proposal.committed
    assert proposal.refusal.gate == "gradient"
    assert attempt(lab, governor, "ab").committed


def test_the_step_after_a_refusal_is_the_step_that_would_have_been(lab):
    def run(name: str, *, disturbed: bool) -> Any:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        model = Restless()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        governor = lab.governor(model=model, optimizer=optimizer, name=name)
        attempt(lab, governor, "ab")
        if disturbed:
            attempt(lab, governor, "ab", not_finite(float("nan")))
        attempt(lab, governor, "ab")
        return model.state_dict()

    calm, disturbed = run("calm", disturbed=False), run("disturbed", disturbed=True)
    assert all(torch.equal(calm[name], disturbed[name]) for name in calm)


def test_rows_that_shape_nothing_may_hold_anything(lab, reference):
    governor = lab.governor(engine="split")
    inputs = lab.inputs(3)
    bands = [governor.parameters["shallow"], governor.parameters["deep"]]
    wanted = reference(lab.losses(governor.model, inputs), [(1, 1), (0, 0), (0.5, 0)], bands, 3)
    with governor.step(lab.batch("aCb")) as proposal:
        losses = lab.losses(governor.model, inputs)
        proposal.backward(losses + torch.tensor([0.0, float("nan"), 0.0]))
    assert proposal.committed
    for parameter, gradient in wanted.items():
        assert torch.allclose(parameter.grad, gradient, rtol=1e-9)


# --- a ledger that cannot be written ------------------------------------------------------------------------


def break_disk(governor) -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    governor.ledger._writer._file.write = full


def test_a_step_that_cannot_be_recorded_moves_nothing_and_nothing_follows_it(
    lab, governor, state_of, changes
):
    governor.ledger.flush()
    before = state_of(governor)
    ran = []

    def step() -> None:
        with governor.step(lab.batch("ab", "ab")) as proposal:
            ran.append(proposal)
            proposal.backward(lab.losses(governor.model, lab.inputs(2)))

    break_disk(governor)
    with pytest.raises(LedgerError, match="No space left"):
        step()
    assert not changes(before, state_of(governor))
    assert all(parameter.grad is None for parameter in governor.model.parameters())
    assert not any(proposal.committed for proposal in ran)
    for _ in range(2):
        with pytest.raises(LedgerError, match="No space left"):
            step()
    assert len(ran) <= 1
    assert not changes(before, state_of(governor))
    with pytest.raises(LedgerError):
        governor.close()


def test_a_ledger_that_breaks_within_the_step_refuses_it(lab, governor, state_of, changes):
    governor.ledger.flush()
    before = state_of(governor)

    def step() -> None:
        with governor.step(lab.batch("ab", "ab")) as proposal:
            proposal.backward(lab.losses(governor.model, lab.inputs(2)))
            governor.ledger.flush()
            break_disk(governor)
            governor.joined.recorder.event("expired", {"step": 1, "rule": "r", "count": 0})
            with pytest.raises(LedgerError):
                governor.ledger.flush()

    with pytest.raises(LedgerError):
        step()
    assert not changes(before, state_of(governor))


def test_an_optimizer_that_fails_ends_the_run_without_an_outcome(lab):
    governor = lab.governor()

    def fail() -> None:
        raise RuntimeError("out of memory")

    stock, governor.optimizer.step = governor.optimizer.step, fail
    with pytest.raises(RuntimeError, match="out of memory"):
        lab.step(governor, lab.batch("ab"))
    governor.optimizer.step = stock
    with pytest.raises(LedgerError, match="closed"):
        lab.step(governor, lab.batch("ab"))
    assert [entry.kind for entry in lab.entries()][-2:] == ["step", "head"]
    assert lab.verify().status == "INCOMPLETE"
    with lab.governor() as again:
        assert lab.step(again, lab.batch("ab")).committed
    assert lab.verify().ok


# --- misuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reshape", [lambda v: v.mean(), lambda v: v[:1], lambda v: v[:, None], lambda v: torch.cat([v, v])]
)
def test_losses_of_another_shape_are_refused_with_a_remedy(lab, governor, state_of, changes, reshape):
    before = state_of(governor)
    with pytest.raises(MaskError, match=r"shape \[2\]") as caught:
        attempt(lab, governor, "ab", reshape)
    assert "view(B, -1)" in caught.value.help
    assert not changes(before, state_of(governor))
    assert attempt(lab, governor, "ab").committed


def test_backward_twice_is_refused(lab, governor):
    def twice() -> None:
        with governor.step(lab.batch("ab", "ab")) as proposal:
            losses = lab.losses(governor.model, lab.inputs(2))
            proposal.backward(losses)
            proposal.backward(losses)

    with pytest.raises(MaskError, match="twice"):
        twice()
    assert governor.refused == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_micro_batch_without_examples_is_refused(lab, governor, size):
    with pytest.raises(MaskError, match="at least one"), governor.step(lab.batch("ab", "ab")) as proposal:
        next(proposal.micro_batches(size))


@pytest.mark.parametrize("bad", ["e0", b"e0", {"id": "e0"}, 7, [7], [{"kind": "a"}], [("e0",)], [{"id": 3}]])
def test_what_is_no_batch_is_refused_before_anything_is_recorded(lab, governor, bad):
    size = len(governor.ledger)
    with pytest.raises(ExampleError), governor.step(bad):
        pytest.fail("the block must not run")
    assert len(governor.ledger) == size
    assert attempt(lab, governor, "ab").committed


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [("aa", "admit"), ("ab", "limit"), ("aC", "limit"), ("bb", "limit"), ("C", "refuse")],
)
def test_the_verdict_says_what_happened(lab, kinds, verdict):
    governor = lab.governor()
    assert attempt(lab, governor, kinds).verdict == verdict
    governor.close()
    assert lab.bodies("step")[0]["verdict"] == verdict


def test_every_example_is_recorded_with_its_weights_and_the_rules_that_bore_on_it(lab):
    """Admitted, masked, weighed less, refused and invalid; and so in a step that is refused as a whole."""
    rules = "signals { calm : number 0..1 default 1 }\n"
    rules += "modulate m { when kind == d  scale deep by calm from 1 to 0 }\n"
    governor = lab.governor(lab.policy + rules)
    examples = [*lab.batch("abdcC"), lab.example("x") | {"kind": 7}]
    calm = [1.0, 1.0, 0.75, 1.0, 1.0, 1.0]
    assert lab.step(governor, examples, signals={"calm": calm}).committed
    assert not lab.step(governor, examples[3:]).committed
    governor.close()
    declared = {entry["id"]: entry for body in lab.bodies("decisions") for entry in body["decisions"]}
    said = [
        [(declared[n]["verdict"], declared[n]["weights"], declared[n]["rules"]) for n in body["decision"]]
        for body in lab.bodies("step")
    ]
    nothing = [("refuse", [0, 0], []), ("refuse", [0, 0], ["no"]), ("invalid", [0, 0], [])]
    assert said == [
        [
            ("admit", [1_000_000, 1_000_000], ["a"]),
            ("limit", [500_000, 0], ["b"]),
            ("limit", [0, 62_500], ["d", "m"]),
            *nothing,
        ],
        nothing,
    ]
    recorded = [[1_000_000, 1_000_000, 750_000, *3 * [1_000_000]], 3 * [1_000_000]]
    assert [body["signals"]["calm"] for body in lab.bodies("step")] == recorded
    assert [body["reason"] for body in lab.bodies("refused")] == ["nothing_admitted"]
    (invalid,) = (c for body in lab.bodies("classes") for c in body["classes"] if c.get("problems"))
    assert "kind" in str(invalid["problems"])


@pytest.mark.parametrize("count", [255, 257, 1_000, 1_700])
def test_a_large_batch_is_recorded_whole(lab, count):
    rules = "signals { loss_ratio : number 0..10 default 1  calm : number 0..1 default 0.5 }\n"
    rules += "modulate m { scale deep by calm from 1 to 0.25 }\n"
    rules += "memorization g { when loss_ratio < 0.1  cap deep at 0 }\n"
    rules += "retain r { when kind == a and has gone  until gone  at most 90 exposures }\n"
    governor = lab.governor(lab.policy + rules)
    kinds = ("abcd" * count)[:count]
    examples = [lab.example(f"e{i}", kind, gone="2026-03-01") for i, kind in enumerate(kinds)]
    calm = np.linspace(0, 1, count)
    for _ in range(2):
        assert lab.step(governor, examples, signals={"calm": calm}).committed
    governor.close()
    report = lab.verify()
    assert report.ok
    assert report.facts["decisions_replayed"] == 2 * count


def test_a_batch_that_no_entry_can_hold_is_refused_and_the_run_goes_on(lab):
    governor = lab.governor(
        lab.policy + "signals { loss_ratio : number 0..10 default 1 }\n"
        "memorization g { when loss_ratio < 0.1  cap deep at 0 }\n"
    )
    names = [lab.example(f"e{i}") for i in range(20_000)]
    with pytest.raises(LedgerError, match="20,000 examples"), governor.step(names):
        pytest.fail("the block must not run")
    assert lab.step(governor, names[:10]).committed
    governor.close()
    assert lab.verify().ok
