"""`gradwarden diff`: which examples a new policy treats otherwise than an old one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diff_report import Outcome, show, to_json
from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import load_program
from gradwarden.cli.manifest import FORMATS, Piece, open_manifest
from gradwarden.cli.options import FILE, ContextOptions, context_options
from gradwarden.cli.output import arrived, emit_json, format_option, progress

if TYPE_CHECKING:
    from gradwarden.policy.comparing.counts import DataDifference
    from gradwarden.policy.program import Program


def _number(bound: str) -> Fraction:
    """Return the number of a bound, exactly. Raises ValueError, OverflowError."""
    share = bound.endswith("%")
    return Fraction(Decimal(str(float(bound.removesuffix("%"))))) if share else Fraction(int(bound))


class RenamingType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """An attribute's old and new name: `licence=license`."""

    name = "old=new"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        old, equals, new = (part.strip() for part in str(value).partition("="))
        if not (old and equals and new):
            self.fail(f"`{value}` is not an old and a new name, such as licence=license", param, ctx)
        return old, new


class BoundType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A number of examples, or a share of them: `100`, `0.5%`."""

    name = "n|p%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        try:
            valid = _number(text) >= 0
        except (ValueError, OverflowError):
            valid = False
        if not valid:
            self.fail(f"`{value}` is neither a number of examples nor a share such as 0.5%", param, ctx)
        return text


@verb("diff")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option("--allow-widening", is_flag=True, help="Do not fail because something widens.")
@click.option(
    "--model-map", type=FILE, help="Bind both policies to a model: compare by parameters, not by bands."
)
@click.option(
    "--renamed", "renamings", type=RenamingType(), multiple=True, metavar="OLD=NEW",
    help="An attribute that has another name now; repeatable.",
)  # fmt: skip
@click.option(
    "--data", type=FILE, help="A manifest: count the examples that gain and lose, by band and rule."
)
@click.option("--tokens", metavar="ATTRIBUTE", help="With --data: a number to add up over those examples.")
@click.option(
    "--max-gained", type=BoundType(), help="With --data: fail where more examples gain some weight."
)
@click.option("--max-lost", type=BoundType(), help="With --data: fail where more examples lose some weight.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
    metavar="SECONDS", help="Time for one question to the solver.",
)  # fmt: skip
@context_options
@format_option("text", "json")
def command(
    old: Path,
    new: Path,
    allow_widening: bool,
    model_map: Path | None,
    renamings: tuple[tuple[str, str], ...],
    data: Path | None,
    tokens: str | None,
    max_gained: str | None,
    max_lost: str | None,
    timeout: float,
    given: ContextOptions,
    output_format: str,
) -> int:
    """Say what a new policy lets a model learn that an old one did not, and the reverse.

    Both are compared over all examples and contexts, whatever their rules are called and in which order they
    stand. For each band, `wider` comes with an example that gets a greater weight, `narrower` with one that
    gets a smaller weight, and `same` means that there is none. Privacy rules are compared by whom they
    protect and how strictly, gradient caps by their norm, `maintain` rules by how closely they hold a band.
    Each rule is compared on its own as well, and each starvation guard: one may be wider while no decision
    changes.

    With --data the examples of a manifest that gain and lose are counted, in the context that the options
    give, so that CI can hold both numbers down.

    It needs `pip install 'gradwarden[prove]'`.

    \b
    Examples:
      git show main:clinical.policy > old.policy
      gradwarden diff old.policy clinical.policy
      gradwarden diff old.policy new.policy --renamed licence=license --allow-widening
      gradwarden diff old.policy new.policy --data corpus.parquet --tokens tokens --max-lost 0.5%

    \b
    Exit status: 0 nothing widens, 1 something does (unless --allow-widening) or a bound of --data is
    exceeded, 2 misuse or unreadable input.
    """
    if data is None and (tokens or max_gained or max_lost):
        raise click.UsageError("--tokens, --max-gained and --max-lost need --data")
    before, after = _programs(old, new, model_map, _unique(renamings))
    outcome = _compare(before, after, timeout)
    if data is not None:
        counts = _count(before, after, outcome, data, tokens or "", given)
        outcome = replace(outcome, counts=counts, exceeded=tuple(_exceeded(counts, max_gained, max_lost)))
    if output_format == "json":
        emit_json(to_json(outcome, old, new))
    else:
        show(outcome, old, new)
    return int((outcome.widens and not allow_widening) or bool(outcome.exceeded))


def _unique(renamings: tuple[tuple[str, str], ...]) -> dict[str, str]:
    names = dict(renamings)
    if len(names) < len(set(renamings)):
        raise InputError("an attribute cannot be renamed twice (--renamed)")
    return names


def _programs(
    old: Path, new: Path, model_map: Path | None, renamings: dict[str, str]
) -> tuple[Program, Program]:
    from gradwarden.policy.comparing.pairs import rename_attributes
    from gradwarden.policy.errors import did_you_mean

    before, after = load_program(old, model_map), load_program(new, model_map)
    for wanted, program, path in ((renamings.keys(), before, old), (renamings.values(), after, new)):
        names = [spec.name for spec in program.attributes]
        for name in wanted:
            if name not in names:
                help = did_you_mean(name, names)
                raise InputError(f"`{path}` has no attribute `{name}` (--renamed)", help=help)
    taken = sorted({spec.name for spec in before.attributes} & set(renamings.values()) - set(renamings))
    if taken:
        raise InputError(f"`{old}` has an attribute `{taken[0]}` already (--renamed)")
    if len(set(renamings.values())) < len(renamings):
        raise InputError("two attributes cannot be renamed to one (--renamed)")
    return (rename_attributes(before, renamings) if renamings else before), after


def _compare(before: Program, after: Program, timeout: float) -> Outcome:
    """Compare two programs. Raises ProverMissingError."""
    from gradwarden.policy.comparing.guards import guard_differences
    from gradwarden.policy.comparing.maintaining import maintenance_differences, semantics_differences
    from gradwarden.policy.comparing.programs import Comparer
    from gradwarden.policy.comparing.rules import rule_differences
    from gradwarden.policy.comparing.schemas import schema_changes

    comparer = Comparer(before, after, timeout)
    rules = len(list(after.conditions()))
    with progress(f"comparing {after.name}", len(comparer.cells) + rules, "questions") as advance:

        def watched(items: Iterator[Any]) -> tuple[Any, ...]:
            found = []
            for item in items:
                found.append(item)
                advance(1)
            return tuple(found)

        return Outcome(
            old=before,
            new=after,
            parts=comparer.cells,
            comparable=comparer.comparable(),
            bands=watched(comparer.bands()),
            privacy=(*comparer.privacy(), *comparer.hold_outs()),
            gradients=tuple(comparer.gradients()),
            maintenance=tuple(maintenance_differences(before, after, comparer.cells)),
            semantics=tuple(semantics_differences(before, after)),
            guards=tuple(guard_differences(before, after, comparer.cells)),
            rules=watched(rule_differences(comparer)),
            schema=tuple(schema_changes(before, after)),
        )


def _count(
    before: Program, after: Program, outcome: Outcome, data: Path, tokens: str, given: ContextOptions
) -> DataDifference:
    """Decide a manifest under both programs, piece by piece."""
    from gradwarden.policy.comparing.counts import DataDifference
    from gradwarden.policy.evaluation.columns import encode_columns

    if tokens:
        _check_tokens(after, tokens)
    counts = DataDifference(
        before,
        after,
        _context(given, before, after),
        _context(given, after, before),
        outcome.parts,
        [(rule.was, rule.now) for rule in outcome.rules if rule.kind != "waive"],
        tokens,
    )
    manifest = open_manifest(data, after)
    with progress(f"reading {data.name}", manifest.total, manifest.unit) as advance:
        report = arrived(advance)
        for old_piece, new_piece in _both(data, before, manifest.pieces):
            size = len(new_piece.places)
            counts.add(
                encode_columns(before, old_piece.columns, size),
                encode_columns(after, new_piece.columns, size),
            )
            report(new_piece.done)
    return counts


def _check_tokens(program: Program, tokens: str) -> None:
    from gradwarden.policy.errors import did_you_mean

    numbers = [spec.name for spec in program.attributes if spec.type == "number"]
    if tokens not in numbers:
        help = did_you_mean(tokens, numbers) or f"numbers: {', '.join(numbers) or 'none'}"
        raise InputError(f"`--tokens {tokens}`: the new policy has no number of that name", help=help)


def _context(given: ContextOptions, program: Program, other: Program) -> Any:
    """Return the context for one of two programs, without signals and budgets that only the other has."""
    own = {spec.name for spec in program.signals}
    theirs = {spec.name for spec in other.signals}
    private = {rule.name for rule in program.limits if rule.kind == "privacy"}
    others = {rule.name for rule in other.limits if rule.kind == "privacy"}
    return replace(
        given,
        settings=tuple((name, value) for name, value in given.settings if name in own or name not in theirs),
        spent=tuple(rule for rule in given.spent if rule in private or rule not in others),
    ).context(program)


def _both(data: Path, before: Program, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Yield the pieces of a manifest as the old program reads them, beside those that the new one has read.

    Only CSV cells depend on the schema.
    """
    if FORMATS[data.suffix.lower()] != "CSV":
        for piece in pieces:
            yield piece, piece
        return
    for old, new in zip(open_manifest(data, before).pieces, pieces, strict=True):
        if list(old.places) != list(new.places):
            raise InputError(f"`{data}` cannot be read alike for both policies", help="save it as JSONL")
        yield old, new


def _exceeded(counts: DataDifference, gained: str | None, lost: str | None) -> Iterator[str]:
    for option, word, bound, found in (
        ("--max-gained", "gain", gained, counts.any.gained),
        ("--max-lost", "lose", lost, counts.any.lost),
    ):
        if bound is None:
            continue
        most = _number(bound)
        if found > (most * counts.examples / 100 if bound.endswith("%") else most):
            yield f"{found:,} of {counts.examples:,} examples {word} weight; at most {bound} may ({option})"
