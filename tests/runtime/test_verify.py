"""Verification finds whatever a holder of the key could write down wrongly, and names the entry."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from base64 import b64decode, b64encode
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.policy.evaluation.replay import Replayer
from gradwarden.runtime import Privacy
from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.ledger.chain import ChainReport
from gradwarden.runtime.ledger.entries import Entry, encode_body
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.verification.run_replay import RunReplay

RULES = """
retain often { when kind == a  at most 3 exposures }
gradient { shallow at most 0.5 }
"""


@pytest.fixture
def run(lab) -> Any:
    """A sealed run: five steps, one of them refused, and a checkpoint."""
    governor = lab.governor(lab.policy + RULES)
    for kinds in ("aab", "bb", "cC", "aBd"):
        lab.step(governor, lab.batch(kinds, kinds))
    governor.checkpoint(lab.folder / "model.safetensors")
    lab.step(governor, lab.batch("aab", "aab"))
    governor.close()
    assert lab.verify().ok
    return lab


def of(entries: Any, kind: str, number: int = 0) -> dict[str, Any]:
    return [body for k, body in entries if k == kind][number]


def place_of(entries: Any, kind: str, number: int = 0) -> int:
    return [index for index, (k, _) in enumerate(entries) if k == kind][number]


# --- one forgery for each thing that can be wrong -----------------------------------------------------------


def heavier(entries):
    of(entries, "decisions")["decisions"][1]["weights"][0] += 1


def other_verdict(entries):
    decision = next(d for d in of(entries, "decisions")["decisions"] if d["verdict"] == "limit")
    decision["verdict"] = "admit"


def other_verdict_that_the_step_hides(entries):
    """The step's own verdict is `limit` all the same, for another example."""
    decisions = [d for kind, body in entries if kind == "decisions" for d in body["decisions"]]
    next(d for d in decisions if d["weights"] == [0, 250_000])["verdict"] = "admit"


def hidden_advice(entries):
    of(entries, "decisions")["decisions"][0]["advisory"] = ["no"]


def without_rules(entries):
    of(entries, "decisions")["decisions"][0]["rules"] = []


def hidden_waiver(entries):
    of(entries, "decisions")["decisions"][0]["waived"] = ["no"]


def without_obligation(entries):
    of(entries, "decisions")["decisions"][0]["obligations"] = [["privacy", "patients"]]


def other_decision(entries):
    step = of(entries, "step")
    step["decision"] = step["decision"][::-1]


def unknown_decision(entries):
    of(entries, "step")["decision"][0] = 99


def missing_band(entries):
    of(entries, "decisions")["decisions"][0]["weights"].pop()


def renumbered_decision(entries):
    of(entries, "decisions")["decisions"][0]["id"] = 5


def step_verdict(entries):
    of(entries, "step")["verdict"] = "admit"


def fewer_exposures(entries):
    of(entries, "step", 4)["exposures"][0] = 0


def hidden_repetition(entries):
    step = of(entries, "step", 1)
    packed = b64decode(step["commitments"])
    step["commitments"] = b64encode(packed[:32] * 2).decode()


def padded(entries):
    step = of(entries, "step")
    step["commitments"] = b64encode(b64decode(step["commitments"]) + bytes(32)).decode()
    for name in ("classes", "exposures", "decision"):
        step[name].append(step[name][-1])
    step["count"] += 1


def without_commitments(entries):
    of(entries, "step")["commitments"] = ""


def other_class(entries):
    step = of(entries, "step")
    step["classes"][0] = step["classes"][2]


def unknown_class(entries):
    of(entries, "step")["classes"][0] = 99


def renumbered_class(entries):
    of(entries, "classes")["classes"][0]["id"] = 7


def endless_class(entries):
    of(entries, "classes")["classes"][0]["bits"] = "f" * 40


def unknown_problem(entries):
    of(entries, "classes")["classes"][0] = {"id": 0, "problems": [["kind", "nonsense"]]}


def without_exposures(entries):
    of(entries, "step")["exposures"] = None


def strange_signal(entries):
    of(entries, "step")["signals"] = {"calm": [1, 1, 1]}


def skipped(entries):
    del entries[place_of(entries, "step", 1) : place_of(entries, "committed", 1) + 1]


def repeated(entries):
    start, end = place_of(entries, "step", 1), place_of(entries, "committed", 1) + 1
    entries[end:end] = copy.deepcopy(entries[start:end])


def without_outcome(entries):
    del entries[place_of(entries, "committed", 1)]


def without_outcome_before_a_checkpoint(entries):
    del entries[place_of(entries, "committed", 2)]


def without_step(entries):
    del entries[place_of(entries, "step", 0)]


def two_outcomes(entries):
    place = place_of(entries, "committed", 1)
    entries.insert(place, copy.deepcopy(entries[place]))


def outcome_of_another(entries):
    of(entries, "committed", 1)["step"] = 0


def more_active(entries):
    of(entries, "committed", 1)["active"] = ["shallow", "deep"]


def less_active(entries):
    of(entries, "committed", 0)["active"] = ["shallow"]


def above_cap(entries):
    of(entries, "committed")["norms"]["shallow"] = "0.50001"


def norm_in_words(entries):
    of(entries, "committed")["norms"]["shallow"] = "small"


def norm_of_nothing(entries):
    of(entries, "committed")["norms"]["shallow"] = "nan"


def stray_norm(entries):
    of(entries, "committed", 1)["norms"]["deep"] = "0.1"


def charge_without_rule(entries):
    of(entries, "committed", 1)["privacy"] = {"patients": {"steps": 1, "epsilon": "0.1"}}


def total(name):
    def change(entries):
        of(entries, "sealed")[name] += 1

    return change


def refused_became_committed(entries):
    place = place_of(entries, "refused")
    norms = {"shallow": None, "deep": None}
    body = {"step": 2, "active": [], "norms": norms, "loss": None, "privacy": {}}
    entries[place] = ("committed", body)


def early_checkpoint(entries):
    of(entries, "checkpoint")["step"] -= 1


def checkpoint_in_a_step(entries):
    place = place_of(entries, "checkpoint")
    entries.insert(place_of(entries, "step", 3) + 1, entries.pop(place))


def altered_program(entries):
    program = of(entries, "program")
    program["text"] = program["text"].replace("500000", "600000")


def swapped_program(entries):
    """A program that is whole and well-formed, but not the one that the opening names."""
    program = of(entries, "program")
    program["text"] = program["text"].replace("500000", "600000")
    program["digest"] = hashlib.sha256(program["text"].encode()).hexdigest()


def program_with_another_digest(entries):
    program = of(entries, "program")
    program["text"] = program["text"].replace("500000", "600000")
    program["digest"] = hashlib.sha256(program["text"].encode()).hexdigest()
    of(entries, "opened")["policy"]["digest"] = program["digest"]


def garbled_program(entries):
    of(entries, "program")["text"] = "{}"


def without_program(entries):
    del entries[place_of(entries, "program")]


def other_name(entries):
    of(entries, "opened")["policy"]["version"] += 1


def other_bands(entries):
    of(entries, "opened")["bands"] = ["shallow", "deeper"]


def other_model(entries):
    of(entries, "opened")["model_map"] = "0" * 64


def norm_below_zero(entries):
    of(entries, "committed")["norms"]["shallow"] = "-1e9"


def norm_left_out(entries):
    del of(entries, "committed")["norms"]["deep"]


def norm_not_a_number(entries):
    of(entries, "committed")["norms"]["deep"] = "NaN"


def loss_in_words(entries):
    of(entries, "committed")["loss"] = "0x10"


def stray_commitments(entries):
    body = {"step": 7, "part": 3, "commitments": ""}
    entries.insert(place_of(entries, "step", 1), ("examples", body))


def one_example_in_two_classes(entries):
    """Step 2 says that the first example of step 0 has the metadata of another."""
    first, third = b64decode(of(entries, "step")["commitments"]), of(entries, "step", 2)
    third["commitments"] = b64encode(first[:32] + b64decode(third["commitments"])[32:]).decode()


FORGERIES = [
    (norm_below_zero, "wrong_outcome", "committed"),
    (norm_left_out, "wrong_outcome", "committed"),
    (norm_not_a_number, "wrong_outcome", "committed"),
    (loss_in_words, "wrong_outcome", "committed"),
    (stray_commitments, "wrong_step", "examples"),
    (one_example_in_two_classes, "wrong_classes", "step"),
    (heavier, "wrong_decision", "step"),
    (other_verdict, "wrong_decision", "step"),
    (other_verdict_that_the_step_hides, "wrong_decision", "step"),
    (hidden_advice, "wrong_decision", "step"),
    (without_rules, "wrong_decision", "step"),
    (hidden_waiver, "wrong_decision", "step"),
    (without_obligation, "wrong_decision", "step"),
    (other_decision, "wrong_decision", "step"),
    (unknown_decision, "wrong_decision", "step"),
    (missing_band, "wrong_decision", "decisions"),
    (renumbered_decision, "wrong_decision", "decisions"),
    (step_verdict, "wrong_decision", "step"),
    (fewer_exposures, "wrong_exposures", "step"),
    (hidden_repetition, "wrong_exposures", "step"),
    (padded, "wrong_totals", "sealed"),
    (without_commitments, "wrong_step", "step"),
    (other_class, "wrong_decision", "step"),
    (unknown_class, "wrong_classes", "step"),
    (renumbered_class, "wrong_classes", "classes"),
    (endless_class, "wrong_classes", "classes"),
    (unknown_problem, "wrong_classes", "classes"),
    (without_exposures, "wrong_step", "step"),
    (strange_signal, "wrong_step", "step"),
    (skipped, "wrong_step", "step"),
    (repeated, "wrong_step", "step"),
    (without_outcome, "wrong_step", "step"),
    (without_outcome_before_a_checkpoint, "wrong_step", "checkpoint"),
    (without_step, "wrong_outcome", "committed"),
    (two_outcomes, "wrong_outcome", "committed"),
    (outcome_of_another, "wrong_outcome", "committed"),
    (more_active, "wrong_outcome", "committed"),
    (less_active, "wrong_outcome", "committed"),
    (above_cap, "wrong_outcome", "committed"),
    (norm_in_words, "wrong_outcome", "committed"),
    (norm_of_nothing, "wrong_outcome", "committed"),
    (stray_norm, "wrong_outcome", "committed"),
    (charge_without_rule, "wrong_budget", "committed"),
    (total("steps"), "wrong_totals", "sealed"),
    (total("committed"), "wrong_totals", "sealed"),
    (total("refused"), "wrong_totals", "sealed"),
    (total("examples"), "wrong_totals", "sealed"),
    (refused_became_committed, "wrong_outcome", "committed"),
    (early_checkpoint, "wrong_step", "checkpoint"),
    (checkpoint_in_a_step, "wrong_step", "checkpoint"),
    (altered_program, "program_damaged", "program"),
    (swapped_program, "program_damaged", "program"),
    (program_with_another_digest, "wrong_decision", "step"),
    (garbled_program, "program_damaged", "program"),
    (without_program, "program_damaged", "classes"),
    (other_name, "program_damaged", "program"),
    (other_bands, "program_damaged", "program"),
    (other_model, "program_damaged", "program"),
]


@pytest.mark.parametrize(("change", "code", "kind"), FORGERIES, ids=[c.__name__ for c, _, _ in FORGERIES])
def test_a_forged_entry_is_found_and_named(run, change, code, kind):
    report = run.forge(change)
    assert (report.status, report.ok) == ("VIOLATION", False)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [finding.code for finding in errors] == [code]
    assert run.entries("forged")[errors[0].index].kind == kind


def test_the_first_wrong_decision_of_a_step_ends_the_work(run, monkeypatch):
    """A step of some kilobytes can ask for thousands of decisions, each as long as a program has rules."""
    worked_out = []
    decide = Replayer._decide

    def counted(self, key, *rest):
        worked_out.append(key)
        return decide(self, key, *rest)

    monkeypatch.setattr(Replayer, "_decide", counted)
    assert run.forge(without_rules).status == "VIOLATION"
    assert len(worked_out) == 1


def test_forging_nothing_changes_nothing(run):
    report = run.forge(lambda entries: None)
    assert report.ok
    assert report.facts["decisions_replayed"] == run.verify().facts["decisions_replayed"] == 13


def test_a_run_that_ends_within_a_step_cannot_be_sealed_without_its_outcome(run):
    def change(entries):
        del entries[place_of(entries, "committed", 3) :]
        entries.append(("sealed", {"steps": 5, "committed": 3, "refused": 1, "examples": 7}))

    assert [finding.code for finding in run.forge(change).findings] == ["wrong_outcome"]


def test_an_unsealed_run_is_incomplete_and_its_violations_are_found_all_the_same(run):
    assert run.forge(lambda entries: entries[:-1], target="open").status == "INCOMPLETE"

    def change(entries):
        more_active(entries)
        entries.pop()

    assert run.forge(change).status == "VIOLATION"


def test_a_run_that_has_just_begun_is_incomplete(run):
    report = run.forge(lambda entries: entries[:1], target="begun")
    assert (report.status, [finding.code for finding in report.findings]) == ("INCOMPLETE", ["not_sealed"])

    def sealed(entries):
        return [entries[0], ("sealed", {"steps": 0, "committed": 0, "refused": 0, "examples": 0})]

    assert [finding.code for finding in run.forge(sealed, target="empty").findings] == ["program_damaged"]


def test_of_a_program_that_was_tampered_with_nothing_else_is_said(run):
    content = run.path().read_bytes()
    run.path("forged").write_bytes(content.replace(b'"kind":"program"', b'"kind":"programs"', 1))
    report = run.verify("forged")
    assert (report.status, [(f.index, f.code) for f in report.findings]) == (
        "TAMPERED",
        [(1, "unknown_kind")],
    )


def test_a_violation_does_not_hide_tampering(run):
    run.forge(heavier)
    path = run.path("forged")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"loss":"', b'"loss":"1', 1))
    assert run.verify("forged").status == "TAMPERED"


def test_without_decisions_only_the_chain_is_checked(run):
    run.forge(heavier)
    report = run.verify("forged", only="entries")
    assert report.ok
    assert "decisions_replayed" not in report.facts


# --- the policy ---------------------------------------------------------------------------------------------


def test_the_policy_that_governed_the_run_is_recognised_bound_to_the_model_or_not(run):
    text = run.policy + RULES
    assert run.verify(program=run.program(text, run.model())).ok
    assert run.verify(program=run.program(text)).ok


def test_another_policy_is_not(run):
    text = (run.policy + RULES).replace("0.5", "0.25", 1)
    for program in (run.program(text), run.program(text, run.model())):
        report = run.verify(program=program)
        assert report.status == "VIOLATION"
        assert [finding.code for finding in report.findings] == ["policy_mismatch"]
        assert run.entries()[report.findings[0].index].kind == "program"


def test_the_same_policy_bound_to_another_model_is_another_policy(run):
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    report = run.verify(program=run.program(run.policy + RULES, other))
    assert [finding.code for finding in report.findings] == ["policy_mismatch"]


def test_a_run_whose_policy_changed_replays_each_step_under_the_program_in_force(lab):
    model = lab.model()
    governor = lab.governor(model=model)
    lab.step(governor, lab.batch("ab"))
    changed = lab.policy.replace("reach shallow at 0.5", "reach deep")
    governor.change_policy(lab.program(changed, model))
    lab.step(governor, lab.batch("ab"))
    governor.close()
    report = lab.verify()
    assert report.ok
    assert report.facts["decisions_replayed"] == 4
    assert lab.verify(program=[lab.program(changed), lab.program(lab.policy)]).ok
    for policy, kinds in ((lab.policy, ["step", "policy_changed"]), (changed, [])):
        (finding,) = lab.verify(program=lab.program(policy)).findings
        assert finding.code == "policy_mismatch"
        before = [entry.kind for entry in lab.entries()[: finding.index]]
        assert [kind for kind in kinds if kind not in before] == []

    def old_weights(entries):
        first, second = of(entries, "decisions", 0), of(entries, "decisions", 1)
        second["decisions"] = copy.deepcopy(first["decisions"])

    assert [finding.code for finding in lab.forge(old_weights).findings] == ["wrong_decision"]

    def in_the_middle(entries):
        place = place_of(entries, "policy_changed")
        entries[place - 1], entries[place] = entries[place], entries[place - 1]

    found = lab.forge(in_the_middle, target="middle").findings
    assert [finding.code for finding in found] == ["wrong_step"]


# --- the weights --------------------------------------------------------------------------------------------


def test_the_checkpoint_in_hand_must_be_the_one_named_last(run):
    weights = run.folder / "model.safetensors"
    assert run.verify(weights=weights).ok
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    report = run.verify(weights=weights)
    assert report.status == "VIOLATION"
    assert [finding.code for finding in report.findings] == ["weights_mismatch"]


def test_a_run_without_checkpoints_vouches_for_no_weights(lab):
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.close()
    weights = lab.folder / "model.safetensors"
    weights.write_bytes(b"")
    report = lab.verify(weights=weights)
    assert [finding.code for finding in report.findings] == ["weights_mismatch"]


# --- whatever is written, verification gives an answer ------------------------------------------------------

_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**53 - 1), st.sampled_from(["", "x", "-1", "nan", "a", "0"]),
    st.just([]), st.just({}),
)  # fmt: skip


def _mutate(value: Any, data: st.DataObject) -> Any:
    """Return a body with one spot replaced, dropped or doubled."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _mutate(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        place = data.draw(st.integers(0, len(value) - 1))
        how = data.draw(st.sampled_from(("change", "change", "drop", "double")))
        if how == "drop":
            return value[:place] + value[place + 1 :]
        if how == "double":
            return [*value[:place], value[place], *value[place:]]
        return [*value[:place], _mutate(value[place], data), *value[place + 1 :]]
    return data.draw(_values)


@settings(max_examples=250)
@given(data=st.data())
def test_no_entries_of_the_right_shape_break_the_replay(recorded, data):
    entries = list(recorded)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(entries) - 1))
        how = data.draw(st.sampled_from(("mutate", "mutate", "mutate", "drop", "swap", "double")))
        kind, body = entries[place]
        if how == "drop":
            entries.pop(place)
        elif how == "swap":
            entries.insert(data.draw(st.integers(0, len(entries))), entries.pop(place))
        elif how == "double":
            entries.insert(place, entries[place])
        else:
            entries[place] = (kind, _mutate(body, data))
        if not entries:
            return
    replay = RunReplay(())
    for index, (kind, body) in enumerate(entries):
        try:
            encode_body(kind, body)
        except EntryInvalid:
            return  # the chain refuses it before it is replayed
        if index and kind == "opened":
            return
        replay.accept(Entry(index, kind, body, b""))
    size = len(entries)
    list(replay.findings(ChainReport("OK", size, "", None, (), True, size, (), None)))
    replay.facts()


@pytest.fixture(scope="module")
def recorded(laboratory, tmp_path_factory, run_signer) -> Any:
    """The entries of a run with every kind of input: slots, signals, exposures, privacy and a resumption."""
    lab = laboratory(tmp_path_factory.mktemp("recorded"), run_signer)
    text = lab.policy + (
        "signals { loss_ratio : number 0..10 default 1 }\n"
        "memorization g { when loss_ratio < 0.9  cap deep at 0 }\n"
        "retain r { when has gone  until gone  at most 3 exposures }\n"
        "privacy p { when kind == d  within deep  epsilon 3  delta 1e-5  clip 1.0 }\n"
    )
    plan = JointPlan.for_noise(privacy_rules(lab.program(text)), 0.01, 4.0)

    def train() -> Any:
        governor = lab.governor(
            text, privacy=Privacy(plan, on_trust=["exposures", "sampling"]), normaliser=4.0
        )
        for _ in range(3):
            lab.step(governor, [*lab.batch("abd"), lab.example("late", gone="2026-05-01")])
        return governor

    governor = train()
    governor.ledger.close()
    governor.engine.close()
    train().close()
    assert lab.verify().ok
    return [(entry.kind, entry.body) for entry in lab.entries() if entry.kind != "head"]


def test_verifying_imports_no_torch(run):
    public = run.folder / "run.pub"
    public.write_text(run.signer.public.vkey + "\n")
    script = (
        "import sys\n"
        "from gradwarden.runtime.ledger.keys import PublicKey\n"
        "from gradwarden.runtime.verification.verify import verify_ledger\n"
        "report = verify_ledger(sys.argv[1], [PublicKey.load(sys.argv[2])])\n"
        "assert report.ok and report.facts['decisions_replayed'] == 13, report\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'safetensors')))\n"
    )
    command = [sys.executable, "-c", script, str(run.path()), str(public)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
