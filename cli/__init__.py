"""The `gradwarden` command: one module per verb, each imported only when its verb runs."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv` and exit with its status."""
    from gradwarden.cli.app import cli

    cli(prog_name="gradwarden")


__all__ = ["main"]
