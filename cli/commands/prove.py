"""`gradwarden prove`: prove assertions over all examples, or show one that breaks them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import find_files, load_program
from gradwarden.cli.options import FILE
from gradwarden.cli.output import format_option, progress
from gradwarden.policy.errors import PolicyError, did_you_mean

if TYPE_CHECKING:
    from gradwarden.cli.prove_report import Proven
    from gradwarden.policy.program import Program
    from gradwarden.policy.source import Span

DEFAULT_TIMEOUT = 10.0

NO_HEADER = "GW213"

_Loaded: TypeAlias = "tuple[Path, Program, dict[str, Span]]"
"""A path, the program, and where its rules are named."""


@verb("prove")
@click.argument("policies", nargs=-1, required=True, type=FILE, metavar="POLICY...")
@click.option("--only", metavar="NAME", help="Prove this assertion alone; nothing else is looked for.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=86_400),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Time for each assertion, and for each rule.",
)
@click.option("--strict", is_flag=True, help="Let warnings about rules fail too.")
@format_option("text", "json")
def command(
    policies: tuple[Path, ...], only: str | None, timeout: float, strict: bool, output_format: str
) -> int:
    """Prove what a policy asserts, for every possible example at any time, or show an example that breaks it.

    POLICY is a policy, a compiled program (`*.json`), or a directory of policies. An assertion is proved if
    the other rules see to it by themselves. The report names the rules that a proof rests on; without them
    the assertion was refuted, so that nothing is proved of a policy that says nothing. A counterexample is
    decided by the evaluator before it is shown, and comes with the command that explains it.

    Also found: rules that can never match, rules that change no decision, parts of conditions that always
    or never hold, examples that no rule is about, attributes that no rule reads.

    Needs z3: pip install 'gradwarden[prove]'

    \b
    Examples:
      gradwarden prove clinical.policy
      gradwarden prove clinical.policy --only phi_stays_shallow --timeout 60
      gradwarden prove policies --strict --format json

    \b
    Exit status: 0 everything is proved (with --strict: and there are no warnings); 1 something is refuted,
    unknown, or says nothing; 2 unreadable input, or z3 is missing.
    """
    from gradwarden.cli.prove_report import show  # needs z3: says so before anything is read

    proven = [_prove(*loaded, only, timeout) for loaded in _load_all(policies, only)]
    ok = all(one.holds and not (strict and one.warnings) for one in proven)
    show(proven, output_format, ok=ok)
    return int(not ok)


def _load_all(paths: tuple[Path, ...], only: str | None) -> list[_Loaded]:
    """Read every policy before anything is proved. Raises PolicyError, OSError, InputError."""
    loaded = list(_policies(paths))
    names = {assertion.name for _, program, _ in loaded for assertion in program.assertions}
    if only is not None and only not in names:
        known = ", ".join(f"`{name}`" for name in sorted(names)) or "none"
        raise InputError(
            f"there is no assertion `{only}`", help=did_you_mean(only, names) or f"declared: {known}"
        )
    return loaded


def _policies(paths: tuple[Path, ...]) -> Iterator[_Loaded]:
    """Yield each policy; a file without a header that a policy of the directory imports is a part of it."""
    from gradwarden.policy import load_policy

    imported: set[Path] = set()
    parts: list[tuple[Path, PolicyError]] = []
    for path in find_files(paths, ".policy"):
        if path.suffix == ".json":
            yield path, load_program(path), {}
            continue
        try:
            policy = load_policy(path)
        except PolicyError as error:
            if path in paths or not any(d.code == NO_HEADER for d in error.diagnostics):
                raise
            parts.append((path, error))
            continue
        imported.update(Path(file).resolve() for file in policy.files)
        yield path, policy.program, policy.rules
    for path, fault in parts:
        if path.resolve() not in imported:
            raise fault


def _prove(path: Path, program: Program, spans: dict[str, Span], only: str | None, timeout: float) -> Proven:
    from gradwarden.cli.prove_report import Proven
    from gradwarden.policy.proving.claims import Claim, prove
    from gradwarden.policy.proving.structure import Finding, examine, steps

    claims: list[Claim] = []
    findings: list[Finding] = []
    total = len(program.assertions) + steps(program) if only is None else 1
    with progress(f"proving {program.name}", total, "steps") as advance:
        for claim in prove(program, only=only, timeout=timeout):
            claims.append(claim)
            advance(1)
        if only is None:
            findings += examine(program, timeout=timeout, advance=advance)
    return Proven(path, program, spans, tuple(claims), tuple(findings))
