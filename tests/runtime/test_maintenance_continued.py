"""Maintained bands over resumptions and changes of policy: what stays maintained keeps its anchor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.runtime.errors import LedgerError, MaskError
from tests.runtime.maintained import BOUND, anchor_files, drift, flat, values

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
