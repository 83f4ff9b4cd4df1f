"""`gradwarden schema`: the metadata that a policy expects, as JSON Schema or in Croissant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.inputs import load_program, parse_json_object, read_text
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, emit_table, format_option

if TYPE_CHECKING:
    from gradwarden.policy.croissant import Description, RecordSet
    from gradwarden.policy.croissant_check import Coverage, Statement
    from gradwarden.policy.program import Program

MAX_DESCRIPTION = 64 << 20
"""The largest Croissant description that is read, in bytes: those with inline data can be long."""


@verb("schema")
@click.argument("policy", type=FILE)
@click.option("--croissant", is_flag=True, help="Write Croissant record sets instead of a JSON Schema.")
@click.option("--against", type=FILE, metavar="CROISSANT", help="Check a data set's description instead.")
@click.option(
    "--record-set", metavar="NAME", help="With --against: which one. [default: that with most attributes]"
)
@click.option("--strict", is_flag=True, help="With --against: fail where no rule reflects an RAI statement.")
@format_option("text", "json")
def command(
    policy: Path,
    croissant: bool,
    against: Path | None,
    record_set: str | None,
    strict: bool,
    output_format: str,
) -> int:
    """Export the metadata that a policy expects, or check that a data set describes them.

    Written is a JSON Schema (2020-12) that accepts exactly the records which the policy finds valid. With
    --croissant, the attributes are written as Croissant record sets, to be joined into the description of
    a data set.

    With --against, the fields of a Croissant description (1.0 or 1.1) must cover the attributes, with data
    types that fit. What it says in the RAI vocabulary of sensitive information, use cases, limits and biases
    is listed with the rules that mention it. That is a match of words, for a reviewer; it proves nothing.

    \b
    Examples:
      gradwarden schema clinical.policy > record.schema.json
      gradwarden schema clinical.policy --croissant > record-sets.json
      gradwarden schema clinical.policy --against croissant.json

    \b
    Exit status: 0 it was written or is covered, 1 fields are missing or do not fit, 2 unreadable input.
    """
    if croissant and against:
        raise click.UsageError("--croissant writes a description and --against reads one: choose")
    if against is None and (record_set or strict):
        raise click.UsageError("--record-set and --strict belong to --against")
    program = load_program(policy)
    if against is not None:
        return _check(program, against, record_set, strict, output_format)
    if croissant:
        from gradwarden.policy.croissant import record_sets

        emit_json(record_sets(program))
    else:
        from gradwarden.policy.record_schema import record_schema

        emit_json(record_schema(program))
    return 0


def _check(program: Program, path: Path, wanted: str | None, strict: bool, output_format: str) -> int:
    from gradwarden.policy.croissant import read_description
    from gradwarden.policy.croissant_check import FAULTS, coverage, statements

    document = parse_json_object(read_text(path, MAX_DESCRIPTION), str(path))
    description = read_description(document)
    records = _records(program, description, path, wanted)
    found = coverage(program, records)
    told = statements(program, description)
    faults = [entry for entry in found if entry.standing in FAULTS]
    silent = [entry for entry in told if not entry.rules]
    if output_format == "json":
        emit_json(_to_json(program, path, description, records, found, told, not faults))
    else:
        _show(program, path, records, found, told)
    for entry in faults:
        why = entry.detail or "the description has no such field"
        complain("GW492", f"`{entry.name}` is {entry.standing}: {why}", None)
    if strict:
        for statement in silent:
            complain("GW493", f"no rule reflects rai:{statement.term} `{statement.text[:80]}`", None)
    return int(bool(faults) or (strict and bool(silent)))


def _records(program: Program, description: Description, path: Path, wanted: str | None) -> RecordSet:
    from gradwarden.policy.croissant_check import choose_record_set

    names = [records.name for records in description.record_sets]
    listed = ", ".join(f"`{name}`" for name in names)
    if not names:
        raise InputError(
            f"`{path}` describes no record set", help="is it a Croissant description, with a `recordSet`?"
        )
    if wanted is not None:
        found = [records for records in description.record_sets if records.name == wanted]
        if not found:
            raise InputError(f"`{path}` has no record set `{wanted}`", help=f"it has {listed}")
        return found[0]
    return choose_record_set(program, description) or description.record_sets[0]


def _show(
    program: Program, path: Path, records: RecordSet, found: list[Coverage], told: list[Statement]
) -> None:
    click.echo(printable(f"{program.name} version {program.version} against `{records.name}` of {path}\n"))
    rows = [(printable(e.name), e.standing, printable(e.detail)) for e in found if e.standing != "undeclared"]
    emit_table(("attribute", "field", ""), rows)
    extra = [entry.name for entry in found if entry.standing == "undeclared"]
    if extra:
        fields = plural(len(extra), "further field")
        click.echo(printable(f"\n{fields}, not declared by the policy: {', '.join(extra)}"))
        click.echo("  as metadata of a record they would make it invalid; content stays outside metadata")
    if told:
        click.echo(
            click.style("\nresponsible-AI statements, and rules that share a word with them", bold=True)
        )
        for statement in told:
            rules = ", ".join(statement.rules) or "no rule"
            click.echo(printable(f"  rai:{statement.term} `{_short(statement.text)}`: {rules}"))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"


def _to_json(
    program: Program,
    path: Path,
    description: Description,
    records: RecordSet,
    found: list[Coverage],
    told: list[Statement],
    covered: bool,
) -> dict[str, Any]:
    return {
        "policy": {"name": program.name, "version": program.version, "digest": program.digest},
        "description": str(path),
        "dataset": description.name,
        "record_set": records.name,
        "covered": covered,
        "fields": [{"name": e.name, "standing": e.standing, "detail": e.detail or None} for e in found],
        "statements": [{"property": f"rai:{s.term}", "text": s.text, "rules": list(s.rules)} for s in told],
    }
