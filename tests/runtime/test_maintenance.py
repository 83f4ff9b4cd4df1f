"""Maintained bands: anchored, pulled, measured, held within their bound; and all of it on record."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwarden.policy.program import Maintenance
from gradwarden.runtime.anchors import Anchor, joint_norm, norm_of
from gradwarden.runtime.errors import LedgerError, MaskError
from gradwarden.runtime.maintenance import Held, Measured, _put_back
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

ENGINES = ["fused", "split"]
PRIVATE = "privacy people { when kind == b  within shallow  epsilon 2  delta 1e-5  clip 1 }\n"
PULL = "maintain base { within deep  strength 0.5 }\n"
BOUND = "maintain base { within deep  drift at most 2% }\n"


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def values(governor: Any, band: str = "deep") -> Tensor:
    """The parameters of a band as one vector."""
    return flat(governor.parameters[band]).clone()


def drift(governor: Any, anchor: Tensor, band: str = "deep") -> float:
    return float((values(governor, band) - anchor).norm() / anchor.norm())


def anchor_files(lab: Any) -> list[Path]:
    return sorted(lab.folder.glob("*.anchor-*"))


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


# --- resuming -----------------------------------------------------------------------------------------------


def stopped(lab: Any, policy: str, steps: int = 2) -> tuple[Tensor, nn.Module]:
    """Leave a run after some steps as a crash does; return its anchor and its model."""
    governor = lab.governor(policy)
    anchor = values(governor)
    for number in range(steps):
        lab.step(governor, lab.batch("aab"), seed=number)
    governor.engine.close()
    governor.ledger.close()
    return anchor, governor.model


def test_a_resumed_run_keeps_its_anchor(lab):
    anchor, model = stopped(lab, lab.policy + BOUND, steps=5)
    again = lab.governor(lab.policy + BOUND, model)
    for number in range(5):
        lab.step(again, lab.batch("aab"), seed=number)
        assert drift(again, anchor) <= 0.02
    again.close()
    assert len(lab.bodies("anchored")) == len(anchor_files(lab)) == 1
    assert lab.verify().ok


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_run_is_not_resumed_without_its_anchor(lab, damage):
    stopped(lab, lab.policy + BOUND)
    (file,) = anchor_files(lab)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with pytest.raises(LedgerError, match=r"anchor-[0-9a-f]{16}"):
        lab.governor(lab.policy + BOUND)


def test_a_run_is_not_resumed_from_weights_beyond_its_bound(lab):
    _, model = stopped(lab, lab.policy + BOUND)
    with pytest.raises(MaskError, match="has drifted from its anchor"):
        lab.governor(lab.policy + BOUND, lab.model(seed=1))
    lab.governor(lab.policy + BOUND, model).close()
    assert lab.verify().ok


def test_a_step_whose_outcome_was_lost_after_it_was_measured_is_no_violation(lab):
    _, model = stopped(lab, lab.policy + BOUND)
    lines = lab.path().read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "maintained")
    lab.path().write_bytes(b"".join(lines[: last + 1]))
    Path(f"{lab.path()}.head").unlink(missing_ok=True)
    again = lab.governor(lab.policy + BOUND, model)
    lab.step(again, lab.batch("aab"))
    again.close()
    assert lab.verify().ok


# --- a change of policy -------------------------------------------------------------------------------------


def test_a_band_that_stays_maintained_keeps_its_anchor(lab):
    governor = lab.governor(lab.policy + BOUND)
    anchor = values(governor)
    for number in range(3):
        lab.step(governor, lab.batch("aa"), seed=number)
    governor.change_policy(lab.program(lab.policy + "maintain renamed { within deep  drift at most 3% }"))
    governor.change_policy(lab.program(lab.policy + "maintain renamed { within deep  drift at most 4% }"))
    for number in range(8):
        lab.step(governor, lab.batch("aa"), seed=number, scale=5.0)
    assert drift(governor, anchor) == pytest.approx(0.04, rel=2e-6)
    governor.close()
    bodies = lab.bodies("anchored")
    assert [(body["rule"], body["step"]) for body in bodies] == [("base", 0), ("renamed", 3), ("renamed", 3)]
    assert len({body["digest"] for body in bodies}) == len(anchor_files(lab)) == 1
    assert lab.verify().ok


def test_a_band_that_was_let_go_is_anchored_anew(lab):
    governor = lab.governor(lab.policy + BOUND)
    for policy in (lab.policy, lab.policy + BOUND):
        lab.step(governor, lab.batch("aa"))
        governor.change_policy(lab.program(policy))
    assert len(anchor_files(lab)) == 2
    anchor = values(governor)
    lab.step(governor, lab.batch("aa"), scale=10.0)
    assert drift(governor, anchor) == pytest.approx(0.02, rel=2e-6)
    governor.close()
    assert lab.verify().ok


def test_a_band_that_was_let_go_is_anchored_anew_in_a_resumed_run_too(lab):
    governor = lab.governor(lab.policy + BOUND)
    lab.step(governor, lab.batch("aa"))
    governor.change_policy(lab.program(lab.policy))
    lab.step(governor, lab.batch("aa"))
    governor.engine.close()
    governor.ledger.close()
    anchor = values(governor)
    again = lab.governor(lab.policy + BOUND, governor.model)
    lab.step(again, lab.batch("aa"), scale=10.0)
    assert drift(again, anchor) == pytest.approx(0.02, rel=2e-6)
    again.close()
    assert lab.verify().ok


def test_a_band_that_is_let_go_for_no_step_keeps_its_anchor(lab):
    governor = lab.governor(lab.policy + BOUND)
    lab.step(governor, lab.batch("aa"))
    for policy in (lab.policy, lab.policy + BOUND):
        governor.change_policy(lab.program(policy))
    lab.step(governor, lab.batch("aa"))
    governor.close()
    assert len(anchor_files(lab)) == 1
    assert lab.verify().ok


def test_a_bound_below_the_drift_so_far_is_refused_and_the_old_policy_stays(lab):
    governor = lab.governor(lab.policy + BOUND)
    for number in range(3):
        lab.step(governor, lab.batch("aa"), seed=number, scale=10.0)
    tighter = lab.program(lab.policy + BOUND.replace("2%", "1%"))
    with pytest.raises(MaskError, match="lets it drift by 1%"):
        governor.change_policy(tighter)
    assert lab.step(governor, lab.batch("aa")).committed
    governor.close()
    assert not lab.bodies("policy_changed")
    assert lab.verify().ok


def test_a_parameter_that_moves_to_another_maintained_band_keeps_its_anchor(lab):
    both = "maintain base { within deep, shallow  drift at most 2% }"
    governor = lab.governor(lab.policy + both)
    anchor = flat(governor.model.parameters()).clone()
    lab.step(governor, lab.batch("aa"), scale=0.01)
    governor.change_policy(lab.program(lab.policy.replace("top 40%", "top 20%") + both))
    for number in range(6):
        lab.step(governor, lab.batch("aab"), seed=number, scale=10.0)
    sizes = [p.numel() for p in governor.model.parameters()]
    starts = dict(
        zip(governor.model.parameters(), torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False)
    )
    for band in ("shallow", "deep"):
        own = governor.parameters[band]
        kept = torch.cat([anchor[starts[p] : starts[p] + p.numel()] for p in own])
        assert drift(governor, kept, band) <= 0.02
    governor.close()
    assert lab.verify().ok


def test_a_crash_after_a_change_of_policy_does_not_lose_the_anchor(lab):
    governor = lab.governor(lab.policy + BOUND)
    anchor = values(governor)
    lab.step(governor, lab.batch("aa"))
    changed = lab.policy + "maintain other { within deep  drift at most 3% }"
    governor.change_policy(lab.program(changed))
    governor.engine.close()
    governor.ledger.close()
    lines = lab.path().read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "head"]
    assert json.loads(kept[-1])["kind"] == "anchored"
    lab.path().write_bytes(b"".join(lines[: lines.index(kept[-1])]))
    Path(f"{lab.path()}.head").unlink(missing_ok=True)
    again = lab.governor(changed, governor.model)
    for number in range(5):
        lab.step(again, lab.batch("aa"), seed=number, scale=10.0)
    assert drift(again, anchor) == pytest.approx(0.03, rel=2e-6)
    again.close()
    assert lab.verify().ok
    assert len(anchor_files(lab)) == 1


# --- with privacy -------------------------------------------------------------------------------------------


def test_private_steps_are_pulled_after_their_noise(lab):
    text = lab.policy.replace("when kind == b", "when kind == c") + PRIVATE
    gradients = {}
    for rule in ("", "maintain base { within shallow  strength 2 }"):
        plan = JointPlan.for_noise(privacy_rules(lab.program(text + rule)), 0.01, noise_multiplier=4.0)
        options = {"privacy": plan, "normaliser": 4.0, "noise_seed": 11, "name": f"private{bool(rule)}"}
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


# --- forgeries ----------------------------------------------------------------------------------------------

RULES = """
maintain base { within deep  strength 0.5  drift at most 2% }
advisory maintain seen { within shallow  drift at most 1%  from step 1 }
"""


@pytest.fixture
def run(lab: Any) -> Any:
    """A sealed run: four steps, one of them refused; its second band is maintained from step 1 on."""
    governor = lab.governor(lab.policy + RULES)
    for number, kinds in enumerate(("aab", "bb", "cC", "aBd")):
        lab.step(governor, lab.batch(kinds, kinds), seed=number, scale=10.0)
    governor.close()
    assert lab.verify().ok
    return lab


def of(entries: Any, kind: str, number: int = 0) -> dict[str, Any]:
    return [body for k, body in entries if k == kind][number]


def drop(entries: Any, kind: str, number: int = 0) -> None:
    del entries[[index for index, (k, _) in enumerate(entries) if k == kind][number]]


def moved(entries: Any, kind: str, to: str, number: int = 0) -> None:
    """Move an entry behind the first one of another kind."""
    entry = entries.pop([index for index, (k, _) in enumerate(entries) if k == kind][number])
    entries.insert([k for k, _ in entries].index(to) + 1, entry)


def weaker(entries):
    of(entries, "anchored")["strength"] = "0.05"


def unbounded(entries):
    of(entries, "anchored")["drift"] = None


def other_rule(entries):
    of(entries, "anchored")["rule"] = "seen"


def undeclared(entries):
    drop(entries, "anchored")


def undeclared_later(entries):
    drop(entries, "anchored", 1)


def too_early(entries):
    of(entries, "anchored", 1)["step"] = 0
    moved(entries, "anchored", "program", 1)


def again(entries):
    place = [k for k, _ in entries].index("anchored")
    entries.insert(place, copy.deepcopy(entries[place]))


def at_another_step(entries):
    of(entries, "anchored")["step"] = 1


def within_a_step(entries):
    moved(entries, "anchored", "step", 1)


def further(entries):
    of(entries, "maintained")["drift"]["deep"] = "0.0200001"


def unmeasured(entries):
    drop(entries, "maintained")


def half_measured(entries):
    del of(entries, "maintained", 2)["drift"]["shallow"]


def no_number(entries):
    of(entries, "maintained")["drift"]["deep"] = "nan"


def negative(entries):
    of(entries, "maintained")["drift"]["deep"] = "-0.01"


def not_there(entries):
    of(entries, "maintained")["drift"]["none"] = "0.01"


def put_back_unbounded(entries):
    body = of(entries, "maintained", 2)
    body["held"] = [*body["held"], "shallow"]


def put_back_unmeasured(entries):
    of(entries, "maintained", 1)["held"] = ["deep"]


def twice(entries):
    place = [k for k, _ in entries].index("maintained")
    entries.insert(place, copy.deepcopy(entries[place]))


def of_another_step(entries):
    of(entries, "maintained", 1)["step"] = 0


def refused_and_measured(entries):
    place = [k for k, _ in entries].index("refused")
    step = entries[place][1]["step"]
    entries.insert(place, ("maintained", {"step": step, "drift": {"shallow": "0.1"}, "held": []}))


FORGERIES = {
    "wrong_anchor": [
        *(weaker, unbounded, other_rule, undeclared, undeclared_later, too_early, again, at_another_step),
        within_a_step,
    ],
    "wrong_drift": [
        *(further, unmeasured, half_measured, negative, not_there, put_back_unbounded, put_back_unmeasured),
        *(twice, refused_and_measured),
    ],
    "wrong_outcome": [no_number, of_another_step],
}


@pytest.mark.parametrize(
    ("change", "code"), [(change, code) for code, changes in FORGERIES.items() for change in changes]
)
def test_a_forged_record_of_what_was_maintained_is_found(run, change, code):
    report = run.forge(change)
    assert report.status == "VIOLATION"
    assert report.findings[0].code == code


def test_another_anchor_after_a_change_of_policy_is_found(lab):
    governor = lab.governor(lab.policy + BOUND)
    lab.step(governor, lab.batch("aa"))
    governor.change_policy(lab.program(lab.policy + BOUND.replace("2%", "3%")))
    lab.step(governor, lab.batch("aa"))
    governor.close()
    assert lab.verify().ok

    def exchanged(entries: Any) -> None:
        of(entries, "anchored", 1)["digest"] = "ab" * 32

    assert lab.forge(exchanged).findings[0].code == "wrong_anchor"


def test_drift_is_a_share_of_the_anchor(lab):
    governor = lab.governor(lab.policy + "maintain base { within deep  drift at most 100% }")
    anchor = values(governor)
    proposal = lab.step(governor, lab.batch("aa"))
    wanted = float((values(governor) - anchor).norm() / anchor.norm())
    assert math.isclose(proposal.maintained.drift["deep"], wanted, rel_tol=1e-12)
