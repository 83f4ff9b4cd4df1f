"""Holds weights against what every rank of a job names: all ranks record each checkpoint.

What is found: `weights_mismatch` and `wrong_tensors`, as of one ledger, with the ranks; `weights_unnamed`
where a rank's ledger breaks off before a checkpoint that others name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.layout import named_ranks, rank_path
from gradwarden.runtime.verification.job_report import JobFinding, finding
from gradwarden.runtime.verification.rank_steps import RankSteps
from gradwarden.runtime.verification.verify import VerifyReport
from gradwarden.runtime.verification.weights_check import HashedWeights, Match, WeightsReport, check_weights


@frozen
class JobWeights:
    """What was found of weights. facts: of each checkpoint that some of them are, who names it.

    ranks: those whose ledgers were asked; the others are missing, or do not hold.
    """

    findings: tuple[JobFinding, ...]
    facts: tuple[Mapping[str, Any], ...]
    ranks: tuple[int, ...]


def check_job_weights(
    folder: Path,
    reports: Mapping[int, VerifyReport],
    steps: Mapping[int, RankSteps],
    given: Sequence[Path],
    *,
    earlier: bool = False,
    hashed: Callable[[int], None] = lambda _: None,
) -> JobWeights:
    """Hold weights against the ledgers of a job's ranks. reports, steps: of those that are there.

    given, earlier, hashed: as of `verify_ledger`; each file is hashed once. Raises OSError where weights
    cannot be read.
    """
    asked = [rank for rank, report in reports.items() if _may_be_asked(report)]
    if not given or not asked:
        return JobWeights((), (), ())
    listed = any(reports[rank].facts.get("checkpoints") for rank in asked)
    weights = [HashedWeights(path, tensors=listed, hashed=hashed) for path in given]
    found = {
        rank: check_weights(
            rank_path(folder, rank), weights, reports[rank].facts["entries"], earlier=earlier, entries=False
        )
        for rank in asked
    }
    return JobWeights(tuple(_findings(found, steps)), tuple(_facts(given, found)), tuple(asked))


def _may_be_asked(report: VerifyReport) -> bool:
    """Whether what a ledger names is known: it is sound, whole, and lists what it says that it lists."""
    codes = {found.code for found in report.findings}
    return report.status != "TAMPERED" and not report.facts["archived"] and "wrong_tensors" not in codes


def _findings(found: Mapping[int, WeightsReport], steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Yield what is wrong, once where several ranks say the same."""
    latest = max((match.step for match in _matches(found)), default=-1)
    alike: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, report in found.items():
        cut = report.findings and steps[rank].sealed is None and steps[rank].steps <= latest
        if cut and not any(match is not None and match.step == latest for match in report.matches):
            message = (
                f"the ledger of rank {rank} ends at step {steps[rank].steps}, and does not name the "
                f"checkpoint at step {latest} that others name"
            )
            yield finding("weights_unnamed", message, [rank])
            continue
        for one in report.findings:
            alike[one.code, one.message][rank] = one.index
    for (code, message), at in alike.items():
        index = next(iter(at.values())) if len(at) == 1 else None
        yield finding(code, f"{_by(list(at))}: {message}", at, index)


def _by(ranks: Sequence[int]) -> str:
    return f"by the ledger{'s' if len(ranks) != 1 else ''} of {named_ranks(ranks)}"


def _matches(found: Mapping[int, WeightsReport]) -> Iterator[Match]:
    for report in found.values():
        yield from (match for match in report.matches if match is not None)


def _facts(given: Sequence[Path], found: Mapping[int, WeightsReport]) -> Iterator[dict[str, Any]]:
    """Say which checkpoints weights are, and at which entry of which rank's ledger."""
    for place, path in enumerate(given):
        entries: defaultdict[tuple[int, str, bool, bool], dict[str, int]] = defaultdict(dict)
        for rank, report in found.items():
            match = report.matches[place]
            if match is not None:
                named = match.step, match.file, match.same_file, match.last
                entries[named][str(rank)] = match.entry
        for (step, file, same_file, last), by in entries.items():
            told = {"path": str(path), "step": step, "file": file, "same_file": same_file, "last": last}
            yield {**told, "entries": by}
