"""The root command: its verbs, the options that all of them share, and the one place where errors end.

Exit status: 0 it holds, 1 it does not hold, 2 misuse, unreadable input or a bug of ours. A process that is
interrupted exits with 130, one whose reader went away (`gradwarden log run.ledger | head`) with 141, as
shells expect of signals.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

VERBS = {
    "init": "Scaffold a policy, its tests, a model map and a CI workflow.",
    "check": "Parse, type-check and analyse policies.",
    "fmt": "Lay policies out in the canonical form.",
    "test": "Run the unit tests of policies.",
    "explain": "Show the decision for one example, and the rules behind it.",
    "plan": "Dry-run a policy over a data set.",
    "prove": "Prove what a policy asserts, or show an example that breaks it.",
    "calendar": "List the dates on which decisions change, and what changes.",
    "schema": "Export the expected metadata as JSON Schema or Croissant, or check a description.",
    "diff": "Say what a new policy lets a model learn that an old one did not.",
    "build": "Compile a policy to the program that runs, and sign it.",
    "approve": "Sign a compiled program, beside others who have.",
    "sign-data": "Sign the manifest of examples that one supplies.",
    "map": "Derive a model map from a live module.",
    "keygen": "Make an Ed25519 key pair.",
    "verify": "Check a ledger, offline, and replay its decisions.",
    "replay": "Execute segments of a run again, and compare the weights.",
    "timestamp": "Have a signed head stamped by a time-stamping authority, and keep the stamp.",
    "rotate": "Hand a ledger over to another key.",
    "revoke": "Declare that a key of a ledger signs no more.",
    "archive": "Compress the older entries of a ledger, and keep them beside it.",
    "bind": "Bind what the ranks of a job have signed, in its log of logs.",
    "log": "Show, filter and follow the entries of a ledger.",
    "history": "Say which steps led to the weights of a checkpoint, and which were abandoned.",
    "trace": "Say what shaped the model, what became of an example, what a rule refused.",
    "report": "Write one HTML page about a run, made from its ledger.",
    "memorized": "Say what guards against memorization found in a run, or what it did with one text.",
    "proof": "Prove that a ledger has an entry, or that it only grew.",
    "verify-proof": "Check a proof offline, without the ledger.",
    "receipt": "Give the owner of an example a receipt of what a run did with it, or check one.",
    "witness": "Cosign the head of a ledger, if it continues the last one seen.",
    "export": "Write a ledger in the form in which transparency logs are served.",
    "attest": "Attest how a model was governed: an in-toto statement about its weights.",
    "verify-attestation": "Check an attestation offline, against weights and a ledger.",
    "sign-model": "Sign the files of a model, in the OpenSSF's format.",
    "verify-model": "Check such a signature, and that a ledger is about the model.",
    "lsp": "Serve editors: the language server, over standard input and output.",
}
"""Every verb and its one-line description, in the order of a policy's life."""

SHELLS = ("bash", "zsh", "fish")

INTERRUPTED = 130
BROKEN_PIPE = 141

AnyCommand = TypeVar("AnyCommand", bound=click.Command)


def _no_color(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().color = ctx.color = False


def _debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["gradwarden.debug"] = True


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"gradwarden {version('gradwarden')}")
        ctx.exit()


def _completion(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    from click.shell_completion import get_completion_class

    source = get_completion_class(value)
    assert source is not None, "SHELLS lists only shells that click knows"
    click.echo(source(ctx.command, {}, "gradwarden", "_GRADWARDEN_COMPLETE").source())
    ctx.exit()


def _shared_options() -> list[click.Option]:
    return [
        click.Option(
            ["--no-color"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_no_color,
            help="Write no colours; so does the environment variable NO_COLOR.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_debug,
            help="Show the traceback of an internal error.",
        ),
    ]


class Verb(click.Command):
    """A verb. Its help text keeps the author's line breaks in examples, and it takes the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options()


class ReaderGoneError(Exception):
    """Whoever read our standard output has stopped reading."""


class Verbs(click.Group):
    """The root: finds a verb by importing its module, and turns every exception into a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = import_module(f"gradwarden.cli.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from gradwarden.policy.errors import did_you_mean

            hint = did_you_mean(args[0], VERBS) or "`gradwarden --help` lists the verbs"
            raise click.UsageError(f"there is no verb `{args[0]}`: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A broken pipe gets another name, since click ends the process on its own for it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGoneError from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit. Nothing that a verb raises leaves this function."""
        arguments = sys.argv[1:] if args is None else list(args)
        _escape_what_cannot_be_written()
        try:
            status = super().main(
                arguments,
                prog_name,
                complete_var or "_GRADWARDEN_COMPLETE",
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            if sys.stdout is not None:  # None where the shell closed it: `>&-`
                sys.stdout.flush()
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except (ReaderGoneError, BrokenPipeError):
            _drop_output()
            sys.exit(BROKEN_PIPE)
        except Exception as error:
            from gradwarden.cli.failures import report

            sys.exit(report(error, debug="--debug" in arguments))
        sys.exit(status if isinstance(status, int) else 0)


def _escape_what_cannot_be_written() -> None:
    """Let no file name and no character of a policy be one that a stream's encoding refuses."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush has somewhere to go."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process


def verb(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a function as the command for a verb of `VERBS`; its docstring is the long help."""
    return click.command(name, cls=Verb, short_help=VERBS[name], **attributes)


@click.group(
    cls=Verbs,
    params=_shared_options(),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 it holds, 1 it does not hold, 2 misuse or unreadable input.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
@click.option(
    "--completion",
    type=click.Choice(SHELLS),
    expose_value=False,
    is_eager=True,
    callback=_completion,
    help='Print the completion script of a shell: eval "$(gradwarden --completion bash)".',
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Say what a model may learn, train under it, and prove it afterwards.

    A policy file says which training examples may shape which depth of a model, for how long, and at what
    privacy cost. It compiles to a program that the training loop executes and that every ledger pins.

    \b
    Start here:
      gradwarden init my-policy      a policy with tests that pass
      gradwarden check my-policy     is it well formed?
      gradwarden test my-policy      does it decide as intended?

    `gradwarden VERB --help` explains one verb, with examples.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
