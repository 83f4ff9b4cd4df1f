"""`gradwarden fmt`: lay policies out in the canonical form."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.files import echo_diff, write_text
from gradwarden.cli.inputs import STDIN, find_files, read_text
from gradwarden.cli.options import FILE
from gradwarden.policy.errors import Diagnostic, PolicyError

MAX_BYTES = 1 << 20


@verb("fmt")
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@click.option("--check", is_flag=True, help="Change nothing; fail if a file is not in the canonical form.")
@click.option("--diff", is_flag=True, help="Change nothing; show what would change.")
def command(paths: tuple[Path, ...], check: bool, diff: bool) -> int:
    """Lay policies out in the canonical form.

    PATH is a policy, a directory of `*.policy` files, or `-` for standard input, whose result goes to
    standard output. Comments are kept. A file that does not parse is left as it is, and reported.

    \b
    Examples:
      gradwarden fmt policies
      gradwarden fmt --check policies
      gradwarden fmt - < draft.policy

    \b
    Exit status: 0 done (with --check: nothing to do), 1 a file would change (--check), 2 unreadable input.
    """
    if STDIN in paths and len(paths) > 1:
        raise click.UsageError("`-` stands alone")
    files = [STDIN] if STDIN in paths else find_files(paths, ".policy")
    changed = 0
    faults: list[Diagnostic] = []
    for path in files:
        old = read_text(path, MAX_BYTES)
        try:
            new = _format(old, path)
        except PolicyError as error:
            faults += error.diagnostics
            continue
        changed += old != new
        _deliver(path, old, new, check=check, diff=diff)
    if faults:
        raise PolicyError(faults)
    if not diff and STDIN not in paths:
        outcome = "would change" if check else "changed"
        click.echo(f"{plural(len(files), 'file')} looked at, {changed} {outcome}", err=True)
    return int(check and changed > 0)


def _format(text: str, path: Path) -> str:
    from gradwarden.policy.syntax.format import format_policy

    return format_policy(text, "standard input" if path == STDIN else str(path))


def _deliver(path: Path, old: str, new: str, *, check: bool, diff: bool) -> None:
    """Show or write the result for one file."""
    if diff:
        echo_diff(path, old, new, "formatted")
    elif path == STDIN and not check:
        sys.stdout.write(new)
    elif old != new:
        if not check:
            write_text(path, new)
        click.echo(f"{'would change' if check else 'changed'} {path}")
