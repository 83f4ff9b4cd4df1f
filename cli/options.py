"""Options that several verbs share: the context of a decision, and the passphrase of a key."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.failures import InputError
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradwarden.policy.context import Context
    from gradwarden.policy.program import Program
    from gradwarden.runtime.evidence.trust import Quorum, Trust
    from gradwarden.runtime.ledger.keys import PublicKey

FILE = click.Path(path_type=Path)

MAX_PASSPHRASE = 1024
"""The longest passphrase in a file, in bytes."""

MAX_COUNT = 2**31 - 1
"""The greatest step, epoch or number of exposures that the language knows."""


class DateType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A calendar day, written 2026-01-31."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            day = date.fromisoformat(value)
        except ValueError:
            day = None
        if day is None or day.isoformat() != value:  # Python knows more forms than the language does
            self.fail(f"`{value}` is not a date such as 2026-01-31", param, ctx)
        return day


class SettingType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A signal with its value: `loss_ratio=0.8`."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, _, text = str(value).partition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"`{value}` is not a signal and a number, such as loss_ratio=0.8", param, ctx)
        return name.strip(), number


@frozen
class ContextOptions:
    """The context that a user gave. `at` is today's date where none was given."""

    step: int
    epoch: int
    at: date | None
    exposures: int
    settings: tuple[tuple[str, float], ...]
    spent: tuple[str, ...]

    def context(self, program: Program) -> Context:
        """Return the context for a program. Raises InputError for a signal that it does not declare."""
        from gradwarden.policy.context import Context
        from gradwarden.policy.errors import did_you_mean

        private = [limit.name for limit in program.limits if limit.kind == "privacy"]
        for noun, option, given, known in (
            ("signal", "--set", [name for name, _ in self.settings], [s.name for s in program.signals]),
            ("privacy rule", "--spent", list(self.spent), private),
        ):
            for name in given:
                if name not in known:
                    declared = ", ".join(f"`{word}`" for word in known) or "none"
                    raise InputError(
                        f"`{option} {name}`: policy `{program.name}` has no {noun} `{name}`",
                        help=did_you_mean(name, known) or f"declared: {declared}",
                    )
        at = self.at or today()
        signals = dict(self.settings)
        return Context(self.step, self.epoch, at, self.exposures, signals, frozenset(self.spent))

    def describe(self, program: Program) -> str:
        """Say in one line which context was used, and that today's date was, where none was given."""
        at = f"{self.at}" if self.at else f"{today()} (today, as no --at was given)"
        parts = [f"step {self.step}", f"epoch {self.epoch}", f"at {at}", f"exposures {self.exposures}"]
        given = dict(self.settings)
        for signal in program.signals:
            default = signal.default / 10**signal.places
            value = given.get(signal.name, default)
            least, most = signal.lo / 10**signal.places, signal.hi / 10**signal.places
            note = "" if signal.name in given else " (default)"
            if not least <= value <= most:
                note = f" (taken as {min(max(value, least), most):g}, the end of its range)"
            parts.append(f"{signal.name} {value:g}{note}")
        parts += [f"the budget of {rule} is spent" for rule in self.spent]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the context as JSON data."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "at": str(self.at or today()),
            "at_is_today": self.at is None,
            "exposures": self.exposures,
            "signals": dict(self.settings),
            "spent": sorted(self.spent),
        }


def today() -> date:
    """Return the current day in UTC: the one place where the command line reads the clock for a decision."""
    return datetime.now(UTC).date()


def context_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a context; the function gets them as `given: ContextOptions`."""
    import functools

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        step: int,
        epoch: int,
        at: date | None,
        exposures: int,
        settings: tuple[tuple[str, float], ...],
        spent: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        return function(*args, given=ContextOptions(step, epoch, at, exposures, settings, spent), **kwargs)

    count = click.IntRange(0, MAX_COUNT)
    for option in (
        click.option(
            "--spent", multiple=True, metavar="RULE", help="A privacy rule whose budget is spent; repeatable."
        ),
        click.option(
            "--set", "settings", multiple=True, type=SettingType(), help="The value of a signal; repeatable."
        ),
        click.option(
            "--exposures",
            type=count,
            metavar="N",
            default=0,
            help="How often the example was learned before.",
        ),
        click.option("--at", type=DateType(), help="The day of the decision. [default: today, UTC]"),
        click.option("--epoch", type=count, metavar="N", default=0, help="The epoch, counted from 0."),
        click.option("--step", type=count, metavar="N", default=0, help="The training step, counted from 0."),
    ):
        wrapper = option(wrapper)
    return wrapper


def passphrase_options(*, confirm: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the ways of giving a passphrase; the function gets `passphrase: bytes | None`."""
    import functools

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(
            *args: Any,
            passphrase: bool,
            passphrase_env: str | None,
            passphrase_file: Path | None,
            **kwargs: Any,
        ) -> Any:
            secret = _passphrase(passphrase, passphrase_env, passphrase_file, confirm=confirm)
            return function(*args, passphrase=secret, **kwargs)

        for option in (
            click.option(
                "--passphrase-file", type=FILE, help="Take the passphrase from a file's first line."
            ),
            click.option(
                "--passphrase-env", metavar="VARIABLE", help="Take it from an environment variable."
            ),
            click.option("--passphrase", is_flag=True, help="Ask for the passphrase of the private key."),
        ):
            wrapper = option(wrapper)
        return wrapper

    return decorate


def _passphrase(ask: bool, variable: str | None, file: Path | None, *, confirm: bool) -> bytes | None:
    if sum((ask, variable is not None, file is not None)) > 1:
        raise click.UsageError("give the passphrase in one way only")
    if variable is not None:
        secret = os.environ.get(variable)
        if not secret:
            raise InputError(f"the environment variable `{variable}` is not set, or empty")
        return secret.encode()
    if file is not None:
        return read_passphrase(file)
    if ask:
        return str(
            click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
        ).encode()
    return None


def read_passphrase(file: Path) -> bytes:
    """Return the first line of a file. Raises InputError where it is empty."""
    with file.open("rb") as opened:
        line = opened.readline(MAX_PASSPHRASE + 1).rstrip(b"\r\n")
    if not line:
        raise InputError(f"the first line of `{file}` is empty", help="write the passphrase there")
    if len(line) > MAX_PASSPHRASE:
        raise InputError(
            f"the first line of `{file}` is longer than a passphrase may be: {MAX_PASSPHRASE:,} bytes"
        )
    return line


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whom to believe; the function gets `trust: Trust`."""
    import functools

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        key_files: tuple[Path, ...],
        trust_file: Path | None,
        witness_files: tuple[Path, ...],
        quorum: int | None,
        **kwargs: Any,
    ) -> Any:
        return function(*args, trust=load_trust(key_files, trust_file, witness_files, quorum), **kwargs)

    decorated: Callable[..., Any] = witness_options(wrapper)
    for option in (
        trust_file_option,
        click.option(
            "--key",
            "key_files",
            type=FILE,
            multiple=True,
            metavar="PUB",
            help="A public key that you trust to sign the ledger; repeatable.",
        ),
    ):
        decorated = option(decorated)
    return decorated


trust_file_option = click.option(
    "--trust",
    "trust_file",
    type=FILE,
    metavar="FILE",
    help="A C2SP trust policy: keys and witnesses in one file.",
)


def load_trust(
    key_files: Sequence[Path], trust_file: Path | None, witness_files: Sequence[Path], quorum: int | None
) -> Trust:
    """Return whom the options say to believe. Raises UsageError, KeyFileError, EvidenceError."""
    from gradwarden.cli.inputs import read_bytes
    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.evidence.trust_policy import MAX_POLICY, parse_trust_policy
    from gradwarden.runtime.ledger.keys import PublicKey

    if trust_file is not None:
        if key_files or witness_files or quorum is not None:
            raise click.UsageError("--trust names all keys and witnesses; give no others")
        return parse_trust_policy(read_bytes(trust_file, MAX_POLICY, "a trust policy"))
    if not key_files:
        raise click.UsageError("say whom to trust: --key PUB, or --trust FILE")
    keys = [PublicKey.load(path) for path in key_files]
    return Trust(keys, load_witnesses(witness_files, quorum, keys))


def witness_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which witnesses must vouch; the function gets `witness_files` and `quorum`."""
    for option in (
        click.option(
            "--witnesses",
            "quorum",
            type=click.IntRange(min=1),
            metavar="N",
            help="How many of the witnesses must have cosigned. [default: all of them]",
        ),
        click.option(
            "--witness",
            "witness_files",
            type=FILE,
            multiple=True,
            metavar="PUB",
            help="The public key of a witness that you trust; repeatable.",
        ),
    ):
        function = option(function)
    return function


def load_witnesses(files: Sequence[Path], quorum: int | None, keys: Sequence[PublicKey]) -> Quorum:
    """Return the quorum of witnesses that is asked for.

    keys: of the ledger; none of them can be a witness's. Raises UsageError, KeyFileError.
    """
    from gradwarden.runtime.evidence.trust import Quorum, check_witnesses
    from gradwarden.runtime.ledger.keys import WitnessKey

    if quorum is not None and quorum > len(files):
        raise click.UsageError(f"--witnesses {quorum} asks for more witnesses than are given (--witness)")
    witnesses = [WitnessKey.load(path) for path in files]
    check_witnesses(witnesses, keys)
    return Quorum(len(files) if quorum is None else quorum, tuple(witnesses))
