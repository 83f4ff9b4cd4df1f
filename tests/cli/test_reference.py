"""The documentation lists every verb and option, as the commands themselves tell them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from gradwarden.cli.app import VERBS
from gradwarden.cli.reference import MARKER, reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_is_current() -> None:
    _, marker, written = DOCUMENT.read_text("utf-8").partition(MARKER)
    assert marker
    assert written.strip() == reference().strip(), "run `python -m gradwarden.cli.reference docs/cli.md`"


def test_every_verb_and_option_is_in_it() -> None:
    text = reference()
    for name in VERBS:
        command = import_module(f"gradwarden.cli.commands.{name.replace('-', '_')}").command
        assert f"### gradwarden {name}\n" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in text
