"""`gradwarden plan`: dry-run a policy over a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.budget_plan import budgets_to_json, plan_budgets, show_budgets
from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.inputs import load_program
from gradwarden.cli.manifest import Piece, open_manifest
from gradwarden.cli.options import FILE, MAX_COUNT, ContextOptions, context_options
from gradwarden.cli.output import arrived, emit_json, emit_table, format_option, progress
from gradwarden.policy.decision import VERDICTS
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE

if TYPE_CHECKING:
    from gradwarden.policy.context import Context
    from gradwarden.policy.evaluation.columns import Columns
    from gradwarden.policy.program import Program


@frozen
class InvalidRecord:
    """A record that cannot be decided on, and why. `place` is its line or row."""

    place: int
    id: object
    problems: tuple[tuple[str, str, str], ...]
    """(attribute, code, detail); a line that holds no record has one without attribute."""


@dataclass(slots=True)
class Tally:
    """What was counted so far. Weights are summed in millionths, so that no rounding adds up."""

    records: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    weight: Counter[str] = field(default_factory=Counter)
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)
    invalid: list[InvalidRecord] = field(default_factory=list)

    @property
    def faulty(self) -> int:
        return self.verdicts["invalid"]


@verb("plan")
@click.argument("policy", type=FILE)
@click.option("--data", type=FILE, required=True, help="The manifest: *.jsonl, *.csv, *.tsv or *.parquet.")
@click.option("--allow-invalid", is_flag=True, help="Do not fail because of invalid records.")
@click.option(
    "--show", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="How many invalid records to list.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1, MAX_COUNT), metavar="N", help="The planned steps: cost the run."
)
@click.option(
    "--sampling-rate", type=click.FloatRange(0, 1), metavar="Q",
    help="The chance of a privacy unit to be in a step; with --steps.",
)  # fmt: skip
@click.option(
    "--noise-multiplier", type=click.FloatRange(0), metavar="S",
    help="The noise over the greatest clip. [default: the least under which every budget lasts]",
)  # fmt: skip
@context_options
@format_option("text", "json")
def command(
    policy: Path,
    data: Path,
    allow_invalid: bool,
    show: int,
    steps: int | None,
    sampling_rate: float | None,
    noise_multiplier: float | None,
    given: ContextOptions,
    output_format: str,
) -> int:
    """Dry-run a policy over a data set: what would be learned from what, and how deep.

    The manifest holds one record of metadata per example. Counted are the examples per verdict, per rule that
    had a part in their decision, and per band with the sum of their weights. Records that break the schema,
    and lines that are no record, are invalid; they are listed with the reason.

    An `id` names the example and is not metadata. In CSV an empty cell is an absent value (of
    a required set, the empty one), `true` and `false` are truth values, and the members of a set are
    separated by `;`.

    With --steps and --sampling-rate, the budgets of privacy rules are planned too: what the run would cost,
    how long each budget lasts, and how much noise would make it last.

    \b
    Examples:
      gradwarden plan code.policy --data corpus.parquet
      gradwarden plan ward.policy --data ward.csv --steps 10000 --sampling-rate 0.01
      gradwarden plan code.policy --data corpus.jsonl --step 5000 --set loss_ratio=0.4
      gradwarden plan code.policy --data corpus.csv --format json --allow-invalid

    \b
    Exit status: 0 every record is valid and every budget lasts, 1 some records are not (unless
    --allow-invalid) or some budget does not, 2 unreadable input.
    """
    if (steps is None) != (sampling_rate is None) or (steps is None and noise_multiplier is not None):
        raise click.UsageError("--steps and --sampling-rate go together, and --noise-multiplier with them")
    program = load_program(policy)
    context = given.context(program)
    budgets = None
    if steps is not None and sampling_rate is not None:
        budgets = plan_budgets(program, steps, sampling_rate, noise_multiplier)
    manifest = open_manifest(data, program)
    tally = Tally()
    with progress(f"planning {data.name}", manifest.total, manifest.unit) as advance:
        report = arrived(advance)
        for piece in manifest.pieces:
            _count(program, context, piece, tally, show)
            report(piece.done)
    if not tally.records:
        complain(InputError.code, f"`{data}` holds no records", None, severity="warning")
    if output_format == "json":
        planned = {} if budgets is None else {"privacy": budgets_to_json(budgets)}
        emit_json(_to_json(program, data, given, tally) | planned)
    else:
        _show(program, given, tally, manifest.place)
        if budgets is not None:
            show_budgets(budgets)
    failed = budgets is not None and not budgets.lasting
    return int(failed or (tally.faulty > 0 and not allow_invalid))


def _count(program: Program, context: Context, piece: Piece, tally: Tally, show: int) -> None:
    """Decide the records of a piece and add them up."""
    from gradwarden.policy.evaluation.arrays import CODES
    from gradwarden.policy.evaluation.batch import decide_columns
    from gradwarden.policy.evaluation.columns import encode_columns

    columns = encode_columns(program, piece.columns, len(piece.places))
    decisions = decide_columns(program, columns, context)
    tally.records += len(piece.places) + len(piece.malformed)
    tally.verdicts.update(decisions.verdict_counts())
    tally.verdicts["invalid"] += len(piece.malformed)
    tally.rules.update(decisions.rule_counts())
    for index, band in enumerate(program.band_names):
        weights = decisions.micro[:, index]
        tally.reached[band] += int((weights > 0).sum())
        tally.weight[band] += int(weights.sum())
    for attribute, codes in columns.faults.items():
        for code in codes[codes != 0].tolist():
            tally.problems[attribute, CODES[code]] += 1
    if piece.malformed:
        tally.problems["", "malformed"] += len(piece.malformed)
    wanted = show - len(tally.invalid)
    tally.invalid += _invalid(piece, columns, wanted) if wanted > 0 else []


def _invalid(piece: Piece, columns: Columns, wanted: int) -> list[InvalidRecord]:
    """Return the first invalid records of a piece, in the order of the manifest."""
    found = [
        InvalidRecord(place, None, (("", "malformed", reason),)) for place, reason in piece.malformed[:wanted]
    ]
    for row in columns.invalid_rows[:wanted].tolist():
        problems = tuple((p.attribute, p.code, p.detail) for p in columns.problems(row))
        found.append(InvalidRecord(piece.places[row], piece.ids[row], problems))
    return sorted(found, key=lambda record: record.place)[:wanted]


def _show(program: Program, given: ContextOptions, tally: Tally, place: str) -> None:
    click.echo(f"{program.name} version {program.version} over {plural(tally.records, 'record')}")
    click.echo(f"{given.describe(program)}\n")
    counts = [
        (verdict, f"{tally.verdicts[verdict]:,}", _share(tally, tally.verdicts[verdict]))
        for verdict in VERDICTS
    ]
    emit_table(("verdict", "examples", "share"), counts, numeric=(1, 2))
    click.echo()
    bands = [
        (
            band,
            f"{tally.reached[band]:,}",
            _share(tally, tally.reached[band]),
            _sum(tally.weight[band]),
        )
        for band in program.band_names
    ]
    emit_table(("band", "examples", "share", "sum of weights"), bands, numeric=(1, 2, 3))
    click.echo()
    if program.maintained:
        from gradwarden.policy.evaluation.phrasing import maintenance_terms

        held = [(x.name, ", ".join(x.bands), maintenance_terms(x), x.level) for x in program.maintained]
        emit_table(("maintains", "bands", "how", "level"), held)
        click.echo()
    rules = [(name, f"{count:,}", _share(tally, count)) for name, count in sorted(tally.rules.items())]
    emit_table(("rule", "examples", "share"), rules, numeric=(1, 2))
    if tally.faulty:
        _show_invalid(tally, place)


def _show_invalid(tally: Tally, place: str) -> None:
    click.echo(f"\n{plural(tally.faulty, 'invalid record')}:")
    reasons = [
        (attribute or "(no record)", code, f"{count:,}")
        for (attribute, code), count in sorted(tally.problems.items())
    ]
    emit_table(("attribute", "problem", "records"), reasons, numeric=(2,))
    for record in tally.invalid:
        name = "" if record.id is None else f" ({printable(str(record.id))})"
        told = "; ".join(_told(attribute, detail) for attribute, _, detail in record.problems)
        click.echo(f"  {place} {record.place}{name}: {printable(told)[:500]}")
    if tally.faulty > len(tally.invalid):
        click.echo(f"  and {tally.faulty - len(tally.invalid):,} more; --show N lists more")


def _told(attribute: str, detail: str) -> str:
    return detail if detail.startswith(f"`{attribute}`") or not attribute else f"{attribute}: {detail}"


def _share(tally: Tally, count: int) -> str:
    """Return a share in percent that is 0.0% only for none and 100.0% only for all."""
    if not tally.records:
        return "-"
    share = f"{count / tally.records:.1%}"
    if share == "0.0%" and count:
        return "<0.1%"
    return ">99.9%" if share == "100.0%" and count < tally.records else share


def _sum(micro: int) -> str:
    """Return a sum of weights, given in millionths, with every decimal place it has."""
    whole, fraction = divmod(micro, SCALE)
    return f"{whole:,}.{fraction:06d}".rstrip("0").rstrip(".")


def _to_json(program: Program, data: Path, given: ContextOptions, tally: Tally) -> dict[str, Any]:
    from gradwarden.policy.evaluation.phrasing import maintenance_terms

    return {
        "policy": {"name": program.name, "version": program.version, "digest": program.digest},
        "data": str(data),
        "context": given.to_json(),
        "records": tally.records,
        "verdicts": {verdict: tally.verdicts[verdict] for verdict in VERDICTS},
        "bands": {
            band: {"examples": tally.reached[band], "weight": tally.weight[band] / SCALE}
            for band in program.band_names
        },
        "maintained": [
            {"rule": x.name, "bands": x.bands, "terms": maintenance_terms(x), "level": x.level}
            for x in program.maintained
        ],
        "rules": dict(sorted(tally.rules.items())),
        "problems": [
            {"attribute": attribute, "code": code, "records": count}
            for (attribute, code), count in sorted(tally.problems.items())
        ],
        "invalid": [
            {
                "place": record.place,
                "id": record.id if isinstance(record.id, str | int | None) else str(record.id),
                "problems": [{"attribute": a, "code": c, "detail": d} for a, c, d in record.problems],
            }
            for record in tally.invalid
        ],
    }
