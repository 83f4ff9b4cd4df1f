"""`gradwarden check`: parse, type-check and analyse policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import count, plural, render_text, to_data
from gradwarden.cli.failures import MISUSE
from gradwarden.cli.inputs import find_files, load_model_map
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.policy.errors import Diagnostic, PolicyError

if TYPE_CHECKING:
    from gradwarden.policy.model_map import ModelMap

UNREADABLE = frozenset({"GW105", "GW110", "GW112"})
"""Codes of files that could not be read as text: too large, not UTF-8, not there."""

NO_HEADER = "GW213"


@verb("check")
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@click.option("--model-map", type=FILE, help="Also bind the bands to this model.")
@click.option("--strict", is_flag=True, help="Let warnings fail too.")
@format_option("text", "json", "sarif", "github")
def command(paths: tuple[Path, ...], model_map: Path | None, strict: bool, output_format: str) -> int:
    """Parse, type-check and analyse policies.

    PATH is a policy or a directory, in which every `*.policy` file is checked. All errors of a file are
    reported at once, each with its place, what was expected and, where it can be told, how to mend it.

    \b
    Examples:
      gradwarden check clinical.policy
      gradwarden check policies --model-map model.yaml --strict
      gradwarden check policies --format sarif > findings.sarif

    \b
    Exit status: 0 no errors (with --strict: nor warnings), 1 there are some, 2 unreadable input.
    """
    bound = load_model_map(model_map) if model_map else None
    files = find_files(paths, ".policy")
    findings = _check_all(files, bound, named=frozenset(paths))
    counts = count(findings)
    failed = bool(counts["error"] or (strict and counts["warning"]))
    unreadable = any(d.code in UNREADABLE and d.span and not d.span.source.text for d in findings)
    if output_format == "json":
        emit_json(
            {
                "ok": not failed,
                "files": [str(path) for path in files],
                "errors": counts["error"],
                "warnings": counts["warning"],
                "notes": counts["note"],
                "findings": [to_data(d) for d in findings],
            }
        )
    elif output_format == "sarif":
        from gradwarden.cli.sarif import to_sarif

        emit_json(to_sarif(findings))
    elif output_format == "github":
        from gradwarden.cli.sarif import to_github

        for finding in findings:
            click.echo(to_github(finding))
    else:
        _summarise(files, findings)
    return MISUSE if unreadable else int(failed)


def _summarise(files: Sequence[Path], findings: Sequence[Diagnostic]) -> None:
    if findings:
        click.echo(render_text(findings) + "\n", err=True)
    told = [plural(number, severity) for severity, number in count(findings).items() if number]
    outcome = ", ".join(told) if told else click.style("no findings", fg="green")
    click.echo(f"{plural(len(files), 'file')} checked: {outcome}")


def _check_all(
    files: Sequence[Path], model_map: ModelMap | None, *, named: frozenset[Path]
) -> list[Diagnostic]:
    """Return the findings of all files, each once, though several may import the same one.

    A file without a header that was not named itself, but found in a directory, is no policy if another one
    imports it: it is checked as part of that one.
    """
    found = {path: _check(path, model_map) for path in files}
    headless = {path for path in files if any(d.code == NO_HEADER for d in found[path])} - named
    if headless:
        imported = {path.resolve() for file in files for path in _imports(file)}
        for path in headless:
            if path.resolve() in imported:
                del found[path]
    findings: dict[tuple[str, int, str, str], Diagnostic] = {}
    for diagnostics in found.values():
        for finding in diagnostics:
            findings.setdefault(finding.sort_key(), finding)
    return sorted(findings.values(), key=Diagnostic.sort_key)


def _imports(path: Path) -> Iterator[Path]:
    """Yield what a policy file imports itself; nothing where it cannot be read."""
    from gradwarden.policy.load import read_text
    from gradwarden.policy.source import Source
    from gradwarden.policy.syntax.parse import parse
    from gradwarden.policy.syntax.tree import Import

    text = read_text(path)
    if isinstance(text, str):
        file, _ = parse(Source(str(path), text))
        for item in file.items:
            if isinstance(item, Import):
                yield path.parent / item.path.text


def _check(path: Path, model_map: ModelMap | None) -> Sequence[Diagnostic]:
    from gradwarden.policy import compile_policy, load_policy

    try:
        policy = load_policy(path)
    except PolicyError as error:
        return error.diagnostics
    try:
        compile_policy(policy, model_map)
    except PolicyError as error:
        return (*policy.warnings, *error.diagnostics)
    return policy.warnings
