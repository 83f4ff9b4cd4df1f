"""What is to be kept is trained again in every step that could make a model forget it; or there is none."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gradwarden.policy import Context, compile_policy, parse_policy
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.evaluation.rehearsal import shortfall
from gradwarden.policy.program import SCALE
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.rehearsal import RehearsalSampler
from tests.runtime.maintained import values

POLICY = """policy small version 1 language 1
examples { kind : one of a, b, c, d   ok : bool }
model { shallow = top 40%  deep = rest }
depth a { when kind == a  reach all }
depth b { when kind == b  reach shallow at 0.5 }
depth d { when kind == d  reach deep at 0.25 }
suppress no { when not ok  because "no consent" }
"""

RULE = "maintain base { within deep  rehearse d at least 20% }\n"

# `a` has weight 1 in `deep`, `d` a quarter, `b` none: one `d` beside one `a` brings 20% of the weight.


# --- the gate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_a_step_that_rehearses_too_little_is_refused_and_changes_nothing(lab, state_of, changes, engine):
    governor = lab.governor(lab.policy + RULE, engine=engine)
    assert lab.step(governor, lab.batch("ad")).committed
    before = state_of(governor)
    proposal = lab.step(governor, lab.batch("aad", "f"))
    assert (proposal.refusal.gate, proposal.refusal.reason) == ("admission", "rehearsal_short")
    assert proposal.refusal.band == "deep"
    assert not proposal.active
    assert not changes(before, state_of(governor))
    assert lab.step(governor, lab.batch("aadd", "g")).committed
    governor.close()
    (refused,) = lab.bodies("refused")
    assert "brings 11.1111% of the step's weight in the band `deep`" in refused["detail"]
    assert lab.verify().ok


def test_a_step_that_does_not_reach_the_band_owes_nothing(lab):
    governor = lab.governor(lab.policy + RULE)
    kept = values(governor)
    assert lab.step(governor, lab.batch("bb")).committed
    assert (values(governor) == kept).all()


def test_what_is_refused_does_not_count_as_rehearsed(lab):
    governor = lab.governor(lab.policy + RULE)
    assert lab.step(governor, lab.batch("aD")).refusal.reason == "rehearsal_short"


def test_a_rule_demands_nothing_before_its_step_nor_where_it_only_advises(lab):
    governor = lab.governor(lab.policy + RULE.replace("20%", "20%  from step 1"))
    assert lab.step(governor, lab.batch("a")).committed
    assert not lab.step(governor, lab.batch("a", "f")).committed
    advised = lab.governor(lab.policy + "advisory " + RULE, name="advised")
    assert lab.step(advised, lab.batch("a")).committed


def test_a_loop_over_micro_batches_may_go_on_in_a_refused_step(lab):
    governor = lab.governor(lab.policy + RULE)
    with governor.step(lab.batch("aaaa")) as proposal:
        for part in proposal.micro_batches(2):
            proposal.backward(lab.losses(governor.model, lab.inputs(4)[part]))
    assert proposal.refusal.reason == "rehearsal_short"


@given(st.lists(st.sampled_from("abdD"), max_size=12), st.integers(1, 100))
def test_what_falls_short_is_told_by_adding_weights_up(kinds, asked):
    text = POLICY + RULE.replace("20%", f"{asked}%")
    program = compile_policy(parse_policy(text))
    decisions = [
        decide(program, {"kind": kind.lower(), "ok": kind.islower()}, Context(step=0)) for kind in kinds
    ]
    brought, whole = 25 * kinds.count("d"), 100 * kinds.count("a") + 25 * kinds.count("d")
    short = shortfall(program, 0, [(d.micro, d.rules, 1) for d in decisions])
    assert (short is not None) == (100 * brought < asked * whole)


# --- the record ---------------------------------------------------------------------------------------------


def test_a_trainer_that_commits_a_step_without_rehearsal_is_found_out(lab, monkeypatch):
    governor = lab.governor(lab.policy + RULE)
    lab.step(governor, lab.batch("ad"))
    monkeypatch.setattr("gradwarden.runtime.steps.admission_gate.short_of_rehearsal", lambda *_: None)
    assert lab.step(governor, lab.batch("aaa", "f")).committed
    governor.close()
    (finding,) = lab.verify().findings
    assert finding.code == "wrong_rehearsal"
    assert "step 1 was committed" in finding.message


# --- the sampler --------------------------------------------------------------------------------------------


@st.composite
def data(draw):
    rows = draw(st.lists(st.tuples(st.integers(0, SCALE), st.booleans()), min_size=1, max_size=40))
    weights = np.array([[weight] for weight, _ in rows], dtype=np.int64)
    return weights, np.array([chosen for _, chosen in rows])


@given(data(), st.integers(1, SCALE), st.integers(1, 8), st.integers(0, 5))
def test_every_batch_rehearses_enough_and_holds_what_is_new_once_an_epoch(drawn, share, size, seed):
    weights, rehearsed = drawn
    try:
        sampler = RehearsalSampler(weights, rehearsed, share, batch_size=size, seed=seed)
    except MaskError:
        assume(False)
    pool = set(np.flatnonzero(rehearsed & (weights[:, 0] > 0)).tolist())
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for rows in batches:
        assert 1 <= len(rows) <= size
        assert len(set(rows.tolist())) == len(rows)
        brought = sum(int(weights[row, 0]) for row in rows.tolist() if row in pool)
        assert brought * SCALE >= share * int(weights[rows].sum())
    new = sorted(row for rows in batches for row in rows.tolist() if row not in pool)
    assert new == sorted(set(range(len(weights))) - pool)


def test_no_number_smaller_than_the_one_chosen_would_do():
    weights, rehearsed = np.full((12, 1), SCALE, dtype=np.int64), np.arange(12) < 6
    sampler = RehearsalSampler(weights, rehearsed, 250_000, batch_size=8, seed=0)
    assert sampler.per_batch == 2
    weights[rehearsed] = SCALE // 2
    assert RehearsalSampler(weights, rehearsed, 250_000, batch_size=8, seed=0).per_batch == 4


def test_what_is_rehearsed_comes_round_and_round():
    weights, rehearsed = np.full((22, 1), SCALE, dtype=np.int64), np.arange(22) < 5
    batches = list(RehearsalSampler(weights, rehearsed, 400_000, batch_size=5, seed=1))
    drawn = [row for rows in batches for row in rows[:2].tolist()]
    assert len(batches) == 6
    assert [sorted(drawn[:5]), sorted(drawn[5:10])] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(("pool", "size"), [(0, 4), (1, 8), (6, 1)])
def test_too_few_to_rehearse_from_are_told(pool, size):
    weights = np.full((12, 1), SCALE, dtype=np.int64)
    with pytest.raises(MaskError, match="need"):
        RehearsalSampler(weights, np.arange(12) < pool, 250_000, batch_size=size, seed=0)


def test_an_epoch_that_was_interrupted_goes_on():
    weights, rehearsed = np.full((30, 1), SCALE, dtype=np.int64), np.arange(30) < 9
    whole, broken, resumed = (
        RehearsalSampler(weights, rehearsed, 250_000, batch_size=4, seed=3) for _ in range(3)
    )
    begun = list(islice(iter(broken), 2))
    resumed.load_state_dict(broken.state_dict())
    wanted = [rows.tolist() for rows in whole]
    assert [rows.tolist() for rows in [*begun, *resumed]] == wanted
    assert [rows.tolist() for rows in whole] != wanted


def test_a_run_over_its_batches_is_never_refused_and_verifies(lab):
    governor = lab.governor(lab.policy + RULE)
    examples = lab.batch("abadAaddabDa")
    sampler = RehearsalSampler.of(governor, examples, batch_size=4, seed=0)
    for rows in sampler:
        assert lab.step(governor, [examples[row] for row in rows.tolist()]).committed
    governor.close()
    assert lab.verify().ok


def test_the_rule_is_named_where_there_is_not_just_one(lab):
    with pytest.raises(MaskError, match="0 `maintain` rules"):
        RehearsalSampler.of(lab.governor(), lab.batch("ad"), batch_size=2, seed=0)
    both = RULE + "maintain other { within shallow  rehearse a at least 50% }\n"
    governor = lab.governor(lab.policy + both, name="both")
    with pytest.raises(MaskError, match="2 `maintain` rules"):
        RehearsalSampler.of(governor, lab.batch("ad"), batch_size=2, seed=0)
    sampler = RehearsalSampler.of(governor, lab.batch("add"), batch_size=3, seed=0, rule="base")
    assert sampler.per_batch == 2
