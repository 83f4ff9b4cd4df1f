"""Checks that every program of a run was approved before a step was taken under it.

An `approved` entry holds the signed note of the program before it (`program_signature`). Whose signatures
count is the verifier's to say: what a ledger names itself would be the trainer's choice.
"""

from __future__ import annotations

from typing import Any

from gradwarden.policy.program import Program
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.note import open_note, parse_note
from gradwarden.runtime.ledger.program_signature import Approvers, note_text
from gradwarden.runtime.verification.violation import ViolationError


class ApprovalAudit:
    """Follows programs and their approvals. approvers: none where nobody need have approved them."""

    def __init__(self, approvers: Approvers) -> None:
        self._approvers = approvers
        self._program: Program | None = None
        self._signed: tuple[PublicKey, ...] = ()
        self._programs: list[tuple[Program, list[str]]] = []

    def go_on(self, approvers: Approvers) -> None:
        """Take who must approve, after another audit with the same approvers left off."""
        self._approvers = approvers

    def take_program(self, program: Program | None) -> None:
        """Be told which program is in force now; None: one whose text is still to come."""
        self._program, self._signed = program, ()
        if program is not None:
            self._programs.append((program, []))

    def approve(self, note: str) -> None:
        """Take an `approved` entry. Raises ViolationError where it is not of the program in force."""
        program = self._program
        try:
            data = note.encode()
            text = parse_note(data).text
            # What people sign is a policy, before it is bound to a model or afterwards.
            if program is None or text not in (note_text(program), note_text(program.unbound())):
                raise ViolationError("wrong_approval", "what was signed is not the program in force")
            if self._approvers.keys:
                self._signed = open_note(data, self._approvers.keys).keys
                self._programs[-1][1].extend(key.name for key in self._signed)
        except NoteError as error:
            if error.fault != "unknown_key":
                raise ViolationError("wrong_approval", error.message) from None

    @property
    def due(self) -> bool:
        """Whether a step under the program in force would come before its approval."""
        return not self._approvers.enough(self._signed)

    def check_step(self, step: int) -> None:
        """Raise ViolationError where an approval is due."""
        if self.due:
            by = ", ".join(f"`{key.name}`" for key in self._signed) or "none of the keys given"
            raise ViolationError(
                "unapproved_policy",
                f"step {step} was taken under a program that {self._approvers.needed} must sign; "
                f"it is signed by {by}",
            )

    def facts(self) -> list[dict[str, Any]]:
        """Return which of the keys given have signed each program; nothing where none are given."""
        if not self._approvers.keys:
            return []
        return [
            {"name": program.name, "version": program.version, "digest": program.digest, "signed_by": names}
            for program, names in self._programs
        ]
