"""Verifies a job: the ledger of every rank, the log of logs that binds them, and what they say together.

Offline, with public keys only. Each ledger is verified as one of a single process is; the heads in the log of
logs must be heads that the ranks' ledgers hold; then the ranks are compared step by step. What is found names
the rank (`job_report.CODES`):

- missing: `missing_rank` (no ledger), `lost_rank` (none where one was bound), `cut_rank` (it ends before what
  was bound), `cut_off` (it ends in the middle, as where a process was killed), `unsealed_rank`
- lagging: `lagging_rank` (at a binding its signed head was behind by more steps than the job allows)
- lying: `forked_rank` (not a continuation of what was bound), `other_rank` (another ledger in its place),
  `contradiction`, `left_out_step`, `other_terms`, `other_weights`, `wrong_shares`, `misplaced_example`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradwarden.policy.program import Program
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.jobs.progress import over_ranks
from gradwarden.runtime.ledger.chain import ChainReport, verify_chain
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.verification.job_report import JobFinding, JobReport, finding, worst
from gradwarden.runtime.verification.job_weights import check_job_weights
from gradwarden.runtime.verification.log_audit import lagging, log_findings, totals
from gradwarden.runtime.verification.log_of_logs import LogOfLogs, last_heads
from gradwarden.runtime.verification.rank_audit import rank_findings, unnamed
from gradwarden.runtime.verification.rank_comparison import compared
from gradwarden.runtime.verification.rank_steps import RankSteps
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger


def verify_job(
    folder: Path,
    keys: Sequence[PublicKey],
    *,
    program: Program | Sequence[Program] | None = None,
    approvers: Approvers = NOBODY,
    weights: Sequence[Path] = (),
    earlier: bool = False,
    progress: Callable[[int, int], None] | None = None,
    hashed: Callable[[int], None] = lambda _: None,
) -> JobReport:
    """Verify a job's folder. program, approvers: as of `verify_ledger`, for every rank.

    weights, earlier: as of `verify_ledger`; each rank's ledger must name them. progress: called with (bytes
    done, bytes in all). hashed: told of bytes of weights that are, from any thread. Raises LedgerError only
    where a file cannot be read.
    """
    log = LogOfLogs()
    chain = None

    def listen() -> Callable[[Any], None]:
        nonlocal log
        log = LogOfLogs()
        return log.accept

    if not log_path(folder).exists():
        missing = finding("no_log_of_logs", f"`{log_path(folder).name}`, which binds the ranks, is missing")
        return _together(folder, log, None, [missing], {}, {})
    chain = verify_chain(log_path(folder), keys, listen)
    findings = list(log_findings(log, chain))
    reports: dict[int, VerifyReport] = {}
    steps: dict[int, RankSteps] = {}
    if log.opened is not None:
        told = over_ranks(folder, progress)
        for rank in range(log.opened["ranks"]):
            path = rank_path(folder, rank)
            if not path.exists():
                continue
            seen = _Seen()
            reports[rank] = verify_ledger(
                path, keys, program=program, approvers=approvers, beside=seen.listen, progress=told(rank)
            )
            steps[rank] = seen.steps
    held = check_job_weights(folder, reports, steps, weights, earlier=earlier, hashed=hashed)
    report = _together(folder, log, chain, [*findings, *held.findings], reports, steps)
    facts = {"weights": list(held.facts), "weights_asked_of": list(held.ranks)}
    return replace(report, facts={**report.facts, **facts})


class _Seen:
    """Keeps the columns of the last time that a ledger was gone through."""

    def __init__(self) -> None:
        self.steps = RankSteps()

    def listen(self) -> Callable[[Any], None]:
        self.steps = RankSteps()
        return self.steps.accept


def _together(
    folder: Path,
    log: LogOfLogs,
    chain: ChainReport | None,
    findings: list[JobFinding],
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
) -> JobReport:
    if log.opened is not None:
        most = max((found.steps for found in steps.values()), default=0)
        for rank in range(log.opened["ranks"]):
            findings += rank_findings(log, rank, reports.get(rank), steps.get(rank), most)
        findings += unnamed(folder, log.opened["ranks"])
        findings += lagging(log)
        sound = {rank: steps[rank] for rank, report in reports.items() if report.status not in _UNSOUND}
        findings += compared(sound, log.opened["ranks"])
        findings += totals(log, steps)
    return JobReport(worst(findings), tuple(findings), reports, _facts(log, chain, reports, steps))


_UNSOUND = ("TAMPERED", "UNTRUSTED")
"""What such a ledger says is not compared: nobody answers for it."""


def _facts(
    log: LogOfLogs,
    chain: ChainReport | None,
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
) -> dict[str, Any]:
    opened = log.opened or {}
    last = last_heads(log.bindings)
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
                "entries": report.facts["entries"],
                "bound_entries": last[rank].size if rank in last else 0,
                "steps": steps[rank].steps,
                "root": report.facts["root"],
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
