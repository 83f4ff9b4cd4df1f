"""`gradwarden receipt`: give the owner of an example a receipt of what a run did with it, and check one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import InputError, give_up
from gradwarden.cli.inputs import check_begun, head_under, read_bytes, told_of
from gradwarden.cli.job_receipt import check_job, make_job
from gradwarden.cli.options import FILE, load_trust, trust_file_option, witness_options
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.receipt_report import (
    OTHERS,
    SALT,
    SELF_ATTESTED,
    TALLY,
    faults_to_json,
    hand_over,
    leaf_lines,
    show_faults,
    show_lines,
    show_standing,
    standing_to_json,
    steps_line,
    steps_to_json,
)

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.evidence.receipt import Receipt
    from gradwarden.runtime.evidence.receipt_check import ReceiptReport
    from gradwarden.runtime.evidence.trust import Trust


@verb("receipt")
@click.argument("action", type=click.Choice(["make", "check"]))
@click.argument("file", type=FILE, metavar="LEDGER|FOLDER|RECEIPT")
@click.option("--id", "example", metavar="ID", help="The id of the example (make); the one expected (check).")
@click.option("--secret", type=FILE, help="The run's secret for commitments (make).")
@click.option("--entries", is_flag=True, help="Add the entries of every step that used it (make).")
@click.option("--head", type=FILE, metavar="NOTE", help="The head to prove under (make). [default: the last]")
@click.option("-o", "--output", type=FILE, help="Write the receipt to a file (make).")
@click.option(
    "--key", "key_files", type=FILE, multiple=True, metavar="PUB",
    help="A public key that you trust to sign the ledger (check); repeatable.",
)  # fmt: skip
@trust_file_option
@click.option("--salt", metavar="HEX", help="The salt that you were given before the run (check).")
@click.option("--origin", metavar="TEXT", help="The ledger that it must be of (check). [default: any]")
@click.option(
    "--none-after", type=click.IntRange(min=-1), metavar="STEP",
    help="Ask that nothing was learned from it after this step, as after a revocation (check).",
)  # fmt: skip
@witness_options
@format_option("text", "json")
def command(
    action: str,
    file: Path,
    example: str | None,
    secret: Path | None,
    entries: bool,
    head: Path | None,
    output: Path | None,
    key_files: tuple[Path, ...],
    trust_file: Path | None,
    salt: str | None,
    origin: str | None,
    none_after: int | None,
    witness_files: tuple[Path, ...],
    quorum: int | None,
    output_format: str,
) -> int:
    """Give the owner of an example a receipt of what a run did with it, or check one.

    `make` needs the ledger and the run's secret; the receipt opens the commitment of that one id and no
    other. From a run that was tallied (`Governor.tally`, before it is closed) it tells each step that
    proposed the example, how it was decided under which policy, how deep it went, and whether the model may
    have learned from it; or that the run never named it. It then tells nothing of other examples but hashes.
    --entries adds the signed entries of each step, which tell more of the others in it.

    Given the folder of a job of many ranks, one receipt is made of all of them: of each rank's ledger, under
    the head of it that the log of logs binds (--head: one of the log of logs). A rank whose ledger is
    missing, or has not that head, is named, and the status is 1; such a receipt never shows that an example
    was not used.

    `check` needs the receipt and the public key, and no network. It says what is shown and what is not. With
    --none-after it fails where the model learned from the example in a later step (-1: in any), or where the
    receipt does not show that it did not: only with the --salt that you had before, since under another the
    example may have been named as well.

    \b
    Examples:
      gradwarden receipt make run.ledger --id sample-17 --secret run.ledger.secret -o receipt.json
      gradwarden receipt make run.ledger --id sample-17 --secret run.ledger.secret --entries -o full.json
      gradwarden receipt check receipt.json --key run.pub --id sample-17
      gradwarden receipt check receipt.json --key run.pub --salt "$SALT" --none-after 4000
      gradwarden receipt check receipt.json --trust auditors.trust --id sample-17
      gradwarden receipt make job/ --id sample-17 --secret job/job.secret -o receipt.json

    \b
    Exit status: 0 made, or it holds; 1 it cannot be made, or does not hold; 2 misuse or unreadable input.
    """
    if action == "make":
        if key_files or trust_file or salt or origin or none_after is not None or witness_files or quorum:
            raise click.UsageError("`make` takes --id, --secret, --entries, --head and --output")
        if example is None or secret is None:
            raise click.UsageError("name the example, and open it: --id ID --secret FILE")
        if file.is_dir():
            return make_job(file, example, secret, head, output, output_format, entries=entries)
        return _make(file, example, secret, head, output, output_format, entries=entries)
    if secret is not None or entries or head is not None or output is not None:
        raise click.UsageError(
            "`check` takes --key, --trust, --id, --salt, --origin, --none-after, --witness"
        )
    trust = replace(load_trust(key_files, trust_file, witness_files, quorum), origin=origin)
    return _check(file, example, salt, none_after, trust, output_format)


def _make(
    ledger: Path,
    example: str,
    secret: Path,
    head: Path | None,
    output: Path | None,
    output_format: str,
    *,
    entries: bool,
) -> int:
    from gradwarden.runtime.commitments import Committer
    from gradwarden.runtime.errors import EvidenceError, HeadMismatch, TraceError
    from gradwarden.runtime.evidence.receipt_maker import make_receipt
    from gradwarden.runtime.ledger.reader import read_entries

    check_begun(ledger)
    committer = Committer.load(secret)
    opened = next(read_entries(ledger)).body
    if committer.secret_commitment != opened.get("secret_commitment"):
        raise InputError(f"`{secret}` is the secret of another run than `{ledger}`")
    under = head_under(head, ledger)
    try:
        receipt = make_receipt(
            ledger, example, committer.salt(example), committer.commit(example), under, entries=entries
        )
    except (EvidenceError, HeadMismatch, TraceError) as error:
        return give_up(error, output_format)
    hand_over(receipt.encode().decode(), output, output_format, _shown(receipt))
    return 0


def _shown(receipt: Receipt) -> str:
    parts = []
    if receipt.tallied is not None:
        parts.append("its place in the tally" if receipt.listed else "that the tally does not have it")
    if receipt.entries is not None:
        parts.append(f"the entries of {plural(len(receipt.entries.uses), 'step')}")
    return " and ".join(parts)


def _check(
    path: Path,
    example: str | None,
    salt: str | None,
    none_after: int | None,
    trust: Trust,
    output_format: str,
) -> int:
    from gradwarden.runtime.evidence.job_receipt import JobReceipt, parse_any
    from gradwarden.runtime.evidence.proof_check import Fault
    from gradwarden.runtime.evidence.receipt import MAX_RECEIPT
    from gradwarden.runtime.evidence.receipt_check import check_receipt, used_after

    content = read_bytes(path, MAX_RECEIPT, "a receipt")
    with told_of(path, help="give the file that `gradwarden receipt make -o` wrote, byte for byte"):
        receipt = parse_any(content)
    faults = []
    if example is not None and example != receipt.id:
        faults.append(Fault("wrong_id", f"the receipt is of `{receipt.id}`, not of `{example}`"))
    if salt is not None and salt.lower() != receipt.salt.hex():
        faults.append(Fault("wrong_salt", "the receipt's salt is another than the one given"))
    if isinstance(receipt, JobReceipt):
        return check_job(
            path, receipt, trust, faults, output_format, salt_known=salt is not None, none_after=none_after
        )
    report = check_receipt(receipt, trust)
    report = replace(report, faults=(*report.faults, *faults))
    late = None
    if none_after is not None and report.ok:
        late = used_after([report], none_after, salt_known=salt is not None)
    if output_format == "json":
        emit_json(_document(path, receipt, report, late, salt_known=salt is not None))
    else:
        _show(path, receipt, report, late, salt_known=salt is not None)
    return int(not report.ok or late is not None)


def _document(
    path: Path, receipt: Receipt, report: ReceiptReport, late: Fault | None, *, salt_known: bool
) -> dict[str, Any]:
    """Return what a receipt shows. late: what it shows beside, that was not to be."""
    shown = {
        "used": report.used,
        "examples": report.examples,
        "closed": report.closed,
        "tally": report.leaf,
        "steps": steps_to_json(report),
        "not_shown": _limits(report, salt_known=salt_known),
    }
    return {
        "ok": report.ok and late is None,
        **standing_to_json(path, receipt, report.head),
        "policy": report.opened.get("policy"),
        "faults": faults_to_json(report.faults if late is None else [late]),
        **(shown if report.ok else {}),
    }


def _show(
    path: Path, receipt: Receipt, report: ReceiptReport, late: Fault | None, *, salt_known: bool
) -> None:
    what = "the receipt does not hold"
    if report.ok:
        what = f"`{receipt.id}` was " + ("used" if report.used else "never named")
    show_standing(path, report.head, what, "ledger", ok=report.ok and late is None)
    if report.ok:
        show_lines(_uses(report), _limits(report, salt_known=salt_known))
    show_faults(report.faults if late is None else [late])


def _uses(report: ReceiptReport) -> list[str]:
    """Say what became of the example."""
    policy = report.opened["policy"]
    lines = [f"the run began under {policy['name']} version {policy['version']}, {policy['digest'][:16]}…"]
    if report.leaf is not None:
        lines += leaf_lines(report.leaf)
    elif report.examples is not None:
        lines.append(f"the tally of {plural(report.examples, 'example')} does not have its commitment")
    if report.steps is not None:
        lines.append(steps_line(report))
    return lines


def _limits(report: ReceiptReport, *, salt_known: bool) -> list[str]:
    """Say what the receipt does not show."""
    lines = [SELF_ATTESTED]
    if report.examples is None:
        lines.append("that these are all uses: the run was not tallied")
    else:
        lines.append(TALLY)
        if not report.closed:
            lines.append("steps after the tally: the run was not sealed right behind it")
    if not report.used and not salt_known:
        lines.append(SALT)
    lines.append(OTHERS)
    return lines
