"""`gradwarden report`: one HTML page about a run, made from its ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import check_begun
from gradwarden.cli.job_judging import judge_job
from gradwarden.cli.job_verdict import JOB_MEANINGS, JobVerdict
from gradwarden.cli.judging import Asked, judge
from gradwarden.cli.manifest import text_lines
from gradwarden.cli.options import FILE, trust_options
from gradwarden.cli.output import arrived, emit_json, format_option, progress
from gradwarden.cli.verdict import MEANINGS, Verdict
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.report.account import Account

ENDINGS = (".jsonl", ".ndjson", ".csv")


@verb("report")
@click.argument("ledger", type=FILE, metavar="LEDGER|FOLDER")
@trust_options
@click.option(
    "--checkpoint", "checkpoints", type=FILE, multiple=True, metavar="NOTE",
    help="A signed head of this ledger, kept elsewhere or cosigned; repeatable.",
)  # fmt: skip
@click.option(
    "--groups", type=FILE, metavar="MANIFEST", help="Who the examples are: JSONL or CSV with ids (with --by)."
)
@click.option("--by", metavar="ATTRIBUTE", help="The attribute of the manifest that names their groups.")
@click.option("--secret", type=FILE, help="The run's secret for commitments: finds the examples of --groups.")
@click.option("-o", "--output", type=FILE, required=True, metavar="HTML", help="The page to write.")
@format_option("text", "json")
def command(
    ledger: Path,
    checkpoints: tuple[Path, ...],
    groups: Path | None,
    by: str | None,
    secret: Path | None,
    output: Path,
    output_format: str,
    trust: Trust,
) -> int:
    """Write one HTML page about a run: what it was allowed to learn, and did.

    The page has the run's summary, the weight that shaped each band over time, refusals by rule, what was
    spent of privacy budgets, memorization events, and what `gradwarden verify` says of the ledger. It needs
    no network and runs no script, and can be read on a phone, on paper and by a screen reader.

    Given the folder of a job of many ranks, the page shows the job as one run, and the health of each ledger.

    Who shaped a band is told by the `depth` rules that let them in. With a manifest, one of its attributes
    and the run's secret it is told by groups of examples (a licence, a hospital); their names are then on the
    page. Needs gradwarden[report].

    \b
    Examples:
      gradwarden report run.ledger --key run.pub -o report.html
      gradwarden report run.ledger --key run.pub --groups manifest.jsonl --by license --secret run.secret \\
        -o report.html
      gradwarden report job/ --key run.pub -o report.html

    \b
    Exit status: 0 written, 1 written, and the ledger does not hold, 2 misuse or unreadable input.
    """
    if len({groups is None, by is None, secret is None}) > 1:
        raise click.UsageError("groups are told by all of --groups, --by and --secret")
    from gradwarden.runtime.report.page import render

    asked = Asked(checkpoints=checkpoints)
    verdict: Verdict | JobVerdict
    if ledger.is_dir():
        verdict, meanings = judge_job(ledger, trust, asked), JOB_MEANINGS
    else:
        check_begun(ledger)
        verdict, meanings = judge(ledger, trust, asked), MEANINGS
    if verdict.status == "TAMPERED":
        raise InputError(
            f"no report is made of `{ledger}`, which was altered: what it says means nothing",
            help="`gradwarden verify` says where",
        )
    ranks = verdict.report.facts["ranks"] if isinstance(verdict, JobVerdict) else None
    account = _account(ledger, _groups(groups, by, secret), ranks)
    write_text(output, render(account, verdict.to_json(), meanings[verdict.status]))
    if output_format == "json":
        emit_json({"ok": verdict.ok, "status": verdict.status, "output": str(output)})
    else:
        what = "job" if account.ranks else "ledger"
        click.echo(f"wrote {output}: {account.steps:,} steps; the {what} is {verdict.status}")
    return int(not verdict.ok)


@frozen
class Groups:
    """The group of each example, by its commitment under a run's secret, and the files that told them."""

    manifest: Path
    secret: Path
    secret_commitment: str
    by_commitment: Mapping[bytes, str]

    def check(self, account: Account) -> None:
        """Raise InputError where they are not of this run: the page would show its examples in no group."""
        if account.opened.get("secret_commitment") != self.secret_commitment:
            raise InputError(
                f"`{self.secret}` is the secret of another run",
                help="give the file that was written beside this ledger, as `LEDGER.secret`",
            )
        if account.examples and not self.by_commitment:
            raise InputError(
                f"`{self.manifest}` has no records", help="give the manifest that the run was trained on"
            )


def _groups(manifest: Path | None, by: str | None, secret: Path | None) -> Groups | None:
    """Read the groups of examples, if they are asked for."""
    from gradwarden.runtime.commitments import Committer
    from gradwarden.runtime.report.account import grouped

    if manifest is None or by is None or secret is None:
        return None
    committer = Committer.load(secret)
    found = grouped(_read_groups(manifest, by), committer)
    return Groups(manifest, secret, committer.secret_commitment, found)


def _account(ledger: Path, groups: Groups | None, ranks: int | None) -> Account:
    """Add up a ledger, or those of a job. ranks: how many that has, where its log of logs says so."""
    found = None if groups is None else groups.by_commitment
    account = _account_of_job(ledger, found, ranks) if ledger.is_dir() else _account_of_run(ledger, found)
    if groups is not None:
        groups.check(account)
    return account


def _account_of_run(ledger: Path, found: Mapping[bytes, str] | None) -> Account:
    from gradwarden.runtime.ledger.chain import Listener, verify_chain
    from gradwarden.runtime.ledger.reader import check_whole
    from gradwarden.runtime.report.account import Accountant

    accountant: Accountant | None = None

    def listen() -> Listener:
        nonlocal accountant
        accountant = Accountant(found)
        return accountant.accept

    check_whole(ledger)
    total = ledger.stat().st_size
    with progress(f"reading {ledger.name}", total, "bytes"):
        verify_chain(ledger, (), listen)
    assert accountant is not None, "verify_chain has asked for a listener"
    return accountant.finish()


def _account_of_job(folder: Path, groups: Mapping[bytes, str] | None, count: int | None) -> Account:
    from gradwarden.runtime.jobs.layout import MOST_RANKS
    from gradwarden.runtime.jobs.progress import size_of_ranks
    from gradwarden.runtime.provenance.making import ranks_of, walk_ranks
    from gradwarden.runtime.report.account import Accountant

    ranks = ranks_of(folder, MOST_RANKS if count is None else count)
    if not ranks:
        raise InputError(
            f"`{folder}` has no ledger of a rank",
            help="give the ledger of a run, or the folder in which the ranks of a job keep theirs",
        )
    accountant = Accountant(groups, ranks)
    with progress(f"reading {folder.name}", size_of_ranks(folder), "bytes") as advance:
        walk_ranks(folder, ranks, (), accountant.begin, arrived(advance))
    return accountant.finish()


def _read_groups(path: Path, by: str) -> dict[str, str]:
    """Return the group of each id in a manifest. Raises InputError."""
    import csv
    import json

    if path.suffix not in ENDINGS:
        raise InputError(f"`{path}`: groups are read from JSONL or CSV", help=f"one of {', '.join(ENDINGS)}")
    names: dict[str, str] = {}
    with path.open("rb") as file:
        lines = text_lines(file, path)
        try:
            records: Any = csv.DictReader(lines) if path.suffix == ".csv" else map(json.loads, lines)
            for record in records:
                names[str(record["id"])] = str(record[by])
        except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
            what = f"lacks `{error.args[0]}`" if isinstance(error, KeyError) else "cannot be read"
            raise InputError(
                f"`{path}`: record {len(names) + 1:,} {what}",
                help=f"every record, in UTF-8, has an `id` and the attribute `{by}` (--by)",
            ) from None
    return names
