"""Turns an exception into a message on standard error and an exit status.

What a user can mend (a policy at fault, a missing file, a wrong option) is told as such; anything else is our
bug, told in one line, with its traceback only under `--debug`.
"""

from __future__ import annotations

import os

import click

from gradwarden.policy.errors import GradwardenError, PolicyError

MISUSE = 2


class InputError(GradwardenError):
    """An input of the command line that cannot be read or makes no sense."""

    code = "GW900"


def report(error: Exception, *, debug: bool = False) -> int:
    """Show what went wrong on standard error and return the exit status."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case click.ClickException():
            error.show()
        case PolicyError():
            from gradwarden.cli.diagnostics import render_text

            click.echo(render_text(error.diagnostics), err=True)
        case GradwardenError():
            complain(error.code, error.message, error.help)
        case OSError() if error.filename is not None or error.errno is not None:
            complain(InputError.code, describe_os_error(error), None)
        case RecursionError() | MemoryError():
            complain(InputError.code, "the input is nested too deeply or too large to process", None)
        case _:
            _internal(error)
    if debug and not isinstance(error, click.ClickException):
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    return MISUSE


def complain(code: str, message: str, help: str | None, *, severity: str = "error") -> None:
    """Write one finding without a text position to standard error."""
    from gradwarden.cli.diagnostics import printable

    colour = "red" if severity == "error" else "yellow"
    click.echo(f"{click.style(f'{severity}[{code}]', fg=colour, bold=True)}: {printable(message)}", err=True)
    if help:
        click.echo(f"  {click.style('= help:', fg='cyan')} {printable(help)}", err=True)


def give_up(error: GradwardenError, output_format: str) -> int:
    """Tell that what was asked for cannot be had, also as JSON where that is wanted; return the status 1."""
    from gradwarden.cli.output import emit_json

    if output_format == "json":
        emit_json({"ok": False, "fault": error.message})
    complain(error.code, error.message, error.help)
    return 1


def describe_os_error(error: OSError) -> str:
    """Say in plain words what the operating system refused."""
    reason = (error.strerror or os.strerror(error.errno or 0) or "input/output error").lower()
    if error.filename is None:
        return reason
    return f"`{os.fsdecode(error.filename)}`: {reason}"


def _internal(error: Exception) -> None:
    detail = " ".join(str(error).split())[:200]
    complain(
        "GW999",
        f"internal error: {type(error).__name__}: {detail}",
        "this is a bug in gradwarden; please report it with the output of the same command under `--debug`",
    )
