"""The `gradwarden` command: one module per verb, each imported only when its verb runs."""

from __future__ import annotations

import gc

COLLECT_AFTER = 100_000
"""How many more objects there are before those in circles are looked for; Python's own number is 700."""


def main() -> None:
    """Run the command line on `sys.argv` and exit with its status."""
    from gradwarden.cli.app import cli

    collect_rarely()
    cli(prog_name="gradwarden")


def collect_rarely() -> None:
    """Look for garbage in circles seldom: a verb makes little of it, and the search takes long.

    Policies and programs are trees, which go as soon as nothing refers to them. To look through them again
    and again while they are read takes a sixth of the time of reading them.
    """
    gc.set_threshold(COLLECT_AFTER)


__all__ = ["collect_rarely", "main"]
