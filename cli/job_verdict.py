"""The outcome of verifying a job: many ranks' ledgers, and the log of logs that binds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.opened import difference_to_json, show_difference
from gradwarden.cli.verdict import MEANINGS, SINCE, steady_line
from gradwarden.policy.frozen import frozen
from gradwarden.runtime.jobs.layout import named_ranks

if TYPE_CHECKING:
    from gradwarden.runtime.verification.job_report import JobFinding, JobReport
    from gradwarden.runtime.verification.what_if import JobDifference

JOB_MEANINGS = {
    **MEANINGS,
    "OK": "every rank's ledger is intact, sealed, bound, and agrees with the others",
    "VIOLATION": "intact and signed, but the ranks contradict each other, or the policy",
    "INCOMPLETE": "intact as far as it goes, but a rank is missing or not sealed",
    "LAGGING": "it holds, but a rank's ledger was bound later than the job allows",
    "FORK": "a rank's ledger is not the one that was bound",
    "ROLLBACK": "entries of a rank are missing that were bound",
}
PARTLY = "every rank's ledger is intact, sealed, bound, and agrees with the others; nothing was decided again"

HELP = {
    "no_log_of_logs": "rank 0 writes `job.ledger`, or whoever binds the job: ask for it",
    "missing_rank": "collect the ledgers of all ranks in the folder",
    "lost_rank": "ask for the ledger: the log of logs shows that there was one",
    "cut_rank": "ask for the whole ledger: the log of logs shows that there was more",
    "cut_off": "a rank that was killed leaves this, or one that still writes; the job can be resumed",
    "left_out_step": "with the durability `os` a power cut can do this; else the rank hides what it did",
    "out_of_turn": "what it says may be compared with nobody: verify without --only to see what it hides",
    "unsealed_rank": "the job goes on, or it was left: it can be resumed",
    "forked_rank": "keep both: the ledger and the log of logs show that the rank has two histories",
    "other_rank": "put each rank's ledger under its own name",
    "lagging_rank": "until it is bound, a rank could still take back what it has not signed",
    "contradiction": "`gradwarden log FOLDER/rank-NNNN.ledger --steps N` shows what each has recorded",
    "weights_mismatch": "`gradwarden log FOLDER/rank-NNNN.ledger --kind checkpoint` lists those of a rank",
    "weights_unnamed": "a rank that was killed leaves this; `--earlier` accepts a checkpoint that all name",
    "wrong_shares": "`gradwarden log FOLDER/rank-NNNN.ledger --steps N` shows what each has recorded",
    "timestamp_invalid": "give the certificate of the authority, or of who certifies it, with --tsa",
    "rotation_overdue": "`gradwarden rotate` hands a ledger over to a fresh key",
}

MOST_RANKS = 16
"""Ranks that are listed one by one; `--format json` has all."""


MOST_FINDINGS = 50
"""Findings that are shown to people."""


@frozen
class JobVerdict:
    """All that was found out about a job.

    heads_compared: of its log of logs, kept elsewhere. opened: examples, in steps, whose commitments were
    opened and compared with the data set; None where that was not asked, or came to nothing. other: the
    policy under which the steps were to be decided again, if any. difference: what that would have changed;
    None where it does not hold what was recorded.
    """

    folder: Path
    report: JobReport
    policy_given: bool
    heads_compared: int
    assurance: str
    weights: tuple[Path, ...] = ()
    memory: Path | None = None
    """What was found earlier, and gone on from."""
    remembered: Path | None = None
    """Where what was found now is kept."""
    opened: int | None = None
    other: Path | None = None
    difference: JobDifference | None = None

    @property
    def without(self) -> tuple[int, ...]:
        """The ranks that `difference` leaves out: their ledgers are missing, or do not hold."""
        ranks = self.report.facts["ranks"] or 0
        taken = {} if self.difference is None else self.difference.ranks
        return tuple(rank for rank in range(ranks) if rank not in taken)

    @property
    def status(self) -> str:
        return self.report.status

    @property
    def ok(self) -> bool:
        return self.report.ok

    def checked(self) -> Iterator[str]:
        """Yield what was checked."""
        facts = self.report.facts
        since = facts.get("since") or {"entries": 0, "decisions": 0, "steps": 0}
        behind = f" behind the first {since['entries']:,} entries" if since["entries"] else ""
        for stamp in facts.get("timestamps", ()):
            heads = [size for size in stamp["ranks"].values() if size]
            yield printable(
                f"the first {stamp['entries']:,} entries of the log of logs, and {sum(heads):,} of "
                f"{plural(len(heads), 'rank')} that they bind, existed at {stamp['time']}, "
                f"says {stamp['authority']}"
            )
        ranks = plural(len(self.report.ranks), "rank")
        yield f"the ledgers of {ranks}{behind}: form, order, links, tree and heads"
        if decisions := facts["decisions_replayed"] - since["decisions"]:
            yield f"{plural(decisions, 'decision')}, made again"
        if facts["bindings"]:
            yield f"{plural(facts['bindings'], 'binding')} of them, up to step {facts['bound_to_step']:,}"
        if compared := facts["compared_ranks"]:
            which = "they agree" if len(compared) == facts["ranks"] else f"{named_ranks(compared)} agree"
            shares = ", shares of each batch" if len(compared) == facts["ranks"] else ""
            yield f"step by step that {which}: programs, epochs, outcomes, gradients{shares}"
        for rule, bounds in facts["epsilon_bounds"].items():
            spent = facts["privacy"][rule]
            yield printable(
                f"`{rule}`: {plural(spent['steps'], 'step')} of all recorded at epsilon {spent['epsilon']}; "
                f"reckoned anew, they cost {bounds['low']} to {bounds['high']}"
            )
        if self.opened is not None:
            yield f"the metadata of {plural(self.opened, 'example')} in steps, against the data set"
        yield from self._weights_lines()
        if self.heads_compared:
            yield f"against {plural(self.heads_compared, 'head')} of the log of logs, kept elsewhere"

    def unchecked(self) -> Iterator[str]:
        """Yield what was not checked, or cannot be."""
        if since := self.report.facts.get("since"):
            yield (
                f"the first {since['entries']:,} entries of all ranks, as verified at {since['at']}: that "
                f"they are still the same, and `{self.memory}` your own, was taken on trust (--since)"
            )
        if only := self.report.facts.get("only"):
            yield f"the decisions, exposures, budgets and outcomes of each rank (--only {only})"
        yield "that every training step was offered to the ledgers: they are self-attested"
        if not self.policy_given:
            yield "the policy: that of the ledgers was taken at its word (--policy)"
        if not self.heads_compared:
            yield "whether a holder of the keys rewrote all of it: no head of the log of logs (--checkpoint)"
        elif "witnesses" not in self.report.facts:
            yield "whether others were shown the same: no witness was asked for (--witness)"
        yield from self._not_compared()
        if self.opened is None:
            yield "the metadata of examples (--data, --secret)"
        if self.other is not None and self.difference is None:
            yield f"what `{self.other}` would have decided: what is recorded does not hold"
        elif self.difference is not None and self.without:
            which = named_ranks(self.without)
            yield f"what `{self.other}` would have decided on {which}: no ledger that holds"
        yield from self._unchecked_weights()

    def _not_compared(self) -> Iterator[str]:
        """Yield what was not compared of ranks, whose ledgers are missing or do not hold."""
        ranks, compared = range(self.report.facts["ranks"] or 0), set(self.report.facts["compared_ranks"])
        lacking = [rank for rank in ranks if rank not in compared]
        if len(ranks) < 2 or not lacking:
            return
        if compared:
            yield f"whether the others agree with {named_ranks(lacking)}: no ledger that holds"
        else:
            yield "whether the ranks agree: no two ledgers hold"
        yield "whether the shares of each batch add up: that takes all ranks"

    def _weights_lines(self) -> Iterator[str]:
        """Yield what is known of the weights that were given, and of those that the ledgers name."""
        facts = self.report.facts
        for given in facts.get("weights", ()):
            which = "that {} last" if given["last"] else "of an earlier checkpoint, by {}"
            how = "" if given["same_file"] else ", tensor by tensor, in another file"
            ranks = list(map(int, given["entries"]))
            named = named_ranks(ranks)
            by = f"{named} {'name' if len(ranks) != 1 else 'names'}" if given["last"] else named
            yield printable(
                f"`{given['path']}` holds the weights {which.format(by)} (step {given['step']:,}){how}"
            )
        yield from steady_line(facts)

    def _unchecked_weights(self) -> Iterator[str]:
        asked = frozenset(self.report.facts.get("weights_asked_of", ()))
        if not self.weights:
            yield "the weights (--checkpoint-weights)"
        elif not asked:
            yield "the weights: no rank's ledger can say which it names"
        elif others := [rank for rank in range(self.report.facts["ranks"]) if rank not in asked]:
            yield f"the weights, by {named_ranks(others)}: no ledger that holds"

    @property
    def first(self) -> JobFinding | None:
        """The error to look at first: one that makes the status, and of these the first of its ledger."""
        errors = [one for one in self.report.findings if one.severity == "error" and one.index is not None]
        worst = [one for one in errors if one.status == self.status] or errors
        return min(worst, key=lambda one: (one.ranks[:1], one.index), default=None)

    def to_json(self) -> dict[str, Any]:
        told = {} if self.difference is None else {"what_if": self._difference_to_json(self.difference)}
        return {
            "ok": self.ok,
            "status": self.report.status,
            "job": str(self.folder),
            "first_bad": None
            if self.first is None
            else {"rank": next(iter(self.first.ranks), None), "index": self.first.index},
            "findings": [
                {
                    "code": found.code,
                    "ranks": list(found.ranks),
                    "index": found.index,
                    "severity": found.severity,
                    "message": found.message,
                    "help": HELP.get(found.code),
                }
                for found in self.report.findings
            ],
            "checked": list(self.checked()),
            "not_checked": list(self.unchecked()),
            "facts": {**self.report.facts, "assurance": self.assurance},
            **told,
        }

    def _difference_to_json(self, difference: JobDifference) -> dict[str, Any]:
        return {
            **difference_to_json(difference.whole),
            "ranks": {str(rank): difference_to_json(own) for rank, own in difference.ranks.items()},
            "without_ranks": list(self.without),
        }


def show_job(verdict: JobVerdict) -> None:
    """Write a verdict to standard output, and its findings to standard error; nothing, if that fails."""
    for line, to_stderr in tuple(_told(verdict)):
        click.echo(line, err=to_stderr)
    if verdict.difference is not None and verdict.other is not None:
        _show_difference(verdict.difference, verdict.other, verdict.without)


def _told(verdict: JobVerdict) -> Iterator[tuple[str, bool]]:
    """Yield the lines that tell a verdict, each with whether it goes to standard error."""
    report = verdict.report
    colour = "green" if verdict.ok else "yellow" if report.status in ("INCOMPLETE", "LAGGING") else "red"
    status = click.style(report.status, fg=colour, bold=True)
    given = SINCE if report.facts.get("since") else ""
    meaning = PARTLY if verdict.ok and report.facts.get("only") else JOB_MEANINGS[report.status]
    yield f"{status} {verdict.folder}: {meaning}{given}", False
    for line in _lines(report.facts):
        yield f"  {line}", False
    yield f"  assurance: {verdict.assurance}", False
    for heading, lines in (("checked", verdict.checked()), ("not checked", verdict.unchecked())):
        yield click.style(heading, bold=True), False
        for line in lines:
            yield f"  {line}", False
    for found in report.findings[:MOST_FINDINGS]:
        for line in _finding_lines(found, first=found == verdict.first):
            yield line, True
    if len(report.findings) > MOST_FINDINGS:
        yield f"and {len(report.findings) - MOST_FINDINGS:,} more: --format json has all", True


def _show_difference(difference: JobDifference, other: Path, without: Sequence[int]) -> None:
    show_difference(difference.whole, other)
    changed = {rank: own for rank, own in difference.ranks.items() if own.first is not None}
    for rank, own in list(changed.items())[:MOST_RANKS]:
        click.echo(
            f"  rank {rank}: other decisions in {own.steps_changed:,} steps, first in step {own.first:,}"
        )
    if len(changed) > MOST_RANKS:
        click.echo(f"  and {len(changed) - MOST_RANKS:,} more ranks: --format json has all")
    if without:
        click.echo(f"  without {named_ranks(without)}, of which no ledger is here that holds")


def _finding_lines(found: JobFinding, *, first: bool) -> Iterator[str]:
    colour = "red" if found.severity == "error" else "yellow"
    name = click.style(f"{found.severity}[{found.code}]", fg=colour, bold=True)
    where = ""
    if found.index is not None:
        of = f"rank {found.ranks[0]}" if found.ranks else "log of logs"
        where = f"{of}, entry {found.index}{', the first bad one' if first else ''}: "
    yield f"{where}{name}: {printable(found.message)}"
    if found.code in HELP:
        yield f"  {click.style('= help:', fg='cyan')} {HELP[found.code]}"


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts["job"]:
        yield printable(f"job {facts['job']}, {plural(facts['ranks'], 'rank')}")
    if facts["policy"]:
        policy = facts["policy"]
        yield printable(f"policy {policy['name']} version {policy['version']}, sha256 {policy['digest']}")
    exposures = "" if facts.get("only") else f", {plural(facts['exposures'], 'exposure')} over all ranks"
    yield f"{plural(facts['steps'], 'step')}{exposures}"
    for rank, member in list(facts["members"].items())[:MOST_RANKS]:
        witnessed = f", {member['witnessed_entries']:,} witnessed" if "witnessed_entries" in member else ""
        yield (
            f"rank {rank}: {member['status']}, {plural(member['entries'], 'entry', 'entries')}, "
            f"{member['bound_entries']:,} bound{witnessed}, {plural(member['steps'], 'step')}"
        )
    if facts["root"]:
        yield f"root {facts['root']}"
