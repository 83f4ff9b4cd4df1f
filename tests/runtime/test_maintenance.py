"""Maintained bands: anchored, pulled, measured, held within their bound; and all of it on record."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwarden.policy.program import Maintenance
from gradwarden.runtime import Privacy
from gradwarden.runtime.anchors import Anchor, joint_norm, norm_of
from gradwarden.runtime.errors import LedgerError, MaskError
from gradwarden.runtime.maintenance import Held, Measured, _put_back
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from tests.runtime.maintained import BOUND, PULL, anchor_files, drift, flat, values

ENGINES = ["fused", "split"]
PRIVATE = "privacy people { when kind == b  within shallow  epsilon 2  delta 1e-5  clip 1 }\n"


# --- the pull -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pull_is_added_to_the_masked_gradient(lab, reference, engine):
    governor = lab.governor(lab.policy + PULL, engine=engine)
    anchor = values(governor)
    for number in range(3):
        kinds = "aabd"
        bands = [governor.parameters["shallow"], governor.parameters["deep"]]
        before = values(governor)
        weights = [(1.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.0, 0.25)]
        inputs = lab.inputs(len(kinds), number)
        wanted = reference(lab.losses(governor.model, inputs), weights, bands, len(kinds))
        assert lab.step(governor, lab.batch(kinds), seed=number).committed
        masked = flat(wanted[p] for p in governor.parameters["deep"])
        found = flat(p.grad for p in governor.parameters["deep"])
        assert (found - (masked + 0.5 * (before - anchor))).norm() <= 1e-12 * found.norm()
        for parameter in governor.parameters["shallow"]:
            assert (parameter.grad - wanted[parameter]).norm() <= 1e-12 * parameter.grad.norm()


def test_a_strong_pull_keeps_a_band_nearer(lab):
    moved = {}
    for strength in ("", "0.01", "1", "5"):
        rule = f"maintain base {{ within deep  strength {strength} }}" if strength else ""
        governor = lab.governor(lab.policy + rule, name=f"run{strength}")
        anchor = values(governor)
        for number in range(30):
            lab.step(governor, lab.batch("aab"), seed=number)
        moved[strength] = drift(governor, anchor)
    assert moved[""] > moved["0.01"] > moved["1"] > moved["5"] > 0


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_band_that_no_example_reaches_is_not_moved_by_its_rule(lab, optimizer):
    model = lab.model()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    moving = optimizer(model.parameters(), lr=0.05, weight_decay=0.1, **options)
    rule = "maintain base { within deep, shallow  strength 2  drift at most 1% }"
    governor = lab.governor(lab.policy + rule, model, moving)
    for number in range(3):
        lab.step(governor, lab.batch("aad"), seed=number)
    before = values(governor)
    assert drift(governor, flat(lab.model().parameters())[: before.numel()]) > 0
    for number in range(3):
        proposal = lab.step(governor, lab.batch("bb", "b"), seed=number)
        assert proposal.committed
        assert list(proposal.maintained.drift) == ["shallow"]
        assert torch.equal(values(governor), before)
        assert all(parameter.grad is None for parameter in governor.parameters["deep"])


def test_a_norm_cap_holds_for_the_gradient_with_its_pull(lab):
    governor = lab.governor(lab.policy + PULL + "gradient { deep at most 0.01 }")
    for number in range(3):
        lab.step(governor, lab.batch("aa"), seed=number)
        assert float(flat(p.grad for p in governor.parameters["deep"]).norm()) <= 0.01 * (1 + 1e-12)
    governor.close()
    assert {body["norms"]["deep"] for body in lab.bodies("committed")} == {"0.01"}
    assert lab.verify().ok


# --- the bound ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_no_step_leaves_a_band_beyond_its_bound(lab, optimizer):
    model = lab.model()
    governor = lab.governor(lab.policy + BOUND, model, optimizer(model.parameters(), lr=0.1))
    free = lab.model()
    loose = lab.governor(lab.policy, free, optimizer(free.parameters(), lr=0.1), name="free")
    anchor = values(governor)
    for number in range(8):
        proposal = lab.step(governor, lab.batch("aabd"), seed=number)
        lab.step(loose, lab.batch("aabd"), seed=number)
        assert proposal.committed
        assert drift(governor, anchor) <= 0.02
        assert proposal.maintained.drift["deep"] == pytest.approx(drift(governor, anchor), rel=1e-12)
    assert proposal.maintained.held == ("deep",)
    assert drift(loose, anchor) > 0.05
    governor.close()
    last = lab.bodies("maintained")[-1]
    assert last == {"step": 7, "drift": {"deep": "0.02"}, "held": ["deep"]}
    report = lab.verify()
    assert report.ok
    assert report.facts["drift"] == {"deep": "0.02"}


def test_a_band_is_put_back_along_the_line_to_its_anchor(lab):
    bounded = lab.governor(lab.policy + BOUND, name="bounded")
    free = lab.governor(lab.policy, name="free")
    anchor = values(bounded)
    for governor in (bounded, free):
        lab.step(governor, lab.batch("aa"), scale=10.0)
    moved, wanted = values(bounded) - anchor, values(free) - anchor
    assert wanted.norm() > 0.02 * anchor.norm()
    assert moved.norm() / anchor.norm() == pytest.approx(0.02, rel=2e-6)
    assert torch.allclose(moved / moved.norm(), wanted / wanted.norm(), rtol=1e-9, atol=1e-12)
    assert torch.equal(values(bounded, "shallow"), values(free, "shallow"))


def test_a_bound_that_is_not_met_changes_no_bit(lab):
    bounded = lab.governor(lab.policy + "maintain base { within deep  drift at most 100% }", name="bounded")
    free = lab.governor(lab.policy, name="free")
    for number in range(3):
        for governor in (bounded, free):
            lab.step(governor, lab.batch("aabd"), seed=number)
    assert torch.equal(values(bounded), values(free))


class Forked(nn.Module):
    """Two layers in one band, of which a batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.other = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def test_what_has_no_gradient_is_neither_pulled_nor_put_back(lab):
    model = Forked()
    text = "policy p version 1 language 1\nexamples { kind : one of a }\nmodel { whole = rest }\n"
    text += "depth a { reach all }\nmaintain base { within whole  strength 1  drift at most 2% }\n"
    governor = lab.governor(text, model)
    anchor = values(governor, "whole")
    with torch.no_grad():
        model.other.weight[0, 0] += 0.005 * anchor.norm()
    other = flat(model.other.parameters()).clone()
    with governor.step([{"id": "x", "kind": "a"}]) as proposal:
        proposal.backward(100 * model(lab.inputs(1)).square().sum(1))
    assert proposal.maintained.held == ("whole",)
    assert torch.equal(flat(model.other.parameters()), other)
    assert drift(governor, anchor, "whole") == pytest.approx(0.02, rel=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 1_000_000),
    st.floats(1.0001, 1_000.0),
    st.integers(0, 10_000),
)
def test_whatever_the_type_a_band_is_put_back_within_its_bound(kind, micro, excess, seed):
    generator = torch.Generator().manual_seed(seed)
    bound = micro / 1_000_000
    anchors = [torch.randn(size, dtype=torch.float64, generator=generator).to(kind) for size in (7, 40)]
    norm = joint_norm([norm_of(a) for a in anchors])
    steps = [torch.randn(a.shape, dtype=torch.float64, generator=generator) for a in anchors]
    length = joint_norm([norm_of(step) for step in steps])
    parameters = []
    for anchor, step in zip(anchors, steps, strict=True):
        parameter = nn.Parameter((anchor.double() + step * (bound * excess * norm / length)).to(kind))
        parameter.grad = torch.ones_like(parameter)
        parameters.append(parameter)
    rule = Maintenance("base", ("deep",), None, micro)
    held = Held("deep", rule, Anchor({}, norm), tuple(parameters), tuple(anchors))
    assume(held.drift() > bound)
    assert _put_back(held, bound) <= bound
    assert held.drift() <= bound


def test_a_band_that_something_else_moved_refuses_the_step(lab, state_of, changes):
    governor = lab.governor(lab.policy + BOUND)
    lab.step(governor, lab.batch("aa"))
    with torch.no_grad():
        governor.parameters["deep"][0].mul_(1.5)
    before = state_of(governor)
    proposal = lab.step(governor, lab.batch("aa"))
    assert (proposal.refusal.gate, proposal.refusal.reason) == ("gradient", "drift_exceeded")
    assert not changes(before, state_of(governor))
    assert lab.step(governor, lab.batch("bb", "b")).committed
    governor.close()
    assert lab.verify().ok


def test_a_step_that_leaves_no_finite_parameters_ends_the_run(lab):
    governor = lab.governor(lab.policy + BOUND)
    governor.optimizer.param_groups[0]["lr"] = 1e308
    with pytest.raises(MaskError, match="not finite"):
        lab.step(governor, lab.batch("aa"))
    with pytest.raises(LedgerError, match="closed"):
        governor.step(lab.batch("aa"))
    assert not lab.bodies("committed")


# --- when, and how strictly ---------------------------------------------------------------------------------


def test_an_advisory_rule_measures_and_changes_no_bit(lab):
    rule = "advisory maintain base { within deep  strength 5  drift at most 0.001% }"
    watched, free = lab.governor(lab.policy + rule), lab.governor(lab.policy, name="free")
    anchor = values(watched)
    for number in range(3):
        for governor in (watched, free):
            proposal = lab.step(governor, lab.batch("aabd"), seed=number)
        assert proposal.maintained == Measured({})
    assert torch.equal(values(watched), values(free))
    watched.close()
    recorded = [float(body["drift"]["deep"]) for body in lab.bodies("maintained")]
    assert recorded[-1] == pytest.approx(drift(watched, anchor), rel=1e-5)
    assert lab.verify().ok


def test_a_rule_comes_into_force_at_its_step(lab):
    governor = lab.governor(lab.policy + BOUND.replace("}", "from step 3 }"))
    for number in range(3):
        assert lab.step(governor, lab.batch("aa"), seed=number).maintained == Measured({})
    anchor = values(governor)
    assert not anchor_files(lab)
    for number in range(3):
        lab.step(governor, lab.batch("aa"), seed=number, scale=10.0)
        assert drift(governor, anchor) <= 0.02
    governor.close()
    assert [body["step"] for body in lab.bodies("anchored")] == [3]
    assert [body["step"] for body in lab.bodies("maintained")] == [3, 4, 5]
    assert lab.verify().ok


def test_the_anchor_on_record_is_the_band_as_it_was(lab):
    from safetensors.torch import load_file

    governor = lab.governor(lab.policy + BOUND.replace("deep", "deep, shallow"))
    wanted = {name: p.detach().clone() for name, p in governor.model.named_parameters()}
    lab.step(governor, lab.batch("aa"))
    governor.close()
    bodies = lab.bodies("anchored")
    assert [body["band"] for body in bodies] == ["shallow", "deep"]
    assert {(body["rule"], body["strength"], body["drift"]) for body in bodies} == {("base", None, 20_000)}
    found = {name: t for body in bodies for name, t in load_file(lab.folder / body["file"]).items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# --- what cannot be maintained ------------------------------------------------------------------------------


def test_a_band_of_zeros_has_no_drift(lab):
    model = lab.model()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.zero_()
    with pytest.raises(MaskError, match="its parameters are zero"):
        lab.governor(lab.policy + BOUND, model)
    assert lab.entries() == []
    assert not lab.path().exists() or lab.path().read_bytes() == b""


def test_sparse_gradients_cannot_be_held(lab):
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3)).double()
    with pytest.raises(MaskError, match="sparse"):
        lab.governor(lab.policy.replace("top 40%", "top 50%") + BOUND, model)


# --- with privacy -------------------------------------------------------------------------------------------


def test_private_steps_are_pulled_after_their_noise(lab):
    text = lab.policy.replace("when kind == b", "when kind == c") + PRIVATE
    gradients = {}
    for rule in ("", "maintain base { within shallow  strength 2 }"):
        plan = JointPlan.for_noise(privacy_rules(lab.program(text + rule)), 0.01, noise_multiplier=4.0)
        options = {
            "privacy": Privacy(plan, on_trust=["sampling"], noise_seed=11),
            "normaliser": 4.0,
            "name": f"private{bool(rule)}",
        }
        governor = lab.governor(text + rule, **options)
        anchor = values(governor, "shallow")
        lab.step(governor, lab.batch("b"))
        moved = values(governor, "shallow") - anchor
        lab.step(governor, lab.batch("bb"))
        gradients[rule] = flat(p.grad for p in governor.parameters["shallow"]) - (
            2.0 * moved if rule else 0.0
        )
        governor.close()
        assert lab.verify(options["name"]).ok
    free, pulled = gradients.values()
    assert float(moved.norm()) > 0
    assert torch.allclose(free, pulled, rtol=1e-9, atol=1e-12)


def test_a_scaler_of_losses_does_not_scale_the_pull(lab):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        options = {} if scaler is None else {"scaler": scaler}
        governor = lab.governor(lab.policy + PULL, name=f"scaled{len(found)}", **options)
        for number in range(3):
            assert lab.step(governor, lab.batch("aab"), seed=number).committed
        found.append(values(governor))
    assert torch.equal(*found)


def test_drift_is_a_share_of_the_anchor(lab):
    governor = lab.governor(lab.policy + "maintain base { within deep  drift at most 100% }")
    anchor = values(governor)
    proposal = lab.step(governor, lab.batch("aa"))
    wanted = float((values(governor) - anchor).norm() / anchor.norm())
    assert math.isclose(proposal.maintained.drift["deep"], wanted, rel_tol=1e-12)
