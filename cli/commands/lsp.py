"""`gradwarden lsp`: language server over stdio."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version

import click

from gradwarden.cli.app import verb


@verb("lsp")
@click.option(
    "--stdio", is_flag=True, expose_value=False, help="Speak over standard input and output: always so."
)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Language server over standard input and output.

    An editor starts it and speaks the Language Server Protocol with it: findings as you type, hover,
    completion, definitions, references, rename, symbols, folding, formatting and quick fixes. docs/editors.md
    shows how to set up VS Code, Neovim, Helix and Emacs. It needs `pip install 'gradwarden[lsp]'`.

    \b
    Examples:
      gradwarden lsp                       as an editor runs it
      hx --health gradwarden-policy        Helix: is it found?

    \b
    Exit status: 0 the editor took its leave, 1 it went away without, 2 misuse.
    """
    from gradwarden.cli.language_server.protocol import require_library

    require_library()
    from gradwarden.cli.language_server.server import serve

    debug = bool(ctx.find_root().meta.get("gradwarden.debug"))
    logging.basicConfig(level=logging.INFO if debug else logging.CRITICAL, stream=sys.stderr)
    if sys.stdin.isatty():
        click.echo("waiting for an editor on standard input; press Ctrl-C to stop", err=True)
    with os.fdopen(os.dup(0), "rb") as stdin, os.fdopen(os.dup(1), "wb", buffering=0) as stdout:
        # The protocol owns standard output from here on: what else is printed must not get into it.
        os.dup2(2, 1)
        left_well = serve(stdin, stdout, version("gradwarden"))
    return 0 if left_well else 1
