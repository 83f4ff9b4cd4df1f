"""Writes the part of `docs/cli.md` that lists every verb and option, from the commands themselves.

    python -m gradwarden.cli.reference docs/cli.md

replaces what follows MARKER in the file. A test holds the file to what this module gives.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from gradwarden.cli.app import VERBS, cli

MARKER = "<!-- What follows is written by `python -m gradwarden.cli.reference docs/cli.md`. -->"

SHARED = frozenset({"--no-color", "--debug", "--help"})
"""Options that every verb takes; they are listed once."""


def reference() -> str:
    """Return the Markdown of all verbs, and of the options that stand before a verb."""
    context = click.Context(cli, info_name="gradwarden", **cli.context_settings)
    sections = ["## Options of every verb\n", *_options(cli, context), "\n## Verbs"]
    for name, summary in VERBS.items():
        command = cli.get_command(context, name)
        assert command is not None, "every entry of VERBS has a module"
        sections += _section(summary, command, click.Context(command, context, info_name=name))
    return "\n".join(sections).rstrip() + "\n"


def _section(summary: str, command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n### {context.command_path}\n"
    yield f"{summary}\n"
    yield f"```\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        text = paragraph.strip("\n")
        if number == 0 and text == summary:
            continue
        yield _paragraph(text)
    yield from _options(command, context, but=SHARED)


def _paragraph(text: str) -> str:
    """Return a paragraph of help text; an indented block after a `\\b` line is code."""
    if not text.startswith("\b\n"):
        return f"{text}\n"
    head, *rest = text.removeprefix("\b\n").split("\n")
    if rest and all(line.startswith("  ") for line in rest):
        code = "\n".join(line[2:] for line in rest)
        return f"{head}\n\n```sh\n{code}\n```\n"
    return " ".join([head, *rest]) + "\n"


def _options(
    command: click.Command, context: click.Context, but: frozenset[str] = frozenset()
) -> Iterator[str]:
    yield "| option | meaning |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and but.isdisjoint(parameter.opts):
            option, meaning = (cell.replace("|", "\\|") for cell in record)
            yield f"| `{option}` | {meaning.replace('  ', ' ')} |"


def main(path: Path) -> None:
    """Replace the generated part of the file."""
    head, marker, _ = path.read_text("utf-8").partition(MARKER)
    if not marker:
        raise SystemExit(f"{path} has no line `{MARKER}`")
    path.write_text(f"{head}{MARKER}\n\n{reference()}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
