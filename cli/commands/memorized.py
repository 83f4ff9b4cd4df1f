"""`gradwarden memorized`: what guards against memorization found, and what a ledger says of one text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.inputs import check_begun, read_text
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, emit_table, format_option
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.runtime.memorization.dossier import Dossier

MAX_TEXT = 64 << 20

SALT = 32
"""Bytes of a salt, and of a commitment."""

LISTED = 8
"""How many steps of an example are listed; of more, the first and the last are named."""


class HexType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """32 bytes in hex."""

    name = "HEX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            found = bytes.fromhex(value)
        except ValueError:
            found = b""
        if len(found) != SALT:
            self.fail(f"`{value}` is not {SALT} bytes in hex", param, ctx)
        return found


@frozen
class Asked:
    """An example that is asked for. name: its id, where it was not asked for by commitment.

    unless: what else it may mean that the ledger does not know the example; None: nothing.
    """

    commitment: bytes
    name: str | None = None
    salt: bytes | None = None
    unless: str | None = None


@verb("memorized")
@click.argument("ledger", type=FILE)
@click.option("--id", "names", multiple=True, metavar="ID", help="Ask for an example by its id; repeatable.")
@click.option("--text", type=FILE, metavar="FILE", help="Ask for an example by its content.")
@click.option(
    "--index", type=FILE, metavar="FILE",
    help="Which id each content has. [default: the id is the content's, `sha256:…`]",
)  # fmt: skip
@click.option(
    "--commitment", "commitments", type=HexType(), multiple=True,
    help="Ask for an example by its commitment; repeatable.",
)  # fmt: skip
@click.option("--secret", type=FILE, metavar="FILE", help="The run's secret: it turns ids into commitments.")
@click.option("--salt", type=HexType(), help="The salt of the one id that is asked for, instead of --secret.")
@click.option("--open", "opening", is_flag=True, help="Show the salts that let others ask for the same ids.")
@click.option(
    "--key", "key_files", type=FILE, multiple=True, metavar="PUB",
    help="Verify the ledger first, with this key that signs it; repeatable.",
)  # fmt: skip
@format_option("text", "json")
def command(
    ledger: Path,
    names: tuple[str, ...],
    text: Path | None,
    index: Path | None,
    commitments: tuple[bytes, ...],
    secret: Path | None,
    salt: bytes | None,
    opening: bool,
    key_files: tuple[Path, ...],
    output_format: str,
) -> int:
    """Say what guards against memorization flagged and did in a run, and what risk is left; or whether one
    text was learned and flagged, in which steps, and how deep it went.

    Everything is made from the ledger, which names no example: to ask for one by its id or its content takes
    the run's secret, or the salt of that id, which who has the secret can show (--open) without giving away
    any other. Without them the counts can be read, and commitments that are known.

    A text is asked for in its normal form (white space does not count); a near copy is another text. Where
    ids do not say the content, --index names the file in which the trainer kept the digest of each.

    What the model can recite is in no ledger: measure the model for that.

    The order and the links of the entries are checked on the way; with --key everything is, as by
    `gradwarden verify`, and nothing is told of a ledger that does not hold.

    \b
    Examples:
      gradwarden memorized run.ledger --key run.pub
      gradwarden memorized run.ledger --format json
      gradwarden memorized run.ledger --text poem.txt --index content.jsonl --secret run.ledger.secret
      gradwarden memorized run.ledger --id doc-17 --secret run.ledger.secret --open
      gradwarden memorized run.ledger --id doc-17 --salt 5f…

    \b
    Exit status: 0 told, 1 the ledger is damaged or does not hold, 2 misuse or unreadable input.
    """
    from gradwarden.runtime.errors import LedgerDamaged

    if "" in names:
        raise click.UsageError("--id needs an id; this one is empty")
    if index is not None and text is None:
        raise click.UsageError("--index goes with --text")
    ids = [*names, *([] if text is None else ids_of(text, index))]
    if (names or text) and (secret is None) == (salt is None):
        raise click.UsageError("to ask by id or content, give the run's --secret or the id's --salt")
    if salt is not None and len(ids) > 1:
        raise click.UsageError("a salt is that of one id; ask for one at a time")
    if opening and secret is None:
        raise click.UsageError("--open shows salts that only the run's --secret can make")
    check_begun(ledger)
    if key_files and not _holds(ledger, key_files, output_format):
        return 1
    try:
        if names or text is not None or commitments:
            content = None if text is None or index is not None else ids[-1]
            asked = [*_named(ledger, ids, secret, salt, content), *map(Asked, commitments)]
            return _tell(ledger, asked, bool(key_files), opening, output_format)
        return _tell_all(ledger, bool(key_files), output_format)
    except LedgerDamaged as error:
        complain(error.code, error.message, error.help)
        return 1


def ids_of(text: Path, index: Path | None) -> list[str]:
    """Return the ids of a text, by an index or its content. Raises InputError, MemorizationError, OSError."""
    from gradwarden.runtime.memorization.content import ContentIndex, content_id

    content = read_text(text, MAX_TEXT)
    if not content.strip():
        raise InputError(f"`{text}` holds no text to ask for: it is empty, or white space alone")
    if index is None:
        return [content_id(content)]
    known = ContentIndex.load(index)
    if not known:
        raise InputError(f"the index `{index}` is empty: it says of no text that it was in the data, or not")
    return known.ids(content)


def _holds(ledger: Path, key_files: Sequence[Path], output_format: str) -> bool:
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.verification.verify import verify_ledger

    report = verify_ledger(ledger, [PublicKey.load(path) for path in key_files])
    if not report.ok and output_format == "json":
        emit_json({"ok": False, "status": report.status})
    for found in report.findings:
        complain(found.code, f"entry {found.index}: {found.message}", None)
    if not report.ok:
        complain(report.status, f"`{ledger}` does not verify", "`gradwarden verify` says what was checked")
    return report.ok


def _named(
    ledger: Path, ids: Sequence[str], secret: Path | None, salt: bytes | None, content: str | None
) -> list[Asked]:
    """Return the examples with some ids. content: the one that was made from a text, without an index."""
    from gradwarden.runtime.commitments import Committer, open_commitment
    from gradwarden.runtime.memorization.dossier import check_secret

    if salt is not None:
        return [Asked(open_commitment(salt, name), name, salt, _SALT_IN_DOUBT) for name in ids]
    if secret is None:
        return []
    committer = Committer.load(secret)
    check_secret(ledger, committer)
    return [
        Asked(
            committer.commit(name),
            name,
            committer.salt(name),
            _NAMES_IN_DOUBT if name == content else None,
        )
        for name in ids
    ]


_SALT_IN_DOUBT = "unless the salt is not that of this id: then nothing is known of it"

_NAMES_IN_DOUBT = (
    "unless the run named its examples otherwise than by content: then ask with --index, or by --id"
)


# --- one example -------------------------------------------------------------------------------------------


def _tell(ledger: Path, asked: Sequence[Asked], verified: bool, opening: bool, output_format: str) -> int:
    from gradwarden.runtime.memorization.dossier import dossiers

    found = dossiers(ledger, [one.commitment for one in asked])
    if output_format == "json":
        documents = []
        for one, dossier in zip(asked, found, strict=True):
            salt = {"salt": one.salt.hex()} if opening and one.salt is not None else {}
            documents.append({"id": one.name, **salt, **dossier.to_json()})
        emit_json({"ledger": str(ledger), "verified": verified, "asked": documents})
        return 0
    if not asked:
        click.echo("the index names no example with this content: no example of its data had it")
        click.echo("  (a text that differs in one letter is another; white space does not count)")
    for one, dossier in zip(asked, found, strict=True):
        name = one.commitment.hex() if one.name is None else one.name
        click.echo(click.style(printable(name), bold=True))
        for line in _sentences(one, dossier, opening):
            click.echo(f"  {printable(line)}")
    _remind(verified)
    return 0


def _sentences(one: Asked, dossier: Dossier, opening: bool) -> list[str]:
    lines = [f"commitment {one.commitment.hex()}"] if one.name is not None else []
    if opening and one.salt is not None:
        lines.append(f"salt {one.salt.hex()}")
    if not dossier.seen:
        lines.append("in no step of this run")
        return lines if one.unless is None else [*lines, f"  {one.unless}"]
    trace, learned = dossier.trace, dossier.learned
    lines.append(f"proposed in {steps_in_words([seen.step for seen in dossier.seen])}")
    lines.append(f"learned from in {steps_in_words(learned)}")
    for band, steps in dossier.bands().items():
        lines.append(f"reached {band} in {steps_in_words(steps)}")
    if trace.holding:
        held = plural(trace.held_out, "of these steps", "of these steps")
        lines.append(f"some tokens were held out in {held} ({', '.join(sorted(trace.holding))})")
    if trace.first_flag is None:
        return [*lines, "no guard flagged it"]
    for rules, word in ((trace.acted, "in force"), (trace.noted, "not in force")):
        if rules:
            lines.append(f"flagged by {', '.join(sorted(rules))} ({word})")
    times = plural(trace.after, "time")
    lines.append(f"first flagged in step {trace.first_flag}, last in step {trace.last_flag}")
    return [*lines, f"{trace.risk}: learned from {times} since it was first flagged"]


def steps_in_words(steps: Sequence[int]) -> str:
    match len(steps):
        case 0:
            return "none"
        case 1:
            return f"step {steps[0]}"
        case count if count <= LISTED:
            return f"{count} steps ({', '.join(map(str, steps))})"
        case count:
            return f"{count} steps ({steps[0]} to {steps[-1]}; --format json lists them)"


# --- the manifest ------------------------------------------------------------------------------------------


def _tell_all(ledger: Path, verified: bool, output_format: str) -> int:
    from gradwarden.runtime.memorization.manifest import Manifest

    document = Manifest.read(ledger).to_json()
    if output_format == "json":
        emit_json({"ledger": str(ledger), "verified": verified, **document})
        return 0
    examples, steps = plural(document["examples"], "example"), plural(document["steps"], "step")
    click.echo(f"{examples} in {steps}, learned from {plural(document['exposures'], 'time')}")
    if not document["guards"]:
        click.echo("no guard against memorization was in force, or advised")
    rows = [
        [
            guard["rule"],
            f"{guard['level']} {', '.join(guard['effects'])}",
            f"{guard['flags']:,}",
            "" if guard["first_step"] is None else f"{guard['first_step']} to {guard['last_step']}",
            *_numbers(guard),
        ]
        for guard in document["guards"]
    ]
    click.echo("\nWhat guards flagged")
    emit_table(["guard", "effect", "flags", "steps", *_HEADINGS], rows, numeric=(2, 4, 5, 6))
    if not rows:
        click.echo("nothing")
    click.echo("\nWhat risk is left")
    rows = [
        [group["class"], *_numbers(group), _reached(group["deepest_after"]), _repeated(group["repeated"])]
        for group in document["risk"]
    ]
    headings = ["class", *_HEADINGS, "deepest after the flag", "times learned from"]
    emit_table(headings, rows, numeric=(1, 2, 3))
    _remind(verified)
    return 0


_HEADINGS = ("examples", "exposures before", "after the flag", "deepest")


def _numbers(group: dict[str, Any]) -> list[str]:
    exposures = group["exposures"]
    numbers = (group["examples"], exposures["before"], exposures["after"])
    return [*(f"{number:,}" for number in numbers), _reached(group["deepest"])]


def _reached(counts: dict[str, int]) -> str:
    return ", ".join(f"{band} {count:,}" for band, count in counts.items())


def _repeated(ranges: Sequence[dict[str, int]]) -> str:
    return ", ".join(f"{part['from']}+: {part['examples']:,}" for part in ranges)


def _remind(verified: bool) -> None:
    if not verified:
        click.echo("\nnot verified: give --key, or run `gradwarden verify`", err=True)
