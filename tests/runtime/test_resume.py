"""A run that ended too early goes on where its ledger stands: after an exception, a crash, a kill."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden.runtime import Governor, Ledger, Signer
from gradwarden.runtime.errors import KeyFileError, LedgerError, PrivacyError
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.ledger.storage import LedgerFile
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

LIMITED = "retain few { when kind == a  at most 3 exposures }\n"


def crash(lab, keep: int | None = None, extra: bytes = b"") -> None:
    """Leave of the ledger what a crash leaves: its first `keep` entries, no head beside it, a torn line."""
    lines = lab.path().read_bytes().splitlines(keepends=True)
    lab.path().write_bytes(b"".join(lines[:keep]) + extra)
    Path(f"{lab.path()}.head").unlink(missing_ok=True)


def place(lab, kind: str, number: int = 0) -> int:
    return [index for index, entry in enumerate(lab.entries()) if entry.kind == kind][number]


def test_a_run_left_by_an_exception_is_resumed_with_its_steps_exposures_and_outcomes(lab):
    class LeftError(RuntimeError):
        pass

    def first() -> None:
        with lab.governor(lab.policy + LIMITED) as governor:
            for _ in range(2):
                lab.step(governor, lab.batch("ab"))
            lab.step(governor, lab.batch("c", "c"))
            raise LeftError

    with pytest.raises(LeftError):
        first()
    assert lab.verify().status == "INCOMPLETE"
    with lab.governor(lab.policy + LIMITED) as governor:
        assert (governor.next_step, governor.committed, governor.refused) == (3, 2, 1)
        verdicts = [[d.verdict for d in lab.step(governor, lab.batch("abd")).decisions] for _ in range(2)]
    assert verdicts == [["admit", "limit", "limit"], ["refuse", "limit", "limit"]]
    assert [body["step"] for body in lab.bodies("step")] == [0, 1, 2, 3, 4]
    assert [body["exposures"] for body in lab.bodies("step")][3:] == [[2, 2, 0], [3, 3, 1]]
    assert [classes["classes"][0]["id"] for classes in lab.bodies("classes")][-1] == 0
    report = lab.verify()
    assert report.ok
    assert report.facts["committed"] == 4


def test_an_error_in_the_program_around_the_steps_leaves_the_run_to_be_resumed(lab):
    def first() -> None:
        with lab.governor() as governor, governor.step(lab.batch("ab")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first()
    assert [entry.kind for entry in lab.entries()][-2:] == ["refused", "head"]
    lab.governor().close()
    assert lab.verify().ok


@pytest.mark.parametrize("call", ["write", "sync"])
def test_training_stops_where_evidence_cannot_be_written(lab, state_of, changes, monkeypatch, call):
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.ledger.flush()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = state_of(governor)
    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, call, fail)
        patch.setattr(governor.ledger._writer, "_durability", "group")
        with pytest.raises(LedgerError, match="No space left on device"):
            lab.step(governor, lab.batch("ab"))
    # The disk has room again, and still nothing may follow: what became of the last entry is not known.
    with pytest.raises(LedgerError, match="can no longer be written"):
        lab.step(governor, lab.batch("ab"))
    assert changes(before, state_of(governor)) == []
    with suppress(LedgerError):
        governor.ledger.close()
    lab.step(lab.governor(model=governor.model), lab.batch("ab"))


def test_a_step_whose_outcome_was_lost_counts_as_an_exposure(lab):
    governor = lab.governor(lab.policy + LIMITED)
    for _ in range(2):
        lab.step(governor, lab.batch("aab"))
    governor.ledger.close()
    crash(lab, place(lab, "committed", 1))
    with lab.governor(lab.policy + LIMITED) as again:
        assert (again.next_step, again.committed) == (2, 1)
        assert [d.verdict for d in lab.step(again, lab.batch("aab")).decisions] == ["admit", "admit", "limit"]
        assert [d.verdict for d in lab.step(again, lab.batch("aab")).decisions] == [
            "refuse",
            "refuse",
            "limit",
        ]
    report = lab.verify()
    assert report.ok
    assert (report.facts["steps"], report.facts["committed"]) == (4, 3)
    assert report.facts["exposures"] == 3 + 3 + 3 + 1


@pytest.mark.parametrize("torn", [b"", b'{"body":{"cla'])
def test_a_crash_at_any_entry_leaves_a_run_that_can_be_resumed_and_verified(lab, torn):
    governor = lab.governor(lab.policy + LIMITED)
    lab.step(governor, lab.batch("aab"))
    lab.step(governor, lab.batch("cC", "c"))
    changed = (lab.policy + LIMITED).replace("at 0.5", "at 0.75")
    governor.change_policy(lab.program(changed, governor.model))
    lab.step(governor, lab.batch("aab"))
    governor.ledger.close()
    whole = lab.path().read_bytes()
    size = len(whole.splitlines())
    kinds = set()
    for keep in range(1, size):
        lab.path().write_bytes(whole)
        kinds.add(lab.entries()[keep - 1].kind)
        crash(lab, keep, torn)
        with lab.governor(changed) as again:
            assert lab.step(again, lab.batch("ab")).committed
        report = lab.verify()
        assert report.ok, (keep, report.findings)
    assert {"opened", "program", "classes", "decisions", "step", "committed", "policy_changed"} <= kinds


def test_a_policy_may_change_where_a_run_is_resumed(lab):
    lab.step(lab.governor(), lab.batch("ab"))
    lab.close()
    changed = lab.policy.replace("at 0.5", "at 0.25")
    with lab.governor(changed) as again:
        assert lab.step(again, lab.batch("ab")).weights[1].tolist() == [0.25, 0.0]
    assert [body["step"] for body in lab.bodies("policy_changed")] == [1]
    assert lab.verify().ok


def test_the_same_policy_is_not_recorded_again(lab):
    lab.step(lab.governor(), lab.batch("ab"))
    lab.close()
    lab.governor().close()
    assert [entry.kind for entry in lab.entries()].count("program") == 1
    assert lab.bodies("policy_changed") == []


def test_a_run_cannot_be_resumed_without_its_secret_and_no_other_is_made(lab):
    lab.step(lab.governor(), lab.batch("ab"))
    lab.close()
    secret = Path(f"{lab.path()}.secret")
    kept = secret.read_text()
    secret.unlink()
    with pytest.raises(KeyFileError):
        lab.governor()
    assert not secret.exists()
    secret.write_text("00" * 32)
    with pytest.raises(LedgerError, match="secret"):
        lab.governor()
    secret.write_text(kept)
    lab.governor().close()
    assert lab.verify().ok


def test_a_run_keeps_the_normaliser_it_was_opened_with(lab):
    lab.governor(normaliser=8.0)
    lab.close()
    for other in (None, 4.0):
        with pytest.raises(LedgerError, match=r"normaliser `8\.0`"):
            lab.governor(normaliser=other)
    lab.governor(normaliser=8).close()
    assert lab.verify().ok


def test_a_sealed_run_is_over(lab):
    lab.governor().close()
    with pytest.raises(LedgerError, match="sealed"):
        lab.governor()


# --- budgets ------------------------------------------------------------------------------------------------

PRIVATE = "privacy quiet { when kind == d  within deep  epsilon 1  delta 1e-5  clip 1.0 }\n"


def plan_for(lab, policy: str, steps: int = 4) -> Any:
    return JointPlan.for_steps(privacy_rules(lab.program(policy)), 0.01, steps)


def test_a_budget_goes_on_where_it_stood_and_a_lost_step_is_paid_for(lab):
    text = lab.policy + PRIVATE
    plan = plan_for(lab, text)
    assert plan.rules[0].steps == 4
    first = lab.governor(text, privacy=plan, normaliser=4.0)
    for _ in range(3):
        lab.step(first, lab.batch("ad"))
    first.ledger.close()
    first.engine.close()
    crash(lab, place(lab, "committed", 2))
    with lab.governor(text, privacy=plan, normaliser=4.0) as again:
        assert lab.step(again, lab.batch("ad")).decisions[1].verdict == "limit"
        assert lab.step(again, lab.batch("ad")).decisions[1].verdict == "refuse"
    assert [body["privacy"]["quiet"]["steps"] for body in lab.bodies("committed")] == [1, 2, 4, 4]
    assert lab.verify().ok


def test_a_run_is_not_resumed_under_another_privacy_plan(lab):
    text = lab.policy + PRIVATE
    lab.governor(text, privacy=plan_for(lab, text), normaliser=4.0)
    lab.close()
    with pytest.raises(LedgerError, match="privacy plan"):
        lab.governor(text, privacy=plan_for(lab, text, steps=400), normaliser=4.0)
    with pytest.raises(LedgerError, match="privacy plan"):
        lab.governor(lab.policy, normaliser=4.0)
    with pytest.raises(PrivacyError, match="plan does not fit"):
        lab.governor(text, normaliser=4.0)


# --- a process that is killed -------------------------------------------------------------------------------

TRAINING = """
import json, sys
from datetime import date
from pathlib import Path

import torch
from torch import nn

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.runtime import Governor, Ledger, Signer

torch.set_num_threads(1)
folder, steps, durability = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
program = compile_policy(parse_policy((folder / "run.policy").read_text()))
model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
ledger = Ledger.open(folder / "run.ledger", Signer.load(folder / "run.key"), durability)
with Governor(program, model, optimizer, ledger=ledger, clock=lambda: date(2026, 1, 31)) as governor:
    for step in range(steps):
        names = [(governor.next_step * 3 + i) % 25 for i in range(4)]
        examples = [{"id": f"e{n}", "kind": "abcd"[n % 4], "ok": n != 5} for n in names]
        x = torch.randn(4, 4, dtype=torch.float64)
        with governor.step(examples) as proposal:
            proposal.backward((model(x) - x[:, :3]).square().sum(1))
        print(json.dumps([proposal.context.step, proposal.committed]), flush=True)
"""


def train_and_kill(folder: Path, after: int, delay: float, durability: str) -> list[Any]:
    """Train in a process of its own, kill it `delay` seconds after some steps; return its last words."""
    command = [sys.executable, "-c", TRAINING, str(folder), "1000000", durability]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(after):
            assert process.stdout.readline()
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        told = process.stdout.read().split(b"\n")[:-1]
        assert process.wait() == -signal.SIGKILL
    return json.loads(told[-1]) if told else []


def test_a_training_that_is_killed_again_and_again_ends_in_a_ledger_that_verifies(lab):
    text = lab.policy + "retain few { when kind == a  at most 40 exposures }\n"
    (lab.folder / "run.policy").write_text(text)
    lab.signer.save(lab.folder / "run.key")
    chance = random.Random(7)
    for number, after in enumerate((1, 17, 40)):
        durability = ("group", "os", "every")[number]
        told = train_and_kill(lab.folder, after, chance.uniform(0.0, 0.15), durability)
        assert lab.verify().status in ("INCOMPLETE", "UNTRUSTED")
        recorded = {b["step"] for b in lab.bodies("step")}
        assert not told or told[0] in recorded
    with lab.governor(lab.program(text)) as governor:
        for _ in range(3):
            lab.step(governor, [{"id": f"e{n}", "kind": "abcd"[n % 4], "ok": n != 5} for n in range(8)])
    report = lab.verify()
    assert report.ok, report.findings
    steps = lab.bodies("step")
    assert [body["step"] for body in steps] == list(range(len(steps)))
    assert len(lab.bodies("resumed")) == 3
    assert report.facts["decisions_replayed"] == sum(body["count"] for body in steps)


def test_reopening_by_hand_needs_nothing_but_ledger_key_secret_and_program(lab):
    lab.step(lab.governor(), lab.batch("ab"))
    lab.close()
    model = lab.model()
    ledger = Ledger.open(lab.path(), lab.signer)
    with Governor(
        lab.program(), model, torch.optim.SGD(model.parameters(), 0.1), ledger=ledger, clock=lambda: lab.today
    ) as governor:
        assert governor.next_step == 1
    assert sum(entry.kind == "sealed" for entry in read_entries(lab.path())) == 1
    assert lab.verify().ok


def known(*names: str, kind: str = "a") -> list[tuple[str, dict[str, object]]]:
    return [(name, {"kind": kind, "ok": True}) for name in names]


def test_a_run_opens_with_the_digest_of_its_data_set_and_keeps_to_it(lab):
    lab.governor(dataset=known("x", "y"))
    lab.close()
    recorded = lab.bodies("opened")[0]["dataset"]
    assert recorded["count"] == 2
    assert len(recorded["digest"]) == 64
    for other in (None, known("x"), known("x", "y", kind="b")):
        with pytest.raises(LedgerError, match="data set"):
            lab.governor(dataset=other)
    lab.governor(dataset=known("y", "x")).close()
    assert lab.verify().ok


def test_examples_known_beforehand_keep_their_exposures_on_resume(lab):
    once = lab.policy + "retain few { when kind == a  at most 1 exposures }"
    governor = lab.governor(once, dataset=known("x"))
    assert lab.step(governor, ["x"]).verdict == "admit"
    lab.close()
    governor = lab.governor(once, dataset=known("x"))
    assert lab.step(governor, ["x"]).verdict == "refuse"
    governor.close()
    assert lab.verify().ok


def test_a_run_is_handed_over_to_other_keys_while_it_runs_and_where_it_is_resumed(lab):
    keys = [Signer.generate(f"key-{number}") for number in range(2)]
    first = lab.signer
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    with governor.step(lab.batch("ab")) as proposal:
        governor.ledger.rotate(keys[0])
        proposal.backward(lab.losses(governor.model, lab.inputs(2)))
    governor.ledger.close()
    with pytest.raises(LedgerError, match="another key"):
        lab.governor()
    lab.signer = keys[0]
    with Ledger.open(lab.path(), keys[0]) as ledger:
        ledger.rotate(keys[1])
    lab.signer = keys[1]
    with lab.governor() as governor:
        lab.step(governor, lab.batch("ab"))
    for key in (first, *keys):
        lab.signer = key
        report = lab.verify()
        assert report.ok
        assert [change["kind"] for change in report.facts["key_changes"]] == ["rotated", "rotated"]
