"""Verifies a ledger: its chain, and that every recorded decision is what the pinned program gives.

Offline and in one pass, with public keys only. The chain (`chain`) shows that nothing was altered; the run
itself is decided again from what is recorded (`run_replay`). What no ledger can show is whether the trainer
offered every step to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gradwarden.policy.program import Program
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.evidence.tally import tally_ledger
from gradwarden.runtime.ledger.chain import ChainReport, Finding, Listener, verify_chain
from gradwarden.runtime.ledger.key_changes import KeyChange, Rotation
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.verification.drift_measure import measure
from gradwarden.runtime.verification.run_replay import RunReplay

Only: TypeAlias = Literal["chain", "entries"]
"""How far a verification goes that stops short of decisions: to the chain, its tree and the signatures; or
also to whether each line is an entry."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of a verification.

    status: as of the chain, or VIOLATION where the chain holds and what it records does not. findings: in
    the order of entries; the first error is where to look. facts: counts and digests for people.
    """

    status: str
    ok: bool
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def verify_ledger(
    path: str | Path,
    keys: Sequence[PublicKey],
    *,
    program: Program | Sequence[Program] | None = None,
    approvers: Approvers = NOBODY,
    weights: Path | None = None,
    only: Only | None = None,
    beside: Callable[[], Listener] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Verify a ledger.

    program: what the run must have been governed by, bound to a model or not; several where the policy
    changed during the run; None: what the ledger holds is taken at its word. approvers: who must have signed
    each program before a step was taken under it. weights: a checkpoint file that
    the ledger must name last; how far its maintained bands are from the anchors beside the ledger is
    measured. only: where to stop; decisions are replayed where it is None. beside: gives who else is told of
    each entry while they are, see `verify_chain`. progress: called with (bytes done, bytes in all).

    Raises LedgerError only where the file cannot be read.
    """
    expected = () if program is None else (program,) if isinstance(program, Program) else program
    replay = None

    def listen() -> Listener:
        nonlocal replay
        replay = RunReplay(expected, approvers)
        return _both(replay.accept, beside()) if beside else replay.accept

    chain = verify_chain(path, keys, None if only else listen, progress, frames=only == "chain")
    findings = list(chain.findings)
    if replay is not None:
        findings += replay.findings(chain)
        if chain.status != "TAMPERED":  # what such a ledger names last is not known
            findings += _weights_findings(replay, Path(path), weights, chain.size)
            if not any(finding.severity == "error" for finding in findings):
                findings += _tally_findings(replay, path)
    violated = any(f.severity == "error" for f in findings[len(chain.findings) :])
    status = "VIOLATION" if chain.status in ("OK", "INCOMPLETE") and violated else chain.status
    return VerifyReport(
        status=status,
        ok=status == "OK",
        findings=tuple(sorted(findings, key=lambda finding: finding.index)),
        facts={**_facts(chain, replay), "only": only},
    )


def _both(first: Listener, second: Listener) -> Listener:
    def listen(part: Part) -> None:
        first(part)
        second(part)

    return listen


def _tally_findings(replay: RunReplay, path: str | Path) -> Iterator[Finding]:
    """Make the tallies again of a run that replays."""
    for index, body in replay.tallies:
        if tally_ledger(path, before=index).body() != body:
            yield Finding("wrong_tally", index, "the tally of examples is not what the entries add up to")


def _weights_findings(replay: RunReplay, ledger: Path, weights: Path | None, size: int) -> Iterator[Finding]:
    if weights is None:
        return
    if replay.checkpoint is None:
        yield Finding("weights_mismatch", size - 1, "the ledger names no checkpoint")
    elif file_digest(weights) != replay.checkpoint["digest"]:
        named = replay.checkpoint["file"]
        yield Finding(
            "weights_mismatch",
            size - 1,
            f"`{weights.name}` is not the last checkpoint that the ledger names, `{named}`",
        )
    else:
        yield from measure(ledger, weights, replay.anchored, size - 1, replay.measured)


def _facts(chain: ChainReport, replay: RunReplay | None) -> dict[str, Any]:
    return {
        "entries": chain.size,
        "root": chain.root,
        "origin": chain.origin,
        "sealed": chain.sealed,
        "signed_entries": chain.signed_size,
        "keys_used": list(chain.keys_used),
        "key_changes": [_key_change(change.index, change.change) for change in chain.changes],
        "assurance": "self-attested",
        **({} if replay is None else replay.facts()),
    }


def _key_change(index: int, change: KeyChange) -> dict[str, Any]:
    if isinstance(change, Rotation):
        return {"entry": index, "kind": "rotated", "key": change.old.vkey, "by": change.new.vkey}
    told = {"key": change.revoked.vkey, "by": change.by.vkey, "reason": change.reason}
    return {"entry": index, "kind": "revoked", **told}
