"""Private examples under a governor: confined, clipped per unit, noised, paid for, seen by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from gradwarden.cli.app import cli
from gradwarden.runtime import Privacy
from gradwarden.runtime.errors import BudgetHalt, PrivacyError
from gradwarden.runtime.privacy import accounting
from gradwarden.runtime.privacy.accounting import JointPlan, epsilon, privacy_rules, steps_within
from gradwarden.runtime.privacy.budget import BudgetBook
from gradwarden.runtime.privacy.noise import FastNoise
from gradwarden.runtime.verification import budget_audit

ENGINES = ["fused", "split"]
CLIP = 0.3
NORMALISER = 4.0
SEED = 11

PRIVATE = f"""
depth all_d {{ when kind == d  reach shallow at 0.5 }}
privacy quiet {{ when kind == d and has who  within shallow  epsilon 2  delta 1e-5  clip {CLIP}  unit who }}
"""


def patient(lab, name: str, who: str = "ann") -> dict[str, Any]:
    return lab.example(name, "d", who=who)


def plan_of(lab, text: str, **options: Any) -> JointPlan:
    return JointPlan.for_noise(privacy_rules(lab.program(text)), 0.01, **{"noise_multiplier": 4.0, **options})


@pytest.fixture
def text(lab) -> str:
    return lab.policy + PRIVATE


def open_run(lab, text: str, engine: str = "auto", plan: JointPlan | None = None, **options: Any) -> Any:
    plan = plan_of(lab, text) if plan is None else plan
    private = {name: options.pop(name) for name in ("noise_seed", "secure_noise") if name in options}
    privacy = Privacy(plan, **{"noise_seed": SEED, "on_trust": ["sampling"], **private})
    return lab.governor(text, privacy=privacy, engine=engine, **{"normaliser": NORMALISER, **options})


def noise_of(parameters: list[Tensor], sigma: float, steps: int = 1) -> list[Tensor]:
    """The noise of the last of some steps, drawn as the governor draws it."""
    source, count = FastNoise(SEED), sum(p.numel() for p in parameters)
    for _ in range(steps):
        drawn = torch.from_numpy(source.reserve(count, parameters[0].dtype)())
    parts = drawn.split([p.numel() for p in parameters])
    return [part.view(p.shape) * sigma for p, part in zip(parameters, parts, strict=True)]


def clipped(lab, governor, rows: list[int], weights: list[float], inputs: Tensor) -> list[Tensor]:
    """The clipped gradient of one unit by hand, over the shallow band."""
    parameters = list(governor.parameters["shallow"])
    losses = lab.losses(governor.model, inputs)
    total = sum(weight * losses[row] for row, weight in zip(rows, weights, strict=True))
    gradients = torch.autograd.grad(total, parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * min(1.0, CLIP / float(norm)) for g in gradients]


# --- the private gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_is_the_public_sum_plus_the_clipped_and_noised_private_sum(lab, text, reference, engine):
    governor = open_run(lab, text, engine)
    examples = [
        lab.example("p", "a"), patient(lab, "x1"), patient(lab, "y", "bob"), patient(lab, "x2"),
        lab.example("q", "b"), lab.example("out", "c"),
    ]  # fmt: skip
    inputs = lab.inputs(6)
    shallow, deep = governor.parameters["shallow"], governor.parameters["deep"]
    public = reference(
        lab.losses(governor.model, inputs),
        [(1, 1), (0, 0), (0, 0), (0, 0), (0.5, 0), (0, 0)],
        [shallow, deep],
        NORMALISER,
    )
    ann = clipped(lab, governor, [1, 3], [0.5, 0.5], inputs)
    bob = clipped(lab, governor, [2], [0.5], inputs)
    noise = noise_of(list(shallow), sigma=4.0 * CLIP)
    proposal = lab.step(governor, examples)
    assert proposal.committed
    for number, parameter in enumerate(shallow):
        wanted = public[parameter] + (ann[number] + bob[number] + noise[number]) / NORMALISER
        assert torch.allclose(parameter.grad, wanted, rtol=1e-9, atol=1e-12)
    for parameter in deep:
        assert torch.allclose(parameter.grad, public[parameter], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_private_examples_alone_leave_every_other_band_as_it_was(lab, text, state_of, changes, engine):
    model = lab.model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    governor = open_run(lab, text, engine, model=model, optimizer=optimizer)
    lab.step(governor, [lab.example("p")])
    before = state_of(governor)
    proposal = lab.step(governor, [patient(lab, "x")])
    assert proposal.active == ("shallow",)
    moved = changes(before, state_of(governor))
    assert {"2.weight", "4.bias"} <= set(moved)
    assert not {"0.weight", "0.bias", "optimizer 0 exp_avg", "optimizer 1 step"} & set(moved)


@pytest.mark.parametrize("kinds", ["", "C", "b"])
def test_a_step_without_private_examples_is_noised_and_paid_for_all_the_same(lab, text, reference, kinds):
    governor = open_run(lab, text)
    shallow = list(governor.parameters["shallow"])
    public = reference(
        lab.losses(governor.model, lab.inputs(len(kinds))),
        [(0.5, 0.0) if kind == "b" else (0.0, 0.0) for kind in kinds],
        [shallow],
        NORMALISER,
    )
    noise = noise_of(shallow, 4.0 * CLIP)
    with governor.step(lab.batch(kinds)) as proposal:
        if kinds:
            proposal.backward(lab.losses(governor.model, lab.inputs(len(kinds))))
    assert proposal.committed
    assert proposal.active == ("shallow",)
    for parameter, drawn in zip(shallow, noise, strict=True):
        direct = 0.0 if public[parameter] is None else public[parameter]
        assert torch.allclose(parameter.grad, direct + drawn / NORMALISER, rtol=1e-9, atol=1e-12)
    governor.close()
    assert lab.bodies("committed")[0]["privacy"]["quiet"]["steps"] == 1
    assert lab.verify().ok


def test_noise_is_fresh_in_every_step(lab, text):
    governor = open_run(lab, text)
    shallow = list(governor.parameters["shallow"])
    for steps in (1, 2, 3):
        with governor.step([]) as proposal:
            pass
        assert proposal.committed
        for parameter, drawn in zip(shallow, noise_of(shallow, 4.0 * CLIP, steps), strict=True):
            assert torch.equal(parameter.grad, drawn / NORMALISER)


def test_a_private_sum_is_added_once(lab, text):
    governor = open_run(lab, text)
    shallow = list(governor.parameters["shallow"])
    assert lab.step(governor, [patient(lab, "x")]).committed
    with governor.step([]) as proposal:
        pass
    assert proposal.committed
    for parameter, drawn in zip(shallow, noise_of(shallow, 4.0 * CLIP, steps=2), strict=True):
        assert torch.equal(parameter.grad, drawn / NORMALISER)


def test_every_band_of_within_is_noised_alike(lab, text):
    governor = open_run(lab, text.replace("within shallow", "within shallow, deep"))
    with governor.step([]) as proposal:
        pass
    assert proposal.active == ("shallow", "deep")
    parameters = [*governor.parameters["shallow"], *governor.parameters["deep"]]
    for parameter, drawn in zip(parameters, noise_of(parameters, 4.0 * CLIP), strict=True):
        assert torch.equal(parameter.grad, drawn / NORMALISER)


def test_without_a_seed_two_runs_draw_different_noise(lab, text):
    grads = []
    for name in ("one", "two"):
        governor = open_run(lab, text, noise_seed=None, name=name)
        with governor.step([]):
            pass
        grads.append(governor.model[4].bias.grad)
    assert not torch.equal(*grads)


def test_a_run_whose_noise_has_a_fixed_seed_is_not_resumed(lab, text):
    """The noise would repeat: two releases that differ in it alone show the difference bare."""
    governor = open_run(lab, text)
    assert lab.step(governor, [patient(lab, "x")]).committed
    governor.abandon()
    with pytest.raises(PrivacyError, match="fixed seed cannot be resumed"):
        open_run(lab, text)


def test_secure_noise_has_no_seed_and_is_drawn_anew(lab, text):
    with pytest.raises(PrivacyError, match="has no seed"):
        open_run(lab, text, secure_noise=True, name="seeded")
    governor = open_run(lab, text, noise_seed=None, secure_noise=True)
    grads = []
    for _ in range(2):
        with governor.step([]):
            pass
        grads.append(governor.model[4].bias.grad)
    assert not torch.equal(*grads)


def test_one_unit_moves_the_sum_by_its_clip_at_most(lab, text):
    def gradient(examples: list[Any], scale: float, name: str) -> Tensor:
        governor = open_run(lab, text, name=name)
        lab.step(governor, examples, scale=scale)
        return torch.cat([p.grad.flatten() for p in governor.parameters["shallow"]])

    public = [lab.example("p", "c")]
    for number, scale in enumerate((1e-3, 1.0, 1e6)):
        with_unit = gradient([*public, patient(lab, "x"), patient(lab, "x2")], scale, f"with{number}")
        without = gradient(public, scale, f"without{number}")
        assert float((with_unit - without).norm()) * NORMALISER <= CLIP * (1 + 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_above_one_are_applied_before_the_clip(lab, text, engine):
    amplified = text.replace("examples {", "max weight 4\nexamples {", 1)
    amplified = amplified.replace("reach shallow at 0.5 }\nprivacy", "reach shallow at 4, deep }\nprivacy")
    governor = open_run(lab, amplified.replace("within shallow", "within shallow, deep"), engine)
    proposal = lab.step(governor, [patient(lab, "x")])
    assert (proposal.committed, proposal.weights.tolist()) == (True, [[4.0, 1.0]])
    parameters = [*governor.parameters["shallow"], *governor.parameters["deep"]]
    noise = noise_of(parameters, 4.0 * CLIP)
    moved = [(p.grad * NORMALISER - n).flatten() for p, n in zip(parameters, noise, strict=True)]
    assert float(torch.cat(moved).norm()) == pytest.approx(CLIP, rel=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_private_loss_that_is_not_finite_refuses_nothing(lab, text, value):
    governor = open_run(lab, text, engine="split")
    with governor.step([patient(lab, "x"), lab.example("out", "c")]) as proposal:
        losses = lab.losses(governor.model, lab.inputs(2))
        proposal.backward(losses * torch.tensor([value, 1.0], dtype=torch.float64))
    assert proposal.committed
    shallow = list(governor.parameters["shallow"])
    for parameter, drawn in zip(shallow, noise_of(shallow, 4.0 * CLIP), strict=True):
        assert torch.equal(parameter.grad, drawn / NORMALISER)


# --- what private losses must not touch ---------------------------------------------------------------------


def test_private_losses_reach_neither_the_ledger_nor_the_signal(lab, text):
    guard = (
        "signals { loss_ratio : number 0..10 default 1 }\nmemorization m { when loss_ratio < 0.5  refuse }\n"
    )
    governor = open_run(lab, text + guard)
    batch = [lab.example("p", "b"), patient(lab, "x")]

    def step(scales: list[float]) -> Any:
        with governor.step(batch) as proposal:
            losses = lab.losses(governor.model, lab.inputs(2)) * 1e-6
            proposal.backward(losses - losses.detach() + torch.tensor(scales, dtype=torch.float64))
        return proposal

    first = step([2.0, 8.0])
    second = step([1.5, 0.01])
    third = step([1.5, 0.01])
    assert [p.mean_loss for p in (first, second, third)] == [2.0, 1.5, 1.5]
    assert [[d.verdict for d in p.decisions] for p in (first, third)] == [["limit"] * 2] * 2
    governor.close()
    assert [body["loss"] for body in lab.bodies("committed")] == ["2", "1.5", "1.5"]
    assert [body["signals"]["loss_ratio"] for body in lab.bodies("step")][2] == [750_000, 1_000_000]
    only_private = [b["loss"] for b in lab.bodies("committed") if b["loss"] is None]
    assert only_private == []


def test_a_step_of_private_examples_alone_records_no_loss(lab, text):
    governor = open_run(lab, text)
    assert lab.step(governor, [patient(lab, "x")]).mean_loss is None
    governor.close()
    assert lab.bodies("committed")[0]["loss"] is None


# --- budgets ------------------------------------------------------------------------------------------------


def test_when_the_budget_is_spent_private_examples_are_refused_and_public_ones_go_on(lab, text, state_of):
    plan = JointPlan.for_steps(privacy_rules(lab.program(text)), 0.01, 3)
    lasts = plan.rules[0].steps
    assert lasts == steps_within(2.0, 1e-5, 0.01, plan.rules[0].noise_multiplier)
    governor = open_run(lab, text, plan=plan)
    batch = [lab.example("p"), patient(lab, "x")]
    proposals = [lab.step(governor, batch) for _ in range(lasts + 2)]
    assert all(proposal.committed for proposal in proposals)
    assert [p.decisions[1].verdict for p in proposals] == ["limit"] * lasts + ["refuse"] * 2
    assert proposals[lasts - 1].active == ("shallow", "deep")
    refused = lab.step(governor, [patient(lab, "y")])
    assert refused.refusal.reason == "nothing_admitted"
    governor.close()
    spending = [body["privacy"]["quiet"] for body in lab.bodies("committed")]
    assert [s["steps"] for s in spending] == [*range(1, lasts + 1), lasts, lasts]
    assert [body["spent"] for body in lab.bodies("step")] == [[]] * lasts + [["quiet"]] * 3
    cost = epsilon(plan.rules[0].noise_multiplier, 0.01, lasts, 1e-5)
    assert cost <= float(spending[-1]["epsilon"]) <= cost + 1e-4
    assert float(spending[-1]["epsilon"]) <= 2.0
    assert lab.verify().ok


def halting(text: str) -> str:
    return text.replace("unit who }", "unit who  spent halt }")


def test_a_run_halts_after_the_last_step_that_its_budget_pays_for(lab, text):
    plan = JointPlan.for_steps(privacy_rules(lab.program(halting(text))), 0.01, 3)
    lasts = plan.rules[0].steps
    governor = open_run(lab, halting(text), plan=plan)
    batch = [lab.example("p"), patient(lab, "x")]
    for _ in range(lasts - 1):
        assert lab.step(governor, batch).committed
    for _ in range(2):  # the last step is committed; the next one is not begun
        with pytest.raises(BudgetHalt, match="`quiet` is spent after 3 steps"):
            lab.step(governor, batch)
    assert (governor.committed, governor.next_step) == (lasts, lasts)
    governor.checkpoint(lab.folder / "halted.safetensors")
    governor.close()
    assert lab.bodies("halted") == [{"step": lasts - 1, "rule": "quiet", "steps": lasts}]
    assert lab.verify().ok


def test_a_halted_run_that_is_resumed_takes_no_step(lab, text):
    plan = JointPlan.for_steps(privacy_rules(lab.program(halting(text))), 0.01, 1)
    governor = open_run(lab, halting(text), plan=plan, noise_seed=None)
    with pytest.raises(BudgetHalt), governor:
        lab.step(governor, [lab.example("p")])
    resumed = open_run(lab, halting(text), plan=plan, noise_seed=None)
    with pytest.raises(BudgetHalt):
        lab.step(resumed, [lab.example("p")])
    resumed.close()
    assert [body["step"] for body in lab.bodies("step")] == [0]
    assert lab.verify().ok


def test_a_run_that_goes_on_after_it_must_halt_is_found(lab, text, monkeypatch):
    plan = JointPlan.for_steps(privacy_rules(lab.program(halting(text))), 0.01, 1)
    monkeypatch.setattr(BudgetBook, "check_going", lambda book: None)
    governor = open_run(lab, halting(text), plan=plan)
    for _ in range(2):
        lab.step(governor, [lab.example("p")])
    governor.close()
    (finding,) = lab.verify().findings
    assert (finding.code, "halts the run" in finding.message) == ("wrong_budget", True)


def test_a_halt_that_the_policy_does_not_ask_for_is_found(private_run):
    def change(entries):
        entries.insert(-1, ("halted", {"step": 4, "rule": "quiet", "steps": 3}))

    (finding,) = private_run.forge(change).findings
    assert (finding.code, "need not" in finding.message) == ("wrong_budget", True)


def test_noise_beyond_what_the_policy_allows_is_refused_and_found(lab, text):
    quiet = text.replace("unit who }", "unit who  noise at most 1.1 }")
    with pytest.raises(PrivacyError, match=r"standard deviation of 1\.2, and `quiet` allows at most 1\.1"):
        plan_of(lab, quiet)
    loud = plan_of(lab, text)
    by_hand = replace(loud, rules=(replace(loud.rules[0], rule=privacy_rules(lab.program(quiet))[0]),))
    with pytest.raises(PrivacyError, match="allows at most"):
        open_run(lab, quiet, plan=by_hand)
    governor = open_run(lab, quiet, plan=plan_of(lab, quiet, noise_multiplier=3.6))
    lab.step(governor, [lab.example("p")])
    governor.close()
    assert lab.verify().ok

    def change(entries):
        of(entries, "opened")["privacy"][0]["noise_multiplier"] = "4.0"

    (finding, *_) = lab.forge(change).findings
    assert (finding.code, "more noise" in finding.message) == ("wrong_budget", True)


def test_the_last_step_of_a_budget_still_counts_its_noised_bands_as_active(lab, text):
    plan = JointPlan.for_steps(privacy_rules(lab.program(text)), 0.01, 1)
    governor = open_run(lab, text + "starvation shallow { after 1 steps halt }\n", plan=plan)
    for _ in range(plan.rules[0].steps):
        with governor.step([]) as proposal:
            pass
        assert (proposal.committed, proposal.active) == (True, ("shallow",))


def test_a_refused_step_costs_nothing(lab, text):
    governor = open_run(lab, text)
    lab.step(governor, [lab.example("p"), patient(lab, "x")], scale=float("nan"))
    lab.step(governor, [lab.example("p"), patient(lab, "x")])
    governor.close()
    (committed,) = lab.bodies("committed")
    assert committed["privacy"]["quiet"]["steps"] == 1
    assert lab.verify().ok


def test_what_a_refused_step_clipped_is_not_added_to_the_next(lab, text):
    governor = open_run(lab, text)

    def interrupted() -> None:
        with governor.step([patient(lab, "x")]) as proposal:
            proposal.backward(lab.losses(governor.model, lab.inputs(1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with governor.step([]):
        pass
    shallow = list(governor.parameters["shallow"])
    for parameter, drawn in zip(shallow, noise_of(shallow, 4.0 * CLIP), strict=True):
        assert torch.equal(parameter.grad, drawn / NORMALISER)


# --- gradient accumulation ---------------------------------------------------------------------------------


def mixed_batch(lab) -> list[Any]:
    return [
        lab.example("p", "a"), patient(lab, "x1"), patient(lab, "x2"), patient(lab, "y", "bob"),
        lab.example("q", "b"), lab.example("r", "a"), patient(lab, "z", "cid"),
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", [("micro_batches", 2), ("micro_batches", 3), ("depth_batches", 4)])
def test_a_step_in_parts_has_the_gradient_of_the_whole(lab, text, engine, cut):
    whole, parts = (open_run(lab, text, engine, name=name) for name in ("whole", "parts"))
    inputs = lab.inputs(7)
    assert lab.step(whole, mixed_batch(lab)).committed
    name, size = cut
    with parts.step(mixed_batch(lab)) as proposal:
        seen = []
        for part in getattr(proposal, name)(size):
            proposal.backward(lab.losses(parts.model, inputs[part]))
            seen.append(len(range(7)[part]) if isinstance(part, slice) else len(part))
    assert proposal.committed
    assert len(seen) > 1
    assert max(seen) <= size
    assert sum(seen) == 7
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("cut", "size"), [("micro_batches", 1), ("depth_batches", 1)])
def test_a_unit_that_would_be_cut_in_two_is_an_error(lab, text, cut, size):
    governor = open_run(lab, text)
    batch = [patient(lab, "x1"), lab.example("p"), patient(lab, "x2"), patient(lab, "y", "bob")]
    with (
        pytest.raises(PrivacyError, match="clipped as a whole"),
        governor.step(batch) as proposal,
    ):
        next(iter(getattr(proposal, cut)(size)))


# --- terms --------------------------------------------------------------------------------------------------


def test_privacy_rules_need_a_plan_and_a_normaliser(lab, text):
    with pytest.raises(PrivacyError, match="plan does not fit"):
        lab.governor(text, normaliser=NORMALISER, name="a")
    with pytest.raises(PrivacyError, match="plan does not fit"):
        lab.governor(lab.policy, privacy=plan_of(lab, text), normaliser=NORMALISER, name="b")
    with pytest.raises(PrivacyError, match="constant normaliser"):
        lab.governor(text, privacy=plan_of(lab, text), name="c")


def test_a_plan_for_other_terms_is_refused(lab, text):
    other = text.replace("epsilon 2", "epsilon 200")
    with pytest.raises(PrivacyError, match="plan does not fit"):
        lab.governor(text, privacy=plan_of(lab, other), normaliser=NORMALISER)


def test_an_advisory_privacy_rule_noises_nothing(lab, text):
    governor = lab.governor(lab.policy + PRIVATE.replace("privacy", "advisory privacy"))
    proposal = lab.step(governor, [patient(lab, "x")])
    assert proposal.committed
    governor.close()
    assert lab.bodies("committed")[0]["privacy"] == {}
    assert lab.verify().ok


def test_the_terms_cannot_change_within_a_run_but_the_bands_may_be_reordered(lab, text):
    model = lab.model()
    governor = open_run(lab, text, model=model)
    with pytest.raises(PrivacyError, match="cannot change"):
        governor.change_policy(lab.program(text.replace("epsilon 2", "epsilon 3"), model))
    before = "model { shallow = top 40%  deep = rest }"
    after = 'model { head = names "4.*"  shallow = names "2.*"  deep = rest }'
    governor.change_policy(lab.program(text.replace(before, after), model))
    proposal = lab.step(governor, [patient(lab, "x")])
    assert proposal.weights.tolist() == [[0.0, 0.5, 0.0]]
    assert model[4].weight.grad is None
    assert model[0].weight.grad is None
    shallow = list(governor.parameters["shallow"])
    noise = noise_of(shallow, 4.0 * CLIP)
    contribution = torch.cat(
        [(p.grad * NORMALISER - n).flatten() for p, n in zip(shallow, noise, strict=True)]
    )
    assert 0.0 < float(contribution.norm()) <= CLIP * (1 + 1e-9)
    governor.close()
    assert lab.verify().ok


def test_a_step_whose_public_gradient_is_not_finite_is_refused_before_anything_is_noised(lab, text):
    governor = open_run(lab, text)
    with governor.step([lab.example("p"), patient(lab, "x")]) as proposal:
        losses = lab.losses(governor.model, lab.inputs(2))
        proposal.backward(losses)
        governor.model[0].weight.grad.fill_(torch.inf)
    assert proposal.refusal.reason == "gradient_not_finite"
    with governor.step([]):
        pass
    shallow = list(governor.parameters["shallow"])
    for parameter, drawn in zip(shallow, noise_of(shallow, 4.0 * CLIP), strict=True):
        assert torch.equal(parameter.grad, drawn / NORMALISER)


# --- what a verifier finds ----------------------------------------------------------------------------------


@pytest.fixture
def private_run(lab, text) -> Any:
    plan = JointPlan.for_steps(privacy_rules(lab.program(text)), 0.01, 3)
    assert plan.rules[0].steps == 3
    governor = open_run(lab, text, plan=plan)
    for _ in range(5):
        lab.step(governor, [lab.example("p"), patient(lab, "x")])
    governor.close()
    assert lab.verify().ok
    return lab


def of(entries: Any, kind: str, number: int = 0) -> dict[str, Any]:
    return [body for k, body in entries if k == kind][number]


def spent_too_late(entries):
    of(entries, "step", 3)["spent"] = []


def spent_too_early(entries):
    of(entries, "step", 1)["spent"] = ["quiet"]


def unpaid(entries):
    of(entries, "committed", 1)["privacy"]["quiet"]["steps"] = 1


def not_charged(entries):
    of(entries, "committed", 1)["privacy"] = {}


def cheap(entries):
    of(entries, "committed", 4)["privacy"]["quiet"]["epsilon"] = "0.5"


def priceless(entries):
    of(entries, "committed", 4)["privacy"]["quiet"]["epsilon"] = "little"


def richer(entries):
    of(entries, "opened")["privacy"][0]["epsilon"] = "200.0"


def quieter(entries):
    of(entries, "opened")["privacy"][0]["noise_multiplier"] = "0.9"


def looser_clip(entries):
    of(entries, "opened")["privacy"][0]["clip"] = "30.0"


def other_unit(entries):
    of(entries, "opened")["privacy"][0]["unit"] = ""


def no_terms(entries):
    of(entries, "opened")["privacy"] = []


def terms_of_nothing(entries):
    of(entries, "opened")["privacy"].append({**of(entries, "opened")["privacy"][0], "rule": "loud"})


def senseless_terms(entries):
    of(entries, "opened")["privacy"][0]["sampling_rate"] = "7"


def no_normaliser(entries):
    of(entries, "opened")["normaliser"] = None


def noise_beyond_accounting(entries):
    of(entries, "opened")["privacy"][0]["noise_multiplier"] = "1e-200"


def noise_without_end(entries):
    of(entries, "opened")["privacy"][0]["noise_multiplier"] = "1e400"


def noise_in_words(entries):
    of(entries, "opened")["privacy"][0]["noise_multiplier"] = "1_0"


def terms_twice(entries):
    terms = of(entries, "opened")["privacy"]
    terms.insert(0, {**terms[0], "noise_multiplier": "9.0"})


def epsilon_not_a_number(entries):
    of(entries, "committed", 4)["privacy"]["quiet"]["epsilon"] = "NaN"


def epsilon_too_large_to_be_one(entries):
    of(entries, "committed", 4)["privacy"]["quiet"]["epsilon"] = "1e400"


FORGERIES = [
    (noise_beyond_accounting, {"wrong_budget"}),
    (noise_without_end, {"wrong_outcome"}),
    (noise_in_words, {"wrong_outcome"}),
    (terms_twice, {"wrong_budget"}),
    (epsilon_not_a_number, {"wrong_budget"}),
    (epsilon_too_large_to_be_one, {"wrong_budget"}),
    (spent_too_late, {"wrong_budget", "wrong_decision"}),
    (spent_too_early, {"wrong_budget", "wrong_decision"}),
    (unpaid, {"wrong_budget"}),
    (not_charged, {"wrong_budget"}),
    (cheap, {"wrong_budget"}),
    (priceless, {"wrong_budget"}),
    (richer, {"wrong_budget"}),
    (quieter, {"wrong_budget"}),
    (looser_clip, {"wrong_budget"}),
    (other_unit, {"wrong_budget"}),
    (no_terms, {"wrong_budget"}),
    (terms_of_nothing, {"wrong_budget"}),
    (senseless_terms, {"wrong_budget"}),
    (no_normaliser, {"wrong_budget"}),
]


@pytest.mark.parametrize(("change", "codes"), FORGERIES, ids=[change.__name__ for change, _ in FORGERIES])
def test_forged_spending_is_found(private_run, change, codes):
    report = private_run.forge(change)
    assert report.status == "VIOLATION"
    errors = {finding.code for finding in report.findings if finding.severity == "error"}
    assert errors <= codes
    assert errors


@pytest.fixture
def without_library(monkeypatch) -> None:
    monkeypatch.setattr(budget_audit, "library_installed", lambda: False)


@pytest.mark.parametrize(
    "change", [noise_beyond_accounting, spent_too_late, spent_too_early, cheap, quieter, senseless_terms]
)
def test_forged_spending_is_found_without_the_accounting_library(
    private_run, change, without_library, monkeypatch
):
    monkeypatch.setattr(accounting, "_library", None)
    assert private_run.verify().ok
    report = private_run.forge(change)
    assert report.status == "VIOLATION"
    errors = {finding.code for finding in report.findings if finding.severity == "error"}
    assert errors <= {"wrong_budget", "wrong_decision"}
    assert errors
    assert report.facts["budgets_recomputed"] is False


@pytest.mark.parametrize("library", [True, False])
def test_an_epsilon_that_is_a_hundredth_too_small_is_found_by_the_verifiers_own_reckoning(
    private_run, monkeypatch, library
):
    monkeypatch.setattr(budget_audit, "library_installed", lambda: library)
    bounds = private_run.verify().facts["epsilon_bounds"]["quiet"]
    recorded = private_run.bodies("committed")[4]["privacy"]["quiet"]["epsilon"]
    assert float(bounds["low"]) <= float(recorded) <= float(bounds["high"]) * 1.005

    def change(entries):
        of(entries, "committed", 4)["privacy"]["quiet"]["epsilon"] = f"{0.99 * float(recorded):.4f}"

    (finding,) = private_run.forge(change).findings
    assert (finding.code, "cost at least" in finding.message) == ("wrong_budget", True)


def test_verify_shows_both_reckonings_and_what_was_taken_on_trust(private_run, monkeypatch):
    monkeypatch.chdir(private_run.folder)
    Path("run.pub").write_text(private_run.signer.public.vkey + "\n", "utf-8")
    result = CliRunner().invoke(cli, ["verify", "run.ledger", "--key", "run.pub"], prog_name="gradwarden")
    assert result.exit_code == 0, result.output
    recorded = private_run.bodies("committed")[-1]["privacy"]["quiet"]["epsilon"]
    bounds = private_run.verify().facts["epsilon_bounds"]["quiet"]
    told = f"recorded at epsilon {recorded}; reckoned anew, they cost {bounds['low']} to {bounds['high']}"
    assert f"3 steps {told}" in " ".join(result.output.split())
    assert "that private examples were drawn by Poisson sampling" in result.output


def test_a_budget_that_was_stretched_with_its_decisions_is_still_found(private_run):
    """The forger admits the private example a fourth time, decision and payment included."""

    def change(entries):
        third, fourth = of(entries, "step", 2), of(entries, "step", 3)
        for name in ("spent", "decision", "verdict"):
            fourth[name] = third[name]
        of(entries, "committed", 3)["privacy"]["quiet"]["steps"] = 4
        of(entries, "committed", 4)["privacy"]["quiet"]["steps"] = 4

    assert [finding.code for finding in private_run.forge(change).findings] == ["wrong_budget"]


def test_rules_that_claim_noise_of_different_sizes_are_found(lab, text):
    """All rules share one Gaussian: a rule cannot have more noise for its clip than another."""
    louder = PRIVATE[PRIVATE.index("privacy") :].replace("quiet", "silent").replace("clip 0.3", "clip 0.6")
    governor = open_run(lab, text + louder)
    lab.step(governor, [lab.example("p"), patient(lab, "x")])
    governor.close()
    assert lab.verify().ok

    def change(entries):
        terms = of(entries, "opened")["privacy"][1]
        terms["noise_multiplier"] = repr(2 * float(terms["noise_multiplier"]))

    (finding, *_) = lab.forge(change).findings
    assert (finding.code, finding.message) == (
        "wrong_budget",
        "the privacy rules were opened with noise of different standard deviations",
    )
