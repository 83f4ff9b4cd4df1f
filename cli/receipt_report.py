"""What the receipts of a ledger and of a job say alike, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.files import write_text
from gradwarden.cli.output import emit_json

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.job_receipt import JobReceipt
    from gradwarden.runtime.evidence.proof_check import Fault, TrustedHead
    from gradwarden.runtime.evidence.receipt import Receipt
    from gradwarden.runtime.evidence.receipt_check import ReceiptReport

WORDS = {"admit": "admitted", "limit": "limited", "defer": "deferred", "refuse": "refused"}

HELP = {
    "unknown_key": "give the public key of whoever keeps the ledger with --key",
    "unwitnessed": "have the head cosigned (`gradwarden witness`) and make the receipt under it (--head)",
    "wrong_salt": "the receipt is not about your example: it was opened with another salt than yours",
    "withheld_rank": "ask for a receipt that was made with the ledgers of all ranks",
    "unbound_rank": "keep the receipt: it shows that the rank has another history than was bound",
    "lagging_rank": "ask for a receipt under a later head of the log of logs",
}

MOST_STEPS = 20
"""Steps that are listed; `--format json` has all."""

SELF_ATTESTED = "that every training step was offered to the ledger: it is self-attested"

TALLY = "that the tally is right, but for who verified the ledger (`gradwarden verify`)"

SALT = "that this is the salt of this id: a wrong one finds nothing, too (--salt, had beforehand)"

OTHERS = "the same content under another id, and what others' examples taught the model of it"


def hand_over(
    text: str, output: Path | None, output_format: str, what: str, *, ok: bool = True, **more: object
) -> None:
    """Write a receipt to its file, or to standard output. what: it holds; more: what JSON says besides."""
    if output is not None:
        write_text(output, text)
    if output_format == "json":
        written = None if output is None else str(output)
        emit_json({"ok": ok, "output": written, "bytes": len(text), **more})
    elif output is not None:
        click.echo(printable(f"wrote {output}: {what}, {len(text):,} bytes"))
    else:
        click.echo(text, nl=False)


def standing_to_json(path: Path, receipt: Receipt | JobReceipt, head: TrustedHead) -> dict[str, Any]:
    """Return whose receipt it is, and under which head it was made."""
    checkpoint = head.checkpoint
    return {
        "receipt": str(path),
        "id": receipt.id,
        "commitment": receipt.commitment.hex(),
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "signed_by": [key.vkey for key in head.signers],
        "witnessed_by": [one.witness.vkey for one in head.cosignatures],
    }


def show_standing(path: Path, head: TrustedHead, what: str, of: str, *, ok: bool) -> None:
    """Write whether a receipt holds, and under which head it was made. of: what it is a receipt of."""
    status, colour = ("OK", "green") if ok else ("FAILED", "red")
    click.echo(f"{click.style(status, fg=colour, bold=True)} {path}: {printable(what)}")
    signers = ", ".join(key.name for key in head.signers) or "none of the given keys"
    checkpoint = head.checkpoint
    told = f"{of} {checkpoint.origin}, head over {checkpoint.size:,} entries, signed by {signers}"
    click.echo(printable(f"  {told}"))


def show_lines(known: Iterable[str], unknown: Iterable[str]) -> None:
    """Write what a receipt shows, and what it does not."""
    for line in known:
        click.echo(printable(f"  {line}"))
    click.echo(click.style("not shown", bold=True))
    for line in unknown:
        click.echo(f"  {line}")


def leaf_lines(leaf: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of an example, by a leaf of a tally."""
    for use in leaf["uses"]:
        told = use["decision"]
        weights = ", ".join(f"{band} {weight / 1e6:g}" for band, weight in told["weights"].items() if weight)
        rules = f" (rules {', '.join(told['rules'])})" if told["rules"] else ""
        word = WORDS.get(told["verdict"], told["verdict"])
        times = f"{plural(use['times'], 'time')} {word}{rules} under {told['policy'][:16]}…"
        learned = f"learned from {plural(use['exposures'], 'time')}, at {weights}" if weights else "no weight"
        yield f"{times}: {learned}"
        for what, steps in (("learned from in", use["learned"]), ("proposed in", use["other"])):
            if steps:
                yield f"  {what} {listed_steps(steps)}"
    exposed = leaf["exposed"]
    yield (
        "never learned from" if exposed is None else f"learned from in steps {exposed[0]:,} to {exposed[1]:,}"
    )


def steps_line(report: ReceiptReport) -> str:
    """Return the steps of which a receipt has the entries."""
    steps = [one.step for one in report.steps or ()]
    return f"proved by their entries: {listed_steps(steps) if steps else 'no step'}"


def listed_steps(steps: Sequence[int]) -> str:
    """Return steps in words, the first of them where they are many."""
    numbers = ", ".join(f"{step:,}" for step in steps[:MOST_STEPS])
    more = f" and {len(steps) - MOST_STEPS:,} more" if len(steps) > MOST_STEPS else ""
    return f"{'step' if len(steps) == 1 else 'steps'} {numbers}{more}"


def steps_to_json(report: ReceiptReport) -> list[dict[str, Any]] | None:
    """Return the steps of which a receipt has the entries, None where it has none."""
    if report.steps is None:
        return None
    return [
        {"step": one.step, "entry": one.entry, "times": one.times, "outcome": one.outcome}
        for one in report.steps
    ]


def faults_to_json(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    return [{"code": fault.code, "message": fault.message, "help": HELP.get(fault.code)} for fault in faults]


def show_faults(faults: Sequence[Fault]) -> None:
    """Write faults to standard error."""
    for fault in faults:
        name = click.style(f"error[{fault.code}]", fg="red", bold=True)
        click.echo(f"{name}: {printable(fault.message)}", err=True)
        if fault.code in HELP:
            click.echo(f"  {click.style('= help:', fg='cyan')} {HELP[fault.code]}", err=True)
