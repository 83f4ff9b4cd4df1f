"""`gradwarden check`: parse, type-check and analyse policies."""

from __future__ import annotations

from collections.abc import Sequence
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
    findings = _check_all(files, bound)
    errors, warnings = count(findings)
    failed = bool(errors or (strict and warnings))
    unreadable = any(finding.code in UNREADABLE and finding.span is None for finding in findings)
    if output_format == "json":
        emit_json(
            {
                "ok": not failed,
                "files": [str(path) for path in files],
                "errors": errors,
                "warnings": warnings,
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
    errors, warnings = count(findings)
    if findings:
        click.echo(render_text(findings) + "\n", err=True)
    told = [plural(errors, "error")] if errors else []
    told += [plural(warnings, "warning")] if warnings else []
    outcome = ", ".join(told) if told else click.style("no findings", fg="green")
    click.echo(f"{plural(len(files), 'file')} checked: {outcome}")


def _check_all(files: Sequence[Path], model_map: ModelMap | None) -> list[Diagnostic]:
    """Return the findings of all files, each once, though files may import the same one."""
    findings: dict[tuple[str, int, str, str], Diagnostic] = {}
    for path in files:
        for finding in _check(path, model_map):
            findings.setdefault(finding.sort_key(), finding)
    return sorted(findings.values(), key=Diagnostic.sort_key)


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
