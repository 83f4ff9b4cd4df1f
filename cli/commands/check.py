"""`gradwarden check`: parse, type-check and analyse policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import count, plural, render_text, to_data
from gradwarden.cli.failures import MISUSE, InputError
from gradwarden.cli.files import echo_diff, write_text
from gradwarden.cli.inputs import find_files, load_model_map, parse_once
from gradwarden.cli.lint_inputs import RunPlan, data_findings, run_findings
from gradwarden.cli.options import FILE, MAX_COUNT, DateType, today
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.parallel import over_files
from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.registry import RULES

if TYPE_CHECKING:
    from gradwarden.policy.linting.lint import Given
    from gradwarden.policy.linting.registry import Input
    from gradwarden.policy.linting.subject import Finding
    from gradwarden.policy.load import Policy
    from gradwarden.policy.model_map import ModelMap

UNREADABLE = frozenset({"GW105", "GW110", "GW112"})
"""Codes of files that could not be read as text: too large, not UTF-8, not there."""

NO_HEADER = "GW213"

EPOCH_DAY = date(1970, 1, 1)
COUNT = click.IntRange(1, MAX_COUNT)


@frozen
class LintInputs:
    """What lints are told besides a policy."""

    at: date
    epoch_days: int | None
    data: Path | None
    run: RunPlan | None

    @classmethod
    def of(cls, options: Mapping[str, Any], files: Sequence[Path]) -> LintInputs:
        """Return the inputs that options give. Raises UsageError for those that do not go together."""
        run = [options[name] for name in ("steps", "sampling_rate", "noise_multiplier")]
        if any(value is not None for value in run) and None in run:
            raise click.UsageError("--steps, --sampling-rate and --noise-multiplier go together")
        if options["data"] is not None and len(files) > 1:
            raise click.UsageError("--data is about one policy, and several are checked")
        plan = None if None in run else RunPlan(*run)
        return cls(options["at"] or today(), options["epoch_days"], options["data"], plan)

    def given(self, policy: Policy) -> Given:
        """Return what the lints of one policy are told. Reads the data; raises what their readers raise."""
        from gradwarden.policy.linting.lint import Given

        found: tuple[Finding, ...] = ()
        inputs: set[Input] = set()
        if self.data is not None:
            found += data_findings(policy, self.data)
            inputs.add("data")
        if self.run is not None:
            found += run_findings(policy, self.run)
            inputs.add("run")
        return Given((self.at - EPOCH_DAY).days, self.epoch_days, found, frozenset(inputs))


def _explain(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    """Show the page of a code."""
    if value is None:
        return
    from gradwarden.cli.codes import MEANINGS
    from gradwarden.policy.errors import did_you_mean
    from gradwarden.policy.linting.pages import pages

    code = value.upper()
    if code in pages():
        click.echo(pages()[code].markdown(), nl=False)
    elif code in MEANINGS:
        click.echo(f"{code}: {MEANINGS[code]}")
    else:
        names = {rule.name: rule.code for rule in RULES}
        if value in names:
            click.echo(pages()[names[value]].markdown(), nl=False)
        else:
            hint = did_you_mean(code, MEANINGS, 0.8) or did_you_mean(value, names)
            raise InputError(f"there is no code `{value}`", help=hint or "docs/diagnostics.md lists them")
    ctx.exit()


@verb("check")
@click.argument("paths", nargs=-1, type=FILE, metavar="PATH...")
@click.option("--model-map", type=FILE, help="Also bind the bands to this model.")
@click.option("--strict", is_flag=True, help="Let warnings fail too.")
@click.option("--fix", is_flag=True, help="Mend what can be mended without a change of the program.")
@click.option("--diff", is_flag=True, help="Change nothing; show what --fix would change.")
@click.option("--at", type=DateType(), help="The day to judge dates by. [default: today, UTC]")
@click.option("--data", type=FILE, help="A manifest of the data: find grants that none of them needs.")
@click.option("--steps", type=COUNT, metavar="N", help="The planned steps: find budgets that do not last.")
@click.option("--sampling-rate", type=click.FloatRange(0, 1), metavar="Q", help="The planned sampling rate.")
@click.option(
    "--noise-multiplier", type=click.FloatRange(0), metavar="S", help="The planned noise over the clip."
)
@click.option("--epoch-days", type=COUNT, metavar="N", help="How many days an epoch takes.")
@click.option(
    "--explain",
    metavar="CODE",
    is_eager=True,
    expose_value=False,
    callback=_explain,
    help="Show the page of a warning, and exit.",
)
@format_option("text", "json", "sarif", "github")
def command(
    paths: tuple[Path, ...],
    model_map: Path | None,
    strict: bool,
    fix: bool,
    diff: bool,
    output_format: str,
    **inputs: Any,
) -> int:
    """Parse, type-check and analyse policies.

    PATH is a policy or a directory, in which every `*.policy` file is checked. All errors of a file are
    reported at once, each with its place, what was expected and, where it can be told, how to mend it.

    Warnings and notes have pages (--explain CODE). `# gradwarden: allow CODE because …` beside a rule, or
    above it, allows a finding there. Some lints need to be told more: the day (--at), the data (--data), the
    planned run (--steps, --sampling-rate and --noise-multiplier), the length of an epoch (--epoch-days).

    \b
    Examples:
      gradwarden check clinical.policy
      gradwarden check policies --model-map model.yaml --strict
      gradwarden check policies --fix
      gradwarden check code.policy --data corpus.jsonl
      gradwarden check clinical.policy --steps 10000 --sampling-rate 0.01 --noise-multiplier 1.1
      gradwarden check policies --format sarif > findings.sarif

    \b
    Exit status: 0 no errors (with --strict: nor warnings), 1 there are some, 2 unreadable input.
    """
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.")
    files = find_files(paths, ".policy")
    told = LintInputs.of(inputs, files)
    bound = load_model_map(model_map) if model_map else None
    mended = _mend_all(files, told, write=fix and not diff) if fix or diff else []
    if diff:
        for each in mended:
            echo_diff(each.path, each.old, each.new, "mended")
        return 0
    findings = _check_all(files, bound, told, named=frozenset(paths))
    counts = count(findings)
    failed = bool(counts["error"] or (strict and counts["warning"]))
    unreadable = any(d.code in UNREADABLE and d.span and not d.span.source.text for d in findings)
    if output_format == "json":
        document: dict[str, Any] = {
            "ok": not failed,
            "files": [str(path) for path in files],
            "errors": counts["error"],
            "warnings": counts["warning"],
            "notes": counts["note"],
            "findings": [to_data(d) for d in findings],
        }
        if fix:
            document["mended"] = [to_data(d) for each in mended for d in each.gone]
        emit_json(document)
    elif output_format == "sarif":
        from gradwarden.cli.sarif import to_sarif

        emit_json(to_sarif(findings))
    elif output_format == "github":
        from gradwarden.cli.sarif import to_github

        for finding in findings:
            click.echo(to_github(finding))
    else:
        for each in mended:
            for gone in each.gone:
                click.echo(f"mended {gone.span}: [{gone.code}] {gone.message}")
        _summarise(files, findings)
    return MISUSE if unreadable else int(failed)


def _summarise(files: Sequence[Path], findings: Sequence[Diagnostic]) -> None:
    if findings:
        click.echo(render_text(findings) + "\n", err=True)
    told = [plural(number, severity) for severity, number in count(findings).items() if number]
    outcome = ", ".join(told) if told else click.style("no findings", fg="green")
    click.echo(f"{plural(len(files), 'file')} checked: {outcome}")


@frozen
class MendedFile:
    """A file that was mended, or would be."""

    path: Path
    old: str
    new: str
    gone: tuple[Diagnostic, ...]


def _mend_all(files: Sequence[Path], told: LintInputs, *, write: bool) -> list[MendedFile]:
    """Mend every policy among the files; those with errors, and those without a header, are left alone."""
    from gradwarden.policy.linting.fixes import mend
    from gradwarden.policy.linting.lint import Given
    from gradwarden.policy.load import read_text

    given = Given((told.at - EPOCH_DAY).days, told.epoch_days)
    done = []
    for path in files:
        old = read_text(path)
        if isinstance(old, Diagnostic):
            continue
        try:
            mended = mend(old, str(path), path.parent, given)
        except PolicyError:
            continue
        if mended.mended:
            done.append(MendedFile(path, old, mended.text, mended.mended))
            if write:
                write_text(path, mended.text)
    return done


def _check_all(
    files: Sequence[Path], model_map: ModelMap | None, told: LintInputs, *, named: frozenset[Path]
) -> list[Diagnostic]:
    """Return the findings of all files, each once, though several may import the same one.

    A file without a header that was not named itself, but found in a directory, is no policy if another one
    imports it: it is checked as part of that one.
    """
    check = partial(_check, model_map=model_map, told=told)
    found = dict(zip(files, over_files(check, files), strict=True))
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
    from gradwarden.policy.syntax.tree import Import

    text = read_text(path)
    if isinstance(text, str):
        file, _ = parse_once()(Source(str(path), text))
        for item in file.items:
            if isinstance(item, Import):
                yield path.parent / item.path.text


def _check(path: Path, model_map: ModelMap | None, told: LintInputs) -> Sequence[Diagnostic]:
    from gradwarden.policy import compile_policy, load_policy
    from gradwarden.policy.linting.lint import lint

    try:
        policy = load_policy(path, parse_once())
    except PolicyError as error:
        return error.diagnostics
    found = tuple(finding.diagnostic for finding in lint(policy.checked, told.given(policy)))
    try:
        compile_policy(policy, model_map)
    except PolicyError as error:
        return (*found, *error.diagnostics)
    return found
