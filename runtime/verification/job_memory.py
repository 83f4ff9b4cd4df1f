"""What a verification remembers of a job: of each rank's ledger, and of the log of logs.

A file in the form of `memory`, `gradwarden/job-memory/5`. Of each rank it holds the memory of its ledger, and
what the ranks are compared by (`rank_steps`) from the first step on that was not settled on all of them: what
was before was compared. The log of logs is small, and is read as a whole each time; what is remembered of it
shows whether it still begins as it did, and up to where its bindings were held against the ranks.

Only of a job in which nothing contradicts anything is anything remembered. A rank whose ledger is missing, or
holds no complete program yet, is read from its start the next time, and all steps of the others are kept to
compare it by. Where one of the ledgers no longer has its last entry that is remembered, the whole job is gone
through from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.chain import ChainReport, Finding
from gradwarden.runtime.verification.job_report import JobFinding
from gradwarden.runtime.verification.log_of_logs import LogOfLogs
from gradwarden.runtime.verification.memory import (
    FAULTS,
    Memory,
    check_asked,
    contradictions,
    goes_on,
    memory_from,
    of_another_make,
    read_written,
    remembered,
    write_memory,
)
from gradwarden.runtime.verification.rank_steps import RankSteps
from gradwarden.runtime.verification.terms import Terms
from gradwarden.runtime.verification.verify import REWRITTEN, VerifyReport

FORMAT = "gradwarden/job-memory/5"


@frozen
class RankMemory:
    """What is remembered of a rank. ledger: of its ledger. steps: as `RankSteps.remember` gives them. bound:
    up to which size it was held against the log of logs.
    """

    ledger: Memory
    steps: Mapping[str, Any]
    bound: int


@frozen
class JobMemory:
    """What is remembered of a job. log: of the log of logs. ranks: by number."""

    log: Memory
    ranks: Mapping[int, RankMemory]

    def write(self, path: Path) -> None:
        """Write the memory to a file, which is replaced as a whole. Raises MemoryFileError."""
        ranks = {str(rank): one for rank, one in self.ranks.items()}
        write_memory(path, FORMAT, {"log": self.log, "ranks": ranks})

    def facts(self) -> dict[str, Any]:
        """Return what is taken on trust, for a report."""
        ranks = {str(rank): one.ledger.facts() for rank, one in self.ranks.items()}
        counted = {name: sum(facts[name] for facts in ranks.values()) for name in ("entries", "decisions")}
        steps = max((facts["steps"] for facts in ranks.values()), default=0)
        return {**counted, "steps": steps, "at": self.log.at, "by": self.log.by, "ranks": ranks}

    def contradictions(self, folder: Path) -> list[JobFinding]:
        """Return what a job lacks of what is remembered of it."""
        found = [
            _finding(one, f"the log of logs: {one.message}", ())
            for one in _lacking(self.log, log_path(folder))
        ]
        for rank, own in self.ranks.items():
            for one in _lacking(own.ledger, rank_path(folder, rank)):
                found.append(_finding(one, f"the ledger of rank {rank}: {one.message}", (rank,)))
        return found

    def goes_on(self, folder: Path) -> bool:
        """Whether every ledger still has what is remembered of it, as far as that is looked at."""
        paths = {rank: rank_path(folder, rank) for rank in self.ranks}
        return (
            all(path.exists() and goes_on(self.ranks[rank].ledger, path) for rank, path in paths.items())
            and log_path(folder).exists()
            and not contradictions(self.log, log_path(folder))
        )


def _lacking(memory: Memory, path: Path) -> Sequence[Finding]:
    if path.exists():
        return contradictions(memory, path)
    message = f"{memory.size:,} entries were there when it was last verified; now it is missing"
    return [Finding("rolled_back", 0, message)]


def _finding(one: Finding, message: str, ranks: tuple[int, ...]) -> JobFinding:
    return JobFinding(
        one.code, message, ranks, one.index, REWRITTEN.get(one.code, "OK"), severity=one.severity
    )


def remembered_job(
    log: LogOfLogs,
    chain: ChainReport,
    asked: Terms,
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
) -> JobMemory | None:
    """Return what to remember of a job that holds as far as it goes.

    None where the steps that a rank must yet be compared with were left out of an earlier memory.
    """
    assert log.opened is not None
    assert chain.links is not None
    found = {rank: report.memory for rank, report in reports.items() if report.memory is not None}
    whole = len(found) == log.opened["ranks"]
    begun = min(steps[rank].settled for rank in found) if whole else 0
    if any(steps[rank].begun > begun for rank in found):
        return None
    bound = {rank: head.size for rank, head in log.last.items()}
    ranks = {
        rank: RankMemory(memory, steps[rank].remember(begun, bound.get(rank, 0)), bound.get(rank, 0))
        for rank, memory in found.items()
    }
    return JobMemory(remembered(chain.links, None, asked), ranks)


def read_job_memory(path: Path, asked: Terms) -> JobMemory:
    """Return the memory of a job in a file. asked: as of `read_memory`. Raises MemoryFileError."""
    fields = read_written(path, FORMAT, "the verification of a job")
    try:
        ranks = {
            int(rank): RankMemory(memory_from(own["ledger"]), own["steps"], int(own["bound"]))
            for rank, own in fields["ranks"].items()
        }
        memory = JobMemory(memory_from(fields["log"]), ranks)
        for one in ranks.values():
            RankSteps.recalled(one.steps)
    except FAULTS as error:
        raise of_another_make(path) from error
    check_asked(path, memory.log, asked)
    return memory
