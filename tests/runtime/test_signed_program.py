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
from gradwarden.runtime.ledger.program_signature import sign_program

OWNER, STRANGER = Signer.generate("owner"), Signer.generate("stranger")


def signed(program: Any, signer: Signer = OWNER) -> bytes:
    return sign_program(program, [signer]).encode()


def test_a_program_signed_by_a_trusted_key_runs(lab: Any) -> None:
    program = lab.program()
    keys = [STRANGER.public, OWNER.public]
    with lab.governor(program, trusted=keys, signature=signed(program)) as governor:
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
            lab.governor(program, trusted=[OWNER.public], signature=signature)
    assert lab.entries() == []


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
