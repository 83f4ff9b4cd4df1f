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

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden.policy.program import Program
from gradwarden.runtime.jobs.binder import job_seal
from gradwarden.runtime.jobs.layout import listed, log_path, rank_origin, rank_path, ranks_found
from gradwarden.runtime.ledger.chain import ChainReport, first_error, verify_chain
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import NOBODY, Approvers
from gradwarden.runtime.verification.job_report import JobFinding, JobReport, finding, worst
from gradwarden.runtime.verification.log_of_logs import LogOfLogs, bound_of, last_heads
from gradwarden.runtime.verification.rank_steps import ABSENT, COMMITTED, Clash, RankSteps, first_clash
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger

MOST_NAMED = 8
"""Bindings at which lagging ranks are named; the facts count them all."""

TERMS = ("normaliser", "clip_norm", "secret_commitment", "bands", "model_map", "policy")
"""What the openings of all ranks must say alike."""


def verify_job(
    folder: Path,
    keys: Sequence[PublicKey],
    *,
    program: Program | Sequence[Program] | None = None,
    approvers: Approvers = NOBODY,
    progress: Callable[[int, int], None] | None = None,
) -> JobReport:
    """Verify a job's folder. program, approvers: as of `verify_ledger`, for every rank.

    progress: called with (bytes done, bytes in all). Raises LedgerError only where a file cannot be read.
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
    findings = list(_log_findings(log, chain))
    reports: dict[int, VerifyReport] = {}
    steps: dict[int, RankSteps] = {}
    if log.opened is not None:
        done = 0
        total = sum(rank_path(folder, rank).stat().st_size for rank in ranks_found(folder))
        for rank in range(log.opened["ranks"]):
            path = rank_path(folder, rank)
            if not path.exists():
                continue
            seen = _Seen()
            told = None if progress is None else _shifted(progress, done, total)
            reports[rank] = verify_ledger(
                path, keys, program=program, approvers=approvers, beside=seen.listen, progress=told
            )
            steps[rank] = seen.steps
            done += path.stat().st_size
    return _together(folder, log, chain, findings, reports, steps)


class _Seen:
    """Keeps the columns of the last time that a ledger was gone through."""

    def __init__(self) -> None:
        self.steps = RankSteps()

    def listen(self) -> Callable[[Any], None]:
        self.steps = RankSteps()
        return self.steps.accept


def _shifted(progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    return lambda read, _: progress(done + read, total)


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
            findings += _rank_findings(log, rank, reports.get(rank), steps.get(rank), most)
        findings += _unnamed(folder, log.opened["ranks"])
        findings += _lagging(log)
        sound = {rank: steps[rank] for rank, report in reports.items() if report.status not in _UNSOUND}
        findings += _compared(sound, log.opened["ranks"])
        findings += _totals(log, steps)
    return JobReport(worst(findings), tuple(findings), reports, _facts(log, chain, reports, steps))


_UNSOUND = ("TAMPERED", "UNTRUSTED")
"""What such a ledger says is not compared: nobody answers for it."""


# --- the log of logs ----------------------------------------------------------------------------------------


def _log_findings(log: LogOfLogs, chain: ChainReport) -> Iterator[JobFinding]:
    first = first_error(chain.findings)
    if first is not None:
        message = f"the log of logs: {first.code}: {first.message}"
        yield finding("log_of_logs", message, index=first.index, status=chain.status)
    elif chain.status == "INCOMPLETE":
        message = "the log of logs is not sealed: the job has not ended, or not in order"
        yield finding("log_of_logs", message, index=chain.size, status=chain.status)
    if log.odd is not None:
        code = "not_a_job" if log.opened is None else "wrong_binding"
        yield finding(code, f"the log of logs: {log.odd[1]}", index=log.odd[0])


def _lagging(log: LogOfLogs) -> Iterator[JobFinding]:
    """Name the ranks whose signed heads were too far behind the most advanced one at a binding."""
    assert log.opened is not None
    allowed, named = log.opened["lag"], 0
    for binding in log.bindings:
        behind = {head.rank: binding.step - head.step for head in binding.heads}
        late = {rank: steps for rank, steps in behind.items() if steps > allowed}
        if late and named < MOST_NAMED:
            named += 1
            told = ", ".join(f"rank {rank} by {steps}" for rank, steps in late.items())
            yield finding(
                "lagging_rank",
                f"at step {binding.step} the signed heads are behind by more than {allowed} steps: {told}",
                late,
                binding.index,
            )


def _totals(log: LogOfLogs, steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    assert log.opened is not None
    seals = [found.sealed for found in steps.values() if found.sealed is not None]
    if log.sealed is None or len(seals) < log.opened["ranks"]:
        return
    due = job_seal(seals)
    if dict(log.sealed) != due:
        message = f"the seal of the job says {dict(log.sealed)}; the ranks' seals add up to {due}"
        yield finding("wrong_totals", message)


# --- one rank -----------------------------------------------------------------------------------------------


def _rank_findings(
    log: LogOfLogs, rank: int, report: VerifyReport | None, steps: RankSteps | None, most: int
) -> Iterator[JobFinding]:
    """Say what is wrong with one rank. most: the next step of the rank that is most advanced."""
    last = last_heads(log.bindings).get(rank)
    if report is None or steps is None:
        if last is not None and last.size:
            message = f"the ledger of rank {rank} is missing; {last.size} of its entries were bound"
            yield finding("lost_rank", message, [rank])
        else:
            yield finding("missing_rank", f"the ledger of rank {rank} is missing", [rank])
        return
    yield from _place(log, rank, steps)
    yield from _bound(log, rank, report, steps)
    yield from _by_itself(log, rank, report, steps, most)
    if steps.misplaced is not None:
        index, step = steps.misplaced
        message = f"step {step} of rank {rank} has an example whose home is another rank"
        yield finding("misplaced_example", message, [rank], index)


def _place(log: LogOfLogs, rank: int, steps: RankSteps) -> Iterator[JobFinding]:
    """Check that a ledger is that of its rank."""
    assert log.opened is not None
    opened = log.opened
    member = (steps.opened or {}).get("job")
    if steps.opened is None:
        return
    if member is None:
        yield finding("other_rank", f"a ledger of no job stands in the place of rank {rank}", [rank], 0)
        return
    due = {"id": opened["origin"], "rank": rank, "ranks": opened["ranks"], "placement": opened["placement"]}
    for name, value in due.items():
        if member[name] != value:
            message = f"another ledger stands in the place of rank {rank}: {name} {member[name]}, not {value}"
            yield finding("other_rank", message, [rank], 0)
            return
    if steps.opened["origin"] != rank_origin(opened["origin"], rank):
        yield finding("other_rank", f"the ledger of rank {rank} has another origin than it must", [rank], 0)


def _bound(log: LogOfLogs, rank: int, report: VerifyReport, steps: RankSteps) -> Iterator[JobFinding]:
    """Check that a ledger holds every head that was bound of it; name the first that it does not."""
    size = report.facts["entries"]
    for index, head in bound_of(log.bindings, rank):
        found = steps.heads.get(head.size)
        if found == (head.root, head.step):
            continue
        if found is None and size <= head.size:
            if not _broken(report):
                message = f"the ledger of rank {rank} ends after {size} entries; {head.size} were bound"
                yield finding("cut_rank", message, [rank], size)
        elif found is not None and found[0] == head.root:
            message = f"rank {rank} was at step {found[1]} where the log of logs has step {head.step}"
            yield finding("wrong_binding", message, [rank], index)
        else:
            message = f"the ledger of rank {rank} is not a continuation of its first {head.size} entries"
            yield finding("forked_rank", f"{message}, which were bound", [rank], head.size)
        return


def _broken(report: VerifyReport) -> bool:
    """Whether a ledger was only gone through up to a fault; what comes behind it is not known."""
    errors = {found.code for found in report.findings if found.severity == "error"}
    return report.status == "TAMPERED" and errors != {"truncated"}


def _by_itself(
    log: LogOfLogs, rank: int, report: VerifyReport, steps: RankSteps, most: int
) -> Iterator[JobFinding]:
    """Say what is wrong with a ledger by itself, and with its end."""
    first = first_error(report.findings)
    size = report.facts["entries"]
    if report.status not in ("OK", "INCOMPLETE"):
        told = f"{first.code}: {first.message}" if first else report.status
        index = None if first is None else first.index
        yield finding("rank", f"the ledger of rank {rank}: {told}", [rank], index, report.status)
    elif report.status == "INCOMPLETE":
        broken = _breaking_off(report, steps, most)
        if broken is None:
            yield finding("unsealed_rank", f"the ledger of rank {rank} is not sealed", [rank], size)
        else:
            yield finding("cut_off", f"rank {rank} was cut off: {broken}", [rank], size)
    elif log.sealed is not None and not _bound_whole(log, rank, size):
        message = f"the job is sealed, and the end of the ledger of rank {rank} was not bound"
        yield finding("unbound_end", message, [rank], size - 1)


def _bound_whole(log: LogOfLogs, rank: int, size: int) -> bool:
    """Whether the last head of a sealed ledger, its last entry, is the one that was bound last."""
    last = last_heads(log.bindings).get(rank)
    return last is not None and last.size == size - 1


def _breaking_off(report: VerifyReport, steps: RankSteps, most: int) -> str | None:
    """Say how a ledger that is not sealed breaks off; None where it was left in order, as far as one sees."""
    unsigned = report.facts["entries"] - report.facts["signed_entries"] - 1
    if any(found.code == "torn_tail" for found in report.findings):
        return "its last line is unfinished"
    if unsigned > 0:
        step = f", and step {steps.unfinished} has no outcome" if steps.unfinished is not None else ""
        return f"no head covers the last {unsigned} entries{step}"
    if steps.steps < most:
        return f"it ends before step {steps.steps}, which others have begun"
    return None


def _unnamed(folder: Path, ranks: int) -> Iterator[JobFinding]:
    for rank in ranks_found(folder):
        if rank >= ranks:
            message = f"there is a ledger of rank {rank}, and the job has {ranks} ranks"
            yield finding("unnamed_rank", message, [rank])


# --- the ranks together -------------------------------------------------------------------------------------


def _compared(steps: Mapping[int, RankSteps], ranks: int) -> Iterator[JobFinding]:
    """Compare the ranks with each other."""
    if len(steps) < 2:
        return
    yield from _openings(steps)
    reference, *others = steps
    clashes = {rank: first_clash(steps[reference], steps[rank]) for rank in others}
    found = {rank: clash for rank, clash in clashes.items() if clash is not None}
    yield from _contradictions(reference, found, len(steps))
    yield from _saved(steps)
    yield from _left_out(steps)
    if len(steps) == ranks:
        yield from _shares(steps)


def _openings(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Name the ranks that began under other terms than most."""
    for name in TERMS:
        said = {rank: repr(found.opened[name]) for rank, found in steps.items() if found.opened}
        yield from _odd_ones(said, "other_terms", f"began with another {name.replace('_', ' ')}")
    said = {
        rank: found.opened["job"]["weights"]
        for rank, found in steps.items()
        if found.opened and "job" in found.opened
    }
    yield from _odd_ones(said, "other_weights", "began from other weights")


def _odd_ones(said: Mapping[int, str], code: str, what: str) -> Iterator[JobFinding]:
    """Name those that say something else than most do; all, where no more than half agree."""
    if len(set(said.values())) < 2:
        return
    common, times = Counter(said.values()).most_common(1)[0]
    odd = [rank for rank, text in said.items() if text != common] if 2 * times > len(said) else list(said)
    if len(odd) == 1:
        yield finding(code, f"rank {odd[0]} {what} than the others", odd, 0)
    else:
        yield finding(code, f"{_named(odd)}: some {what} than others", odd, 0)


def _saved(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Compare the weights that were saved or gone back to, at the first step where the ranks differ."""
    for step in sorted({step for found in steps.values() for step in found.weights}):
        said = {rank: ",".join(found.weights[step]) for rank, found in steps.items() if step in found.weights}
        findings = list(_odd_ones(said, "other_weights", f"saved or restored other weights at step {step}"))
        if findings:
            yield from findings
            return


def _contradictions(reference: int, clashes: Mapping[int, Clash], compared: int) -> Iterator[JobFinding]:
    """Name who contradicts whom. compared: how many ranks were, the reference among them.

    Where more say alike what the reference does not than say what it does, it is the reference that is named.
    """
    if not clashes:
        return
    clash, times = Counter(clashes.values()).most_common(1)[0]
    if times > compared - len(clashes):
        message = f"at step {clash.step} rank {reference} has another {clash.what} than {times} others"
        yield finding("contradiction", message, [reference])
        return
    for rank, found in clashes.items():
        message = f"at step {found.step} rank {rank} has another {found.what} than rank {reference}"
        yield finding("contradiction", message, [reference, rank] if compared == 2 else [rank])


def _left_out(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Name the ranks that have no part in a step which another committed: no rank moves before all recorded.

    What comes after the end of a ledger that is not sealed may only not have been written yet.
    """
    size = max(found.steps for found in steps.values())
    committed = np.zeros(size, bool)
    for found in steps.values():
        committed[: found.steps] |= found.columns(found.steps).outcomes == COMMITTED
    for rank, found in steps.items():
        known = size if found.sealed is not None else found.steps
        absent = np.ones(known, bool)
        absent[: found.steps] = found.columns(found.steps).outcomes == ABSENT
        missing = np.flatnonzero(absent & committed[:known])
        if len(missing):
            message = f"rank {rank} has no part in step {missing[0]}, which others committed"
            yield finding("left_out_step", message, [rank])


def _shares(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Check that the ranks' shares of each committed batch add up to its size, as all of them state it."""
    size = min(found.steps for found in steps.values())
    total = np.zeros(size, np.int64)
    everywhere = np.ones(size, bool)
    stated = np.zeros(size, np.int64)
    for found in steps.values():
        told = found.columns(size)
        everywhere &= told.outcomes != ABSENT
        total += told.counts
        stated = np.where(told.outcomes == COMMITTED, told.batches, stated)
    wrong = np.flatnonzero(everywhere & (stated > 0) & (stated != total))
    if len(wrong):
        step = int(wrong[0])
        message = (
            f"the shares of the batch of step {step} do not add up: {stated[step]} examples are stated, and "
            f"the ranks' ledgers hold {total[step]}"
        )
        yield finding("wrong_shares", message, steps)


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) != 1 else ''} {listed(ranks)}"


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
