"""Follows which program governs a run: whole, the one that the ledger names, and one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.records.history import History
from gradwarden.runtime.verification.violation import ViolationError


class ProgramAudit:
    """Puts together the programs of a run. expected: those that it may have; any where none are given."""

    def __init__(self, expected: Sequence[Program]) -> None:
        self._expected = tuple(expected)
        self._policy: Mapping[str, Any] = {}

    def go_on(self, expected: Sequence[Program]) -> None:
        """Take what is expected, after another audit with the same left off."""
        self._expected = tuple(expected)

    def name(self, policy: Mapping[str, Any]) -> None:
        """Take the policy that the next program must be, as an entry names it."""
        self._policy = policy

    def read(self, body: Mapping[str, Any], history: History) -> Program | None:
        """Take a `program` entry; return the program where it is the last part.

        history: of the entries before. Raises ViolationError: `program_damaged`, `policy_mismatch`.
        """
        parts = history.program_parts
        if body["digest"] != history.program_digest or body["part"] != len(parts):
            raise ViolationError("program_damaged", "the parts of the program do not fit together")
        if body["part"] + 1 < body["parts"]:
            return None
        program = program_from_json("".join(parts) + body["text"])
        if program.digest != body["digest"]:
            raise ViolationError("program_damaged", "the program is not the one that the ledger names")
        self._check_identity(program, history.opened or {})
        self._check_expected(program)
        return program

    def _check_identity(self, program: Program, opened: Mapping[str, Any]) -> None:
        fits = (program.name, program.version) == (self._policy["name"], self._policy["version"])
        if self._policy is opened["policy"]:
            fits &= (list(program.band_names), program.model_map) == (opened["bands"], opened["model_map"])
        if not fits:
            raise ViolationError("program_damaged", "the ledger describes another program than it holds")

    def _check_expected(self, program: Program) -> None:
        """Check that a program is one of those given; one without a model map fits any binding."""
        if not self._expected:
            return
        unbound = program.unbound()
        given = [expected.digest for expected in self._expected]
        if not {program.digest, unbound.digest} & set(given):
            raise ViolationError(
                "policy_mismatch",
                f"the run was governed by `{program.name}` version {program.version}, digest "
                f"{program.digest[:16]}… ({unbound.digest[:16]}… without its model map), not by what was "
                f"given: {', '.join(f'{digest[:16]}…' for digest in given)}",
            )
