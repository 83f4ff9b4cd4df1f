"""What a verification is asked for, as a memory of it holds that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import Approvers

if TYPE_CHECKING:
    from gradwarden.policy.program import Program


@frozen
class Terms:
    """What a verification was asked for, as JSON holds it: only what was asked alike can be gone on with."""

    keys: list[str]
    programs: list[str]
    approvers: list[str]
    needed: int
    only: str | None


def programs_of(program: Program | Sequence[Program] | None) -> tuple[Program, ...]:
    """Return what a run must have been governed by: nothing, one program, or several."""
    return () if program is None else tuple(program) if isinstance(program, Sequence) else (program,)


def terms(
    keys: Sequence[PublicKey], programs: Sequence[Program], approvers: Approvers, only: str | None
) -> Terms:
    """Return what a verification is asked for."""
    return Terms(
        sorted(key.vkey for key in keys),
        sorted(program.digest for program in programs),
        sorted(key.vkey for key in approvers.keys),
        approvers.needed,
        only,
    )
