"""Comes to a verdict on a ledger, for the verbs that need one: what the files given to it say about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.inputs import read_head_note
from gradwarden.cli.opened import open_data, program_of
from gradwarden.cli.output import arrived, progress
from gradwarden.cli.signing import load_authorities
from gradwarden.cli.verdict import Signature, Verdict, worst
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate

    from gradwarden.policy.program import Program
    from gradwarden.runtime.evidence.stamped import Stamped
    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.ledger.chain import Finding
    from gradwarden.runtime.ledger.program_signature import Approvers
    from gradwarden.runtime.verification.job_memory import JobMemory
    from gradwarden.runtime.verification.key_periods import Schedule
    from gradwarden.runtime.verification.memory import Memory
    from gradwarden.runtime.verification.verify import Only
    from gradwarden.runtime.verification.what_if import Difference


@contextmanager
def on_trust(since: Path | None) -> Iterator[None]:
    """Blame a report that cannot be made, or told, on the memory that it goes on from, if there is one.

    A memory is believed, and what is told comes from it. What says itself what is wrong is left as it is.
    """
    try:
        yield
    except (GradwardenError, click.Abort, click.exceptions.Exit):
        raise
    except Exception as error:
        if since is None:
            raise
        from gradwarden.runtime.verification.memory import FAULTS, of_no_use

        if not isinstance(error, FAULTS):
            raise
        raise of_no_use(since) from error


SOUND = ("OK", "UNWITNESSED", "INCOMPLETE", "UNTRUSTED")
"""Of such ledgers, what is recorded can be compared with the data."""


@frozen
class Asked:
    """What a ledger, or a job, is to be held against, and how far.

    programs, approvers: what must have governed the run, and who must have signed it; None: nobody.
    checkpoints: notes with heads that were kept elsewhere; of a job, of its log of logs. weights, earlier: as
    of `verify_ledger`. authority_files: certificates by which time stamps beside heads are checked. only:
    where to stop. since, remember: files with what an earlier verification found, and for what this one does.
    """

    programs: Sequence[Program] = ()
    approvers: Approvers | None = None
    checkpoints: Sequence[Path] = ()
    weights: Sequence[Path] = ()
    earlier: bool = False
    authority_files: Sequence[Path] = ()
    only: Only | None = None
    since: Path | None = None
    remember: Path | None = None


def judge(ledger: Path, trust: Trust, asked: Asked, signatures: Sequence[Signature] = ()) -> Verdict:
    """Verify a ledger, and compare it with heads and weights that were kept elsewhere.

    signatures: of the programs that it is held against, as far as they are known.
    """
    from gradwarden.runtime.evidence.witnessed import compare_notes
    from gradwarden.runtime.ledger.program_signature import NOBODY
    from gradwarden.runtime.verification.verify import verify_ledger

    paths = [*asked.checkpoints, *stamped(ledger, asked.checkpoints, asked.authority_files)]
    notes = [read_head_note(path) for path in paths]
    authorities = load_authorities(asked.authority_files)
    total = ledger.stat().st_size + size_of_weights(asked.weights)
    with progress(f"verifying {ledger.name}", total, "bytes") as advance:
        report = verify_ledger(
            ledger,
            trust.keys,
            program=asked.programs,
            approvers=asked.approvers or NOBODY,
            weights=asked.weights,
            only=asked.only,
            earlier=asked.earlier,
            since=asked.since,
            remember=asked.remember is not None,
            progress=arrived(advance),
            hashed=advance,
        )
    known = compare_notes(ledger, notes, trust, report.facts)
    stamps, unstamped = checked_stamps(paths, notes, known.own, authorities)
    findings = (*known.findings, *unstamped)
    status = worst(report.status, findings)
    return Verdict(
        ledger=ledger,
        status=status,
        findings=(*report.findings, *findings),
        facts={
            **report.facts,
            **known.facts(),
            **({"timestamps": [s.facts() for s in stamps]} if authorities else {}),
        },
        policy_given=bool(asked.programs),
        heads_compared=len(asked.checkpoints),
        memory=asked.since,
        remembered=kept(report.memory if status in SOUND else None, asked.remember),
        assurance=known.assurance,
        weights=tuple(asked.weights),
        signatures=tuple(signatures),
    )


def kept(memory: Memory | JobMemory | None, target: Path | None) -> Path | None:
    """Write what a verification remembers, where that was asked for; return where it is, None if nowhere."""
    if memory is None or target is None:
        return None
    memory.write(target)
    return target


def size_of_weights(weights: Sequence[Path]) -> int:
    """Return the bytes of files of weights, and of the files in folders of shards.

    Raises OSError for one that cannot be read, so that this is told before a ledger is gone through.
    """
    total = 0
    for path in weights:
        if not path.is_dir():
            with path.open("rb"):
                pass
        total += sum(
            file.stat().st_size for file in (path.glob("*.safetensors") if path.is_dir() else [path])
        )
    return total


def checked_stamps(
    paths: Sequence[Path], notes: Sequence[bytes], own: Sequence[bool], authorities: Sequence[Certificate]
) -> tuple[list[Stamped], tuple[Finding, ...]]:
    """Check the stamps of heads by the certificates of authorities; see `check_stamps`.

    own: of each head, whether it is of the ledger in hand. What others' stamps say is nothing about it.
    """
    if not authorities:
        return [], ()
    from gradwarden.runtime.evidence.stamped import check_stamps

    holding, findings = check_stamps(list(zip(paths, notes, strict=True)), authorities)
    telling = {path for path, is_own in zip(paths, own, strict=True) if is_own}
    return [stamp for stamp in holding if stamp.note in telling], findings


def stamped(ledger: Path, checkpoints: Sequence[Path], authority_files: Sequence[Path]) -> list[Path]:
    """Return the head beside a ledger where it has a time stamp and stamps are asked for.

    Raises UsageError where they are, and no head at hand has one.
    """
    if not authority_files:
        return []
    from gradwarden.runtime.evidence.stamped import stamp_path

    head = ledger.with_name(f"{ledger.name}.head")
    if head.exists() and stamp_path(head).exists():
        return [head]
    if not any(stamp_path(path).exists() for path in checkpoints):
        wanted = stamp_path(checkpoints[0] if checkpoints else head)
        raise click.UsageError(f"--tsa checks the time stamp of a head, and `{wanted}` is missing")
    return []


def with_data(
    verdict: Verdict,
    data: Path,
    secret: Path,
    other: Program | None,
    supplier_files: Sequence[Path],
) -> tuple[Verdict, Difference | None]:
    """Hold a verdict's ledger against the data set, and against another program where there is one."""
    from gradwarden.runtime.evidence.supply import check_supply
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.verification.metadata_audit import MetadataAudit
    from gradwarden.runtime.verification.what_if import what_if

    program = program_of(verdict.ledger)
    if program is None or verdict.status not in SOUND:
        return verdict, None
    opened = open_data(data, secret, program)
    audit = MetadataAudit(verdict.ledger, opened)
    suppliers = [PublicKey.load(path) for path in supplier_files]
    findings = (*audit.findings(), *check_supply(verdict.ledger, data, suppliers))
    if findings:
        return replace(verdict, status="VIOLATION", findings=(*verdict.findings, *findings)), None
    facts = {
        **verdict.facts,
        "metadata_compared": {"steps": audit.steps, "examples": audit.examples},
        "data_signed_by": [key.vkey for key in suppliers],
    }
    difference = None if other is None else what_if(verdict.ledger, opened, other)
    return replace(verdict, facts=facts), difference


def held_to(verdict: Verdict, schedule: Schedule) -> Verdict:
    """Add what a schedule of rotation warns of."""
    from gradwarden.runtime.verification.key_periods import overdue

    late = overdue(verdict.facts["key_periods"], schedule)
    return replace(verdict, findings=(*verdict.findings, *late))
