"""The memorization manifest says of every run what its steps, taken one by one, add up to."""

from __future__ import annotations

import json
import random
from collections import Counter
from importlib.resources import files

import pytest
import torch
from jsonschema import Draft202012Validator

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.memorization.dossier import check_secret, dossiers
from gradwarden.runtime.memorization.manifest import Manifest

GUARDS = """
signals { heat : number 0..1 default 0 }
memorization hot { when heat >= 0.75  refuse  because "by heart" }
memorization warm { when heat >= 0.5  cap deep at 0 }
advisory memorization tepid { when heat >= 0.25  refuse }
retain often { when kind == a  at most 3 exposures }
"""

SCHEMA = json.loads(files("gradwarden.runtime").joinpath("schemas/memorization.schema.json").read_bytes())


def check_schema(document):
    Draft202012Validator(SCHEMA).validate({"ledger": "run.ledger", "verified": False, **document})


@pytest.fixture
def told(lab):
    """A run of random heats, and what its proposals said: (step, id, heat, decision, committed)."""
    chance, said = random.Random(5), []
    governor = lab.governor(lab.policy + GUARDS)
    for step in range(16):
        examples = [lab.example(f"e{n}", "ab"[n % 2]) for n in chance.sample(range(12), 4)]
        heat = [chance.choice([0, 0, 0, 0.3, 0.6, 0.9]) for _ in examples]
        proposal = lab.step(
            governor, examples, signals={"heat": heat}, scale=float("inf") if step == 7 else 1
        )
        assert proposal.committed == (step != 7)
        for example, warmth, decision in zip(examples, heat, proposal.decisions, strict=True):
            said.append((step, example["id"], warmth, decision, proposal.committed))
    governor.close()
    assert lab.verify().ok
    return said


def secret(lab):
    return Committer.load(lab.path().with_name("run.ledger.secret"))


def test_every_example_is_told_as_its_steps_were(lab, told):
    committer, manifest = secret(lab), Manifest.read(lab.path())
    names = {name for _, name, *_ in told}
    assert set(manifest.traces) == {committer.commit(name) for name in names}
    for name in names:
        own = [(step, heat, decision, done) for step, of, heat, decision, done in told if of == name]
        learned = [(step, decision) for step, _, decision, done in own if done and any(decision.micro)]
        flagged = [step for step, heat, decision, _ in own if heat >= 0.25 or "often" in decision.rules]
        acted = {
            rule for *_, decision, _ in own for rule in decision.rules if rule in ("hot", "warm", "often")
        }
        first = min(flagged, default=None)
        after = [decision for step, decision in learned if first is not None and step >= first]
        trace = manifest.traces[committer.commit(name)]
        assert (trace.exposures, trace.after) == (len(learned), len(after))
        assert (trace.flags, trace.first_flag, trace.last_flag) == (
            len(flagged),
            first,
            max(flagged, default=None),
        )
        assert trace.acted == acted
        assert trace.noted == ({"tepid"} if any(heat >= 0.25 for _, heat, *_ in own) else set())
        assert trace.deepest == _deepest([decision for _, decision in learned])
        assert trace.deepest_after == _deepest(after)
        risk = ("limited" if after else "stopped") if acted else "noted" if trace.noted else "unflagged"
        assert trace.risk == risk


def _deepest(decisions):
    """Bands are `shallow` and `deep`, in this order."""
    reached = {band for decision in decisions for band, weight in decision.weights.items() if weight}
    return "deep" if "deep" in reached else "shallow" if reached else None


def test_the_manifest_adds_up(lab, told):
    document = Manifest.read(lab.path()).to_json()
    check_schema(document)
    assert document["steps"] == 16
    learned = sum(done and any(decision.micro) for *_, decision, done in told)
    assert document["exposures"] == learned
    groups = {group["class"]: group for group in document["risk"]}
    assert list(groups) == ["stopped", "limited", "noted", "unflagged"]
    assert sum(group["examples"] for group in groups.values()) == document["examples"] == 12
    assert sum(sum(group["exposures"].values()) for group in groups.values()) == learned
    assert len(document["flagged"]) == 12 - groups["unflagged"]["examples"]
    assert groups["stopped"]["exposures"]["after"] == groups["unflagged"]["exposures"]["after"] == 0
    flagged = set[str]()
    after = 0
    for _, name, heat, decision, done in told:
        flagged |= {name} if heat >= 0.25 or "often" in decision.rules else set()
        after += name in flagged and done and any(decision.micro)
    assert sum(group["exposures"]["after"] for group in groups.values()) == after > 0
    granted = [sum(part[risk] for part in document["granted_by"]) for risk in groups]
    assert granted == [group["examples"] for group in groups.values()]
    for group in groups.values():
        assert sum(part["examples"] for part in group["repeated"]) == group["examples"]


def test_a_guard_is_told_with_what_it_flagged(lab, told):
    guards = {guard["rule"]: guard for guard in Manifest.read(lab.path()).to_json()["guards"]}
    flags = Counter[str]()
    for *_, heat, decision, _ in told:
        flags.update(
            {
                "hot": heat >= 0.75,
                "warm": heat >= 0.5,
                "tepid": heat >= 0.25,
                "often": "often" in decision.rules,
            }
        )
    assert {rule: guard["flags"] for rule, guard in guards.items()} == flags
    assert (guards["hot"]["effects"], guards["hot"]["because"]) == (["memorized"], "by heart")
    assert (guards["tepid"]["level"], guards["warm"]["effects"]) == ("advisory", ["capped"])
    assert guards["often"]["kind"] == "retain"


def test_holding_out_tokens_is_told_and_flags_nobody(lab):
    governor = lab.governor(lab.policy + "memorization fish { when kind == a  hold out 1 in 4 tokens }\n")
    for _ in range(2):
        with governor.step([lab.example("e0"), lab.example("e1", "b")]) as proposal:
            proposal.token_mask(torch.ones(2, 20, dtype=torch.long))
            proposal.backward(lab.losses(governor.model, lab.inputs(2)))
        assert proposal.committed
    governor.close()
    manifest = Manifest.read(lab.path())
    traces = [manifest.traces[secret(lab).commit(name)] for name in ("e0", "e1")]
    assert [(trace.held_out, trace.risk) for trace in traces] == [(2, "unflagged"), (0, "unflagged")]
    document = manifest.to_json()
    check_schema(document)
    (guard,) = document["guards"]
    assert (guard["effects"], guard["flags"], guard["examples"], guard["held_out"]) == (["held_out"], 2, 1, 2)


def test_a_dossier_lists_the_steps_of_one_example(lab, told):
    committer = secret(lab)
    check_secret(lab.path(), committer)
    known, absent = dossiers(lab.path(), [committer.commit("e3"), committer.commit("nobody")])
    own = [(step, decision, done) for step, name, _, decision, done in told if name == "e3"]
    document = known.to_json()
    check_schema({"asked": [{"id": "e3", **document}, {"id": "nobody", **absent.to_json()}]})
    assert [one["step"] for one in document["steps"]] == [step for step, *_ in own]
    assert [one["weights"] for one in document["steps"]] == [decision.weights for _, decision, _ in own]
    assert known.learned == [step for step, decision, done in own if done and any(decision.micro)]
    assert known.bands() == {
        band: steps
        for band in ("shallow", "deep")
        if (steps := [step for step, decision, done in own if done and decision.weights[band]])
    }
    assert (absent.to_json()["known"], absent.seen) == (False, ())


def test_a_step_whose_outcome_a_crash_took_counts_as_learned(lab):
    governor = lab.governor(lab.policy + GUARDS)
    lab.step(governor, [lab.example("e0")])
    governor.step([lab.example("e1")]).__enter__()
    governor.abandon()
    (dossier,) = dossiers(lab.path(), [secret(lab).commit("e1")])
    assert [one.outcome for one in dossier.seen] == ["unknown"]
    assert dossier.learned == [1]
    resumed = lab.governor(lab.policy + GUARDS)
    lab.step(resumed, [lab.example("e1")])
    resumed.close()
    (dossier,) = dossiers(lab.path(), [secret(lab).commit("e1")])
    assert [one.outcome for one in dossier.seen] == ["unknown", "committed"]
    assert lab.verify().ok


def test_guards_are_those_of_the_policy_that_was_in_force(lab):
    governor = lab.governor(lab.policy + GUARDS)
    hot = {"signals": {"heat": 0.8}}
    lab.step(governor, [lab.example("e0")], **hot)
    governor.change_policy(
        lab.program(lab.policy + GUARDS.replace("memorization hot", "memorization scalding"), governor.model)
    )
    lab.step(governor, [lab.example("e0")], **hot)
    governor.close()
    trace = Manifest.read(lab.path()).traces[secret(lab).commit("e0")]
    assert {"hot", "scalding"} <= trace.acted
    assert (trace.exposures, trace.risk) == (0, "stopped")


def test_the_quarantine_counts_as_deep_only_where_nothing_else_was_reached(lab):
    policy = lab.policy.replace("deep = rest", 'deep = names "0.*"  quarantine = names "4.*"').replace(
        "top 40%", 'names "2.*"'
    )
    policy += "depth q { when kind == a  reach quarantine }\nsignals { heat : number 0..1 default 0 }\n"
    governor = lab.governor(policy + "memorization hot { when heat >= 0.5  route to quarantine }\n")
    lab.step(governor, [lab.example("e0"), lab.example("e1")], signals={"heat": [0.9, 0]})
    lab.step(governor, [lab.example("e1")], signals={"heat": 0.9})
    governor.close()
    traces = Manifest.read(lab.path()).traces
    confined, loose = (traces[secret(lab).commit(name)] for name in ("e0", "e1"))
    assert (confined.deepest, confined.risk) == ("quarantine", "limited")
    assert (loose.deepest, loose.deepest_after) == ("deep", "quarantine")


def test_a_secret_of_another_run_is_told_from_an_example_that_is_absent(lab, told):
    with pytest.raises(LedgerError, match="not the one under which"):
        check_secret(lab.path(), Committer(bytes(32)))
