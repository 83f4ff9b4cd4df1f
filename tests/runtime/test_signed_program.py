"""A run can demand that its program is signed by a trusted key; it begins only then."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from gradwarden.policy import Context, compile_policy, parse_policy
from gradwarden.policy.evaluation.evaluate import ContextError
from gradwarden.runtime import Signer
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.governor import utc_day
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import Approvers, add_signature, sign_program

OWNER, OFFICER, STRANGER = (Signer.generate(name) for name in ("owner", "officer", "stranger"))


def signed(program: Any, *signers: Signer) -> bytes:
    return sign_program(program, signers or [OWNER]).encode()


def test_a_program_signed_by_a_trusted_key_runs(lab: Any) -> None:
    program = lab.program()
    approvers = Approvers((STRANGER.public, OWNER.public))
    with lab.governor(program, approvers=approvers, signature=signed(program)) as governor:
        lab.step(governor, lab.batch("ab"))
    assert lab.verify().status == "OK"


def test_any_other_program_does_not(lab: Any) -> None:
    program = lab.program()
    other = lab.program(lab.policy.replace("version 1", "version 2"))
    for signature, said in (
        (None, "is not signed; trusted are `owner`"),
        (signed(program, STRANGER), "key"),
        (signed(other), "is not of this program"),
        (signed(program).replace(b"version 1", b"version 3"), "signature"),
        (b"nonsense", "note"),
    ):
        with pytest.raises(NoteError, match=said):
            lab.governor(program, approvers=Approvers((OWNER.public,)), signature=signature)
    assert lab.entries() == []


def test_two_of_three_must_sign_every_policy_of_a_run(lab: Any) -> None:
    first, second = lab.program(), lab.program(lab.policy.replace("version 1", "version 2"))
    approvers = Approvers((OWNER.public, OFFICER.public, STRANGER.public), 2)
    with pytest.raises(NoteError, match="is signed by `owner`, and 2 must sign it"):
        lab.governor(first, approvers=approvers, signature=signed(first))
    with lab.governor(first, approvers=approvers, signature=signed(first, OWNER, OFFICER)) as governor:
        lab.step(governor, lab.batch("ab"))
        for note in (None, signed(second), signed(first, OWNER, OFFICER)):
            with pytest.raises(NoteError):
                governor.change_policy(second, note)
        assert governor.program.version == 1
        governor.change_policy(second, add_signature(second, OFFICER, signed(second, STRANGER)))
        lab.step(governor, lab.batch("ab"))
    report = lab.verify(approvers=approvers)
    assert report.status == "OK"
    assert [approval["signed_by"] for approval in report.facts["approvals"]] == [
        ["owner", "officer"],
        ["stranger", "officer"],
    ]


def test_a_step_under_a_policy_that_too_few_have_signed_is_a_violation(lab: Any) -> None:
    first, second = lab.program(), lab.program(lab.policy.replace("version 1", "version 2"))
    with lab.governor(first, signature=signed(first, OWNER, OFFICER)) as governor:
        for _ in range(6):
            lab.step(governor, lab.batch("ab"))
        governor.change_policy(second, signed(second, OWNER))
        for _ in range(6):
            lab.step(governor, lab.batch("ab"))
    assert lab.verify().status == "OK"
    keys = (OWNER.public, OFFICER.public)
    for approvers, step in ((Approvers(keys, 2), 6), (Approvers((STRANGER.public,)), 0)):
        report = lab.verify(approvers=approvers)
        assert (report.status, report.findings[0].code) == ("VIOLATION", "unapproved_policy")
        assert report.findings[0].message.startswith(f"step {step} was taken under a program that")
    assert lab.verify(approvers=Approvers(keys, 1)).status == "OK"


def test_one_person_with_two_names_is_one_signer() -> None:
    alias = PublicKey("alias", OWNER.public.raw)
    with pytest.raises(NoteError, match="2 of 1 keys"):
        Approvers((OWNER.public, alias), 2)
    assert not Approvers((OWNER.public, alias, OFFICER.public), 2).enough([OWNER.public, alias])


def test_a_signature_of_another_program_is_no_approval(lab: Any) -> None:
    program, other = lab.program(), lab.program(lab.policy.replace("version 1", "version 2"))
    with pytest.raises(NoteError, match="is not of this program"):
        add_signature(other, OFFICER, signed(program))
    with lab.governor(program, signature=signed(other)) as governor:
        lab.step(governor, lab.batch("ab"))
    assert [finding.code for finding in lab.verify().findings] == ["wrong_approval"]


def test_the_day_of_a_step_is_that_of_utc(lab: Any) -> None:
    before = datetime.now(UTC).date()
    assert before <= utc_day() <= datetime.now(UTC).date()


@pytest.mark.parametrize("at", ["2026-01-01", datetime(2026, 1, 1, tzinfo=UTC), 20_000])
def test_what_is_no_day_is_told(at: Any) -> None:
    text = """policy p version 1 language 1
examples { kind : one of a, b }
model { body = rest }
depth d { when kind == a  reach all }
"""
    program = compile_policy(parse_policy(text))
    with pytest.raises(ContextError, match="not a calendar day"):
        program.decide({"kind": "a"}, Context(at=at))
    assert program.decide({"kind": "a"}, Context(at=date(2026, 1, 1))).verdict == "admit"
