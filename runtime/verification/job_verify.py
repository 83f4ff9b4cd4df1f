"""Verifies a job: the ledger of every rank, the log of logs that binds them, and what they say together.

Offline, with public keys only. Each ledger is verified as one of a single process is; the heads in the log of
logs must be heads that the ranks' ledgers hold; then the ranks are compared step by step. What is found names
the rank (`job_report.CODES`):

- missing: `missing_rank` (no ledger), `lost_rank` (none where one was bound), `cut_rank` (it ends before what
  was bound), `cut_off` (it ends in the middle, as where a process was killed), `unsealed_rank`
- lagging: `lagging_rank` (at a binding its signed head was behind by more steps than the job allows)
- lying: `forked_rank` (not a continuation of what was bound), `other_rank` (another ledger in its place),
  `contradiction`, `left_out_step`, `other_terms`, `other_weights`, `wrong_shares`, `misplaced_example`,
  `out_of_turn` (where nothing is replayed: an entry that the comparison of the ranks would pass over)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.jobs.progress import over_ranks
from gradwarden.runtime.ledger.chain import ChainReport, first_error, verify_chain
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.verification.job_memory import (
    JobMemory,
    RankMemory,
    read_job_memory,
    remembered_job,
)
from gradwarden.runtime.verification.job_report import JobFinding, JobReport, finding, worst
from gradwarden.runtime.verification.job_weights import check_job_weights
from gradwarden.runtime.verification.key_periods import key_periods
from gradwarden.runtime.verification.log_audit import lagging, log_findings, totals
from gradwarden.runtime.verification.log_of_logs import LogOfLogs
from gradwarden.runtime.verification.memory import believing
from gradwarden.runtime.verification.rank_audit import rank_findings, unnamed
from gradwarden.runtime.verification.rank_comparison import compared
from gradwarden.runtime.verification.rank_steps import RankSteps
from gradwarden.runtime.verification.terms import Terms, programs_of, terms
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger


@frozen
class _Task:
    """What is to be verified, and how; see `verify_job`."""

    folder: Path
    keys: Sequence[PublicKey]
    expected: tuple[Program, ...]
    approvers: Approvers
    weights: Sequence[Path]
    earlier: bool
    only: Literal["entries"] | None
    asked: Terms
    remember: bool
    progress: Callable[[int, int], None] | None
    hashed: Callable[[int], None]


def verify_job(
    folder: Path,
    keys: Sequence[PublicKey],
    *,
    program: Program | Sequence[Program] | None = None,
    approvers: Approvers = NOBODY,
    weights: Sequence[Path] = (),
    earlier: bool = False,
    only: Literal["entries"] | None = None,
    since: Path | None = None,
    remember: bool = False,
    progress: Callable[[int, int], None] | None = None,
    hashed: Callable[[int], None] = lambda _: None,
) -> JobReport:
    """Verify a job's folder. program, approvers: as of `verify_ledger`, for every rank.

    weights, earlier: as of `verify_ledger`; each rank's ledger must name them. only: where to stop with each
    of them: the ranks are compared by what their entries say, so they are read at least. since, remember: as
    of `verify_ledger`, of all ledgers (`job_memory`). progress: called with (bytes done, bytes in all).
    hashed: told of bytes of weights that are, from any thread. Raises LedgerError only where a file cannot be
    read, and MemoryFileError for what was remembered.
    """
    expected = programs_of(program)
    asked = terms(keys, expected, approvers, only)
    task = _Task(folder, keys, expected, approvers, weights, earlier, only, asked, remember, progress, hashed)
    if since is None:
        return _verified(task, None)
    memory = read_job_memory(since, asked)
    with believing(since):
        if memory.goes_on(folder):
            return _verified(task, memory)
        against = memory.contradictions(folder)
    report = _verified(task, None)
    findings = (*report.findings, *against)
    status = worst(findings)
    kept = report.memory if status == report.status else None
    return replace(report, status=status, findings=findings, memory=kept)


def _verified(task: _Task, memory: JobMemory | None) -> JobReport:
    """Verify a job. memory: what is gone on from, where there is anything."""
    log, folder = LogOfLogs(), task.folder

    def listen() -> Callable[[Any], None]:
        nonlocal log
        log = LogOfLogs()
        return log.accept

    if not log_path(folder).exists():
        missing = finding("no_log_of_logs", f"`{log_path(folder).name}`, which binds the ranks, is missing")
        return _together(folder, log, None, [missing], {}, {}, {})
    chain = verify_chain(log_path(folder), task.keys, listen)
    findings = list(log_findings(log, chain))
    reports: dict[int, VerifyReport] = {}
    steps: dict[int, RankSteps] = {}
    told = over_ranks(folder, task.progress)
    for rank in range(0 if log.opened is None else log.opened["ranks"]):
        if rank_path(folder, rank).exists():
            own = None if memory is None else memory.ranks.get(rank)
            reports[rank], steps[rank] = _rank(task, rank, own, told(rank))
    held = check_job_weights(folder, reports, steps, task.weights, earlier=task.earlier, hashed=task.hashed)
    bound = {} if memory is None else {rank: own.bound for rank, own in memory.ranks.items()}
    report = _together(folder, log, chain, [*findings, *held.findings], reports, steps, bound)
    facts = {
        "weights": list(held.facts),
        "weights_asked_of": list(held.ranks),
        "since": None if memory is None else memory.facts(),
        "only": task.only,
        "key_periods": [] if log.opened is None else key_periods(chain.changes, chain.size, None),
    }
    keeps = task.remember and report.status in ("OK", "INCOMPLETE", "LAGGING")
    kept = remembered_job(log, chain, task.asked, reports, steps) if keeps else None
    return replace(report, facts={**report.facts, **facts}, memory=kept)


def _rank(
    task: _Task, rank: int, memory: RankMemory | None, progress: Callable[[int, int], None] | None
) -> tuple[VerifyReport, RankSteps]:
    """Verify one rank's ledger; return also what it says of each step, as it said at the last reading."""
    steps = RankSteps()

    def listen() -> Callable[[Any], None]:
        nonlocal steps
        steps = RankSteps() if memory is None else RankSteps.recalled(memory.steps)
        return steps.accept

    report = verify_ledger(
        rank_path(task.folder, rank),
        task.keys,
        program=task.expected,
        approvers=task.approvers,
        only=task.only,
        since=None if memory is None else memory.ledger,
        remember=task.remember,
        beside=listen,
        progress=progress,
    )
    return report, steps


def _together(
    folder: Path,
    log: LogOfLogs,
    chain: ChainReport | None,
    findings: list[JobFinding],
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
    bound: Mapping[int, int],
) -> JobReport:
    """Put together what was found. bound: up to which size ranks were held against the log of logs before."""
    sound = {rank: steps[rank] for rank, report in reports.items() if report.status not in _UNSOUND}
    if log.opened is not None:
        most = max((found.steps for found in steps.values()), default=0)
        for rank in range(log.opened["ranks"]):
            known = bound.get(rank, 0)
            findings += rank_findings(log, rank, reports.get(rank), steps.get(rank), most, known)
        findings += unnamed(folder, log.opened["ranks"])
        findings += lagging(log)
        findings += compared(sound, log.opened["ranks"])
        findings += totals(log, steps)
    facts = {**_facts(log, chain, reports, steps), "compared_ranks": list(sound) if len(sound) > 1 else []}
    return JobReport(worst(findings), tuple(findings), reports, facts)


_UNSOUND = ("TAMPERED", "UNTRUSTED")
"""What such a ledger says is not compared: nobody answers for it."""


def _facts(
    log: LogOfLogs,
    chain: ChainReport | None,
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
) -> dict[str, Any]:
    opened = log.opened or {}
    last = log.last
    whole = [report.facts for report in reports.values()]
    return {
        "job": opened.get("origin"),
        "ranks": opened.get("ranks"),
        "every": opened.get("every"),
        "lag": opened.get("lag"),
        "placement": opened.get("placement"),
        "root": None if chain is None else chain.root,
        "entries": 0 if chain is None else chain.size,
        "signed_entries": 0 if chain is None else chain.signed_size,
        "origin": opened.get("origin"),
        "keys_used": [] if chain is None else list(chain.keys_used),
        "sealed": log.sealed is not None,
        "bindings": len(log.bindings),
        "bound_to_step": log.bindings[-1].step if log.bindings else 0,
        "steps": max((found.steps for found in steps.values()), default=0),
        "exposures": sum(facts.get("exposures") or 0 for facts in whole),
        "decisions_replayed": sum(facts.get("decisions_replayed") or 0 for facts in whole),
        "policy": next((facts["policy"] for facts in whole if facts.get("policy")), None),
        **_of_the_latest(whole),
        "members": {
            str(rank): {
                "status": report.status,
                "first_bad": None if (bad := first_error(report.findings)) is None else bad.index,
                "entries": report.facts["entries"],
                "bound_entries": last[rank].size if rank in last else 0,
                "steps": steps[rank].steps,
                "root": report.facts["root"],
                "key_periods": report.facts["key_periods"],
            }
            for rank, report in reports.items()
        },
    }


def _of_the_latest(whole: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the rank with most steps says of what all ranks count alike: budgets, and checkpoints."""
    latest = max(whole, key=lambda facts: facts.get("steps") or 0, default={})
    return {
        **{name: latest.get(name, {}) for name in ("privacy", "epsilon_bounds")},
        "unchanged": latest.get("unchanged"),
    }
