"""`gradwarden timestamp`: have a signed head stamped by a time-stamping authority, and keep the stamp."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.files import write_bytes
from gradwarden.cli.inputs import read_head_note
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.signing import load_authorities


@verb("timestamp")
@click.argument("note", type=FILE)
@click.option("--response", type=FILE, metavar="FILE", help="What the authority answered.")
@click.option(
    "--tsa", "authority_files", type=FILE, multiple=True, metavar="CERT",
    help="The authority's certificate, or its issuer's (PEM); repeatable.",
)  # fmt: skip
@format_option("text", "json")
def command(note: Path, response: Path | None, authority_files: tuple[Path, ...], output_format: str) -> int:
    """Have a signed head stamped by a time-stamping authority (RFC 3161), and keep the stamp.

    Without --response the request is written to NOTE.tsq; sending it is left to you, so that no network is
    needed here. With --response the answer is checked, and written to NOTE.tsr if it holds. It says that the
    head, and so all entries that it covers, existed at that time. `gradwarden verify --checkpoint NOTE --tsa
    CERT` checks it again, offline.

    The stamp is of the very bytes of NOTE: have it cosigned before, not afterwards. Of a ledger that still
    grows, stamp a copy of its head; the file LEDGER.head is replaced every second.

    \b
    Examples:
      gradwarden timestamp kept.note
      curl -H 'Content-Type: application/timestamp-query' --data-binary @kept.note.tsq https://… > reply.tsr
      gradwarden timestamp kept.note --response reply.tsr --tsa authority.pem

    \b
    Exit status: 0 written, 1 the answer does not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import EvidenceError
    from gradwarden.runtime.evidence.stamped import read_stamp, request_path, stamp_path
    from gradwarden.runtime.evidence.timestamp import check_stamp, make_request
    from gradwarden.runtime.ledger.note import parse_checkpoint, parse_note

    data = read_head_note(note)
    head = parse_checkpoint(parse_note(data).text)
    if (response is None) != (not authority_files):
        raise click.UsageError("an answer is checked by a certificate: give both --response and --tsa")
    if response is None:
        request = request_path(note)
        write_bytes(request, make_request(data))
        if output_format == "json":
            emit_json({"ok": True, "request": str(request), "origin": head.origin, "size": head.size})
        else:
            click.echo(f"wrote {request}: send it to a time-stamping authority, and give its --response")
        return 0
    authorities = load_authorities(authority_files)
    answer = read_stamp(response)
    if stamp_path(note).exists() and stamp_path(note).read_bytes() != answer:
        raise InputError(
            f"`{stamp_path(note)}` exists already",
            help="the older stamp says more; move it away to replace it",
        )
    try:
        stamp = check_stamp(answer, data, authorities)
    except EvidenceError as error:
        if output_format == "json":
            emit_json({"ok": False, "message": error.message})
        complain(error.code, error.message, error.help)
        return 1
    write_bytes(stamp_path(note), answer)
    time = stamp.time.isoformat().replace("+00:00", "Z")
    if output_format == "json":
        facts = {"time": time, "authority": stamp.name, "origin": head.origin, "size": head.size}
        emit_json({"ok": True, "stamp": str(stamp_path(note)), **facts})
        return 0
    entries = plural(head.size, "entry", "entries")
    click.echo(f"wrote {stamp_path(note)}: the head over {entries} existed at {time}, says {stamp.name}")
    return 0
