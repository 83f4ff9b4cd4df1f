"""Verifies a ledger: its chain, and that every recorded decision is what the pinned program gives.

Offline and in one pass, with public keys only. The chain (`chain`) shows that nothing was altered; the run
itself is decided again from what is recorded (`run_replay`). What no ledger can show is whether the trainer
offered every step to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.ledger.chain import ChainReport, Finding, Listener, verify_chain
from gradwarden.runtime.ledger.key_changes import KeyChange, Rotation
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.verification.key_periods import key_periods
from gradwarden.runtime.verification.terms import Terms, programs_of, terms

# To check a chain takes little time, and to load what replays a run takes part of that: it is loaded on use.
if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.runtime.ledger.lines import Part
    from gradwarden.runtime.verification.memory import Memory
    from gradwarden.runtime.verification.run_replay import RunReplay
    from gradwarden.runtime.verification.weights_check import Match, WeightsReport

Only: TypeAlias = Literal["chain", "entries"]
"""How far a verification goes that stops short of decisions: to the chain, its tree and the signatures; or
also to whether each line is an entry."""


REWRITTEN = {"rolled_back": "ROLLBACK", "forked": "FORK"}
"""What a ledger is that lacks what was signed when it was last verified."""

_RANKS = ("TAMPERED", *reversed(REWRITTEN.values()), "UNTRUSTED", "VIOLATION", "INCOMPLETE", "OK")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of a verification.

    status: as of the chain, or VIOLATION where the chain holds and what it records does not. findings: in
    the order of entries; the first error is where to look. facts: counts and digests for people. memory: what
    a later verification can go on from, where that was asked for and the ledger holds as far as it goes.
    """

    status: str
    ok: bool
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory | None = field(default=None, compare=False, repr=False)


@frozen
class _Task:
    """What is to be verified, and how; see `verify_ledger`."""

    path: Path
    keys: Sequence[PublicKey]
    expected: tuple[Program, ...]
    approvers: Approvers
    weights: tuple[Path, ...]
    earlier: bool
    asked: Terms
    remember: bool
    beside: Callable[[], Listener] | None
    progress: Callable[[int, int], None] | None
    hashed: Callable[[int], None]


def verify_ledger(
    path: str | Path,
    keys: Sequence[PublicKey],
    *,
    program: Program | Sequence[Program] | None = None,
    approvers: Approvers = NOBODY,
    weights: Path | Sequence[Path] | None = None,
    earlier: bool = False,
    only: Only | None = None,
    since: Path | Memory | None = None,
    remember: bool = False,
    beside: Callable[[], Listener] | None = None,
    progress: Callable[[int, int], None] | None = None,
    hashed: Callable[[int], None] = lambda _: None,
) -> VerifyReport:
    """Verify a ledger.

    program: what the run must have been governed by, bound to a model or not; several where the policy
    changed during the run; None: what the ledger holds is taken at its word. approvers: who must have signed
    each program before a step was taken under it. weights: checkpoints (files, or folders of shards), one of
    which the ledger must name last, unless `earlier` ones will do; how far the maintained bands of the last
    one are from the anchors beside the ledger is measured. only: where to stop; decisions are replayed where
    it is None. since: a file with what an earlier verification remembered, which was asked for the same, or
    what was read of one and goes on (`goes_on`); what it covers is not read again (`memory`). remember:
    whether to give what the next can go on from. beside: gives who else is told of each entry that is read
    and replayed, see `verify_chain`. progress: called with (bytes done, bytes in all). hashed: told of bytes
    of weights that are, from any thread.

    Raises LedgerError only where the file cannot be read, and MemoryFileError for what was remembered.
    """
    expected = programs_of(program)
    given = () if weights is None else (weights,) if isinstance(weights, Path) else tuple(weights)
    asked = terms(keys, expected, approvers, only)
    task = _Task(
        Path(path), keys, expected, approvers, given, earlier, asked, remember, beside, progress, hashed
    )
    if not isinstance(since, Path):
        return _verified(task, since)
    from gradwarden.runtime.verification.memory import believing, contradictions, goes_on, read_memory

    memory = read_memory(since, asked)
    with believing(since):
        if goes_on(memory, path):
            return _verified(task, memory)
        against = contradictions(memory, path)
    return _contradicted(_verified(task, None), against)


def _verified(task: _Task, memory: Memory | None) -> VerifyReport:
    """Verify a ledger. memory: what is gone on from, where there is anything."""
    matches: Sequence[Match | None] = ()
    replay: RunReplay | None = None

    only = task.asked.only

    def listen() -> Listener:
        from gradwarden.runtime.verification.run_replay import RunReplay

        nonlocal replay
        if only and task.beside:
            return task.beside()
        given = task.expected, task.approvers
        replay = RunReplay(*given) if memory is None else memory.replayed(*given)
        return _both(replay.accept, task.beside()) if task.beside else replay.accept

    chain = verify_chain(
        task.path,
        task.keys,
        None if only and not task.beside else listen,
        task.progress,
        frames=only == "chain",
        since=None if memory is None else memory.links,
    )
    findings = list(chain.findings)
    if replay is not None:
        findings += replay.findings(chain)
        if chain.status != "TAMPERED":  # what such a ledger names last is not known
            if task.weights and not any(finding.code == "wrong_tensors" for finding in findings):
                checked = _check_weights(replay, task, chain.size)
                findings += checked.findings
                matches = checked.matches
            if not any(finding.severity == "error" for finding in findings):
                findings += _tally_findings(replay, task.path, 0 if memory is None else memory.size)
    violated = any(f.severity == "error" for f in findings[len(chain.findings) :])
    status = "VIOLATION" if chain.status in ("OK", "INCOMPLETE") and violated else chain.status
    judged = replay.settled if replay is not None else only is not None and not chain.archived
    sound = status in ("OK", "INCOMPLETE") and judged
    since = None if memory is None else memory.facts()
    keeps = task.remember and sound
    weights = _weights_facts(task.weights, matches)
    return VerifyReport(
        status=status,
        ok=status == "OK",
        findings=_sorted(findings),
        facts={**_facts(chain, replay), "weights": weights, "only": only, "since": since},
        memory=_remembered(chain, replay, task.asked) if keeps else None,
    )


def _remembered(chain: ChainReport, replay: RunReplay | None, asked: Terms) -> Memory | None:
    from gradwarden.runtime.verification.memory import remembered

    return None if chain.links is None else remembered(chain.links, replay, asked)


def _both(first: Listener, second: Listener) -> Listener:
    def listen(part: Part) -> None:
        first(part)
        second(part)

    return listen


def _contradicted(report: VerifyReport, against: Sequence[Finding]) -> VerifyReport:
    """Return a report with what is lacking that was there when the ledger was last verified."""
    status = min([report.status, *(REWRITTEN.get(f.code, report.status) for f in against)], key=_RANKS.index)
    kept = report.memory if status == report.status else None
    findings = _sorted([*report.findings, *against])
    return replace(report, status=status, ok=status == "OK", findings=findings, memory=kept)


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.index))


def _tally_findings(replay: RunReplay, path: str | Path, known: int) -> Iterator[Finding]:
    """Make the tallies again of a run that replays. known: entries whose tallies were made again before."""
    from gradwarden.runtime.evidence.tally import tally_ledger

    for index, body in replay.tallies:
        if index >= known and tally_ledger(path, before=index).body() != body:
            yield Finding("wrong_tally", index, "the tally of examples is not what the entries add up to")


def _check_weights(replay: RunReplay, task: _Task, size: int) -> WeightsReport:
    """Hold weights against the checkpoints of a ledger; measure the maintained bands of the last one."""
    from gradwarden.runtime.verification.drift_measure import measure
    from gradwarden.runtime.verification.weights_check import HashedWeights, WeightsReport, check_weights

    if replay.checkpoint is None:
        missing = Finding("weights_mismatch", max(size - 1, 0), "the ledger names no checkpoint")
        return WeightsReport((missing,), ())
    ledger, given, listed = task.path, task.weights, replay.weights.count > 0
    weights = [HashedWeights(path, tensors=listed, hashed=task.hashed) for path in given]
    report = check_weights(ledger, weights, size, earlier=task.earlier)
    drifts: list[Finding] = []
    for path, match in zip(given, report.matches, strict=True):
        if match is not None and match.last:
            drifts += measure(ledger, path, replay.anchored, size - 1, replay.measured)
    return WeightsReport((*report.findings, *drifts), report.matches)


def _weights_facts(given: Sequence[Path], matches: Sequence[Match | None]) -> list[dict[str, Any]]:
    """Say which checkpoints weights are; none of those that were not held against any."""
    return [
        {
            "path": str(path),
            "step": match.step,
            "entry": match.entry,
            "file": match.file,
            "same_file": match.same_file,
            "last": match.last,
        }
        for path, match in zip(given, matches, strict=False)
        if match is not None
    ]


def _facts(chain: ChainReport, replay: RunReplay | None) -> dict[str, Any]:
    return {
        "entries": chain.size,
        "root": chain.root,
        "origin": chain.origin,
        "sealed": chain.sealed,
        "archived": chain.archived,
        "signed_entries": chain.signed_size,
        "keys_used": list(chain.keys_used),
        "key_changes": [_key_change(change.index, change.change) for change in chain.changes],
        "key_periods": key_periods(chain.changes, chain.size, None if replay is None else replay.calendar),
        "assurance": "self-attested",
        **({} if replay is None else replay.facts()),
    }


def _key_change(index: int, change: KeyChange) -> dict[str, Any]:
    if isinstance(change, Rotation):
        return {"entry": index, "kind": "rotated", "key": change.old.vkey, "by": change.new.vkey}
    told = {"key": change.revoked.vkey, "by": change.by.vkey, "reason": change.reason}
    return {"entry": index, "kind": "revoked", **told}
