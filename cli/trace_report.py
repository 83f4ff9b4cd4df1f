"""What `gradwarden trace` answers, as text and as JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.output import emit_table

if TYPE_CHECKING:
    from gradwarden.runtime.provenance.answers import (
        BandTrace,
        Contribution,
        ExampleTrace,
        FootprintTrace,
        RuleTrace,
        Steps,
    )
    from gradwarden.runtime.provenance.indexed import Index
    from gradwarden.runtime.provenance.lineage import Added, Taken

SHOWN = 16
"""Hexadecimal digits of a commitment in a table; `--commitment` takes them."""

ADDED = ("added", "in steps")

LINEAGE = {
    None: "that the run went on from the base's weights is taken at your word: no ledger says so",
    True: "the run's ledger names this base, and the base's ledger has what was signed then",
    False: "the run's ledger names another base, or another history of this one",
}

RECORDED = (
    "added: norms of gradient, summed over the steps that record them; at most what it added in these, as "
    "parts may cancel; weights are of all steps"
)

APPROXIMATE = "shares are of weight: an approximation, not what the model would be without the example"


def plain(value: Any) -> Any:
    """Return an answer as JSON data."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def index_facts(index: Index) -> dict[str, Any]:
    """Return what an answer rests on."""
    return {
        "ledger": str(index.ledger),
        "folder": str(index.folder),
        "origin": index.origin,
        "run": index.run,
        "entries": index.size,
        "root": index.root,
        "steps": index.steps,
        "uses": index.uses,
        "examples": index.examples,
        "bytes_behind": index.behind,
    }


def show_index(index: Index, done: str) -> None:
    _basis(index)
    size = sum((index.folder / file.path).stat().st_size for file in index.files)
    counts = f"{plural(index.uses, 'use')} of {plural(index.examples, 'example')}"
    click.echo(f"{done} {index.folder}: {counts}, {size:,} bytes")


def show_band(index: Index, found: BandTrace) -> None:
    _basis(index)
    examples, uses = plural(found.examples, "example"), plural(found.uses, "use")
    weight = f"{examples} gave it a weight of {found.weight:,.2f} in {uses}"
    click.echo(f"{_strong(found.band)}, {_span(found.steps)}: {weight}")
    if moved := found.moved:
        some = f"{moved.steps:,} of {plural(moved.taken, 'step')}"
        click.echo(f"it moved by {moved.norm:,g} in {some}, as these record: norms, added up")
    recorded = any(one.added for one in found.top)
    rows = [
        [
            *(one.commitment[:SHOWN], f"{one.uses:,}", f"{one.weight:,.2f}", f"{one.share:.3%}"),
            *_steps(one),
            *(_contribution(one.added) if recorded else ()),
        ]
        for one in found.top
    ]
    headings = ["example", "uses", "weight", "share", "first step", "last step"]
    _table([*headings, *(ADDED if recorded else ())], rows, numeric=range(1, 8))
    if rows:
        click.echo(APPROXIMATE)
    if recorded:
        click.echo(RECORDED)


def show_example(index: Index, found: ExampleTrace) -> None:
    _basis(index)
    if found.proposed is None:
        click.echo(f"{_strong(found.commitment)}: no step names it")
        return
    click.echo(f"{_strong(found.commitment)}: proposed {_often(found.uses, found.proposed)}")
    if found.exposed is None:
        click.echo("the model learned nothing from it: no step that let it in was taken")
    else:
        click.echo(f"the model may have learned from it {_often(found.exposures, found.exposed)}")
        rows = [
            [
                *(band, f"{weight:,.2f}", f"{found.shares[band]:.4%}"),
                *(_contribution(found.added.get(band)) if found.added else ()),
            ]
            for band, weight in found.weights.items()
        ]
        _table(["band", "weight", "share", *(ADDED if found.added else ())], rows, numeric=range(1, 5))
        click.echo(APPROXIMATE)
        if found.added:
            click.echo(RECORDED)
    if abandoned := sum(step["abandoned"] for step in found.steps):
        click.echo(
            f"{plural(abandoned, 'step')} of these were abandoned: they did not lead to the last weights"
        )
    _table(
        ["verdict", "uses", "learned", "first step", "last step", "weights", "rules"],
        [
            [
                one.verdict,
                f"{one.uses:,}",
                f"{one.learned:,}",
                *_steps(one),
                ", ".join(f"{band} {weight:g}" for band, weight in one.weights.items() if weight) or "none",
                ", ".join(one.rules),
            ]
            for one in found.chapters
        ],
        numeric=range(1, 5),
    )


def show_rule(index: Index, found: RuleTrace) -> None:
    _basis(index)
    for told in found.declared:
        because = f": {told['because']}" if told["because"] else ""
        where = f"{told['policy']} version {told['version']}, from step {told['first_step']:,}"
        click.echo(_strong(found.rule) + printable(f", a `{told['kind']}` rule of {where}{because}"))
    if not found.parts:
        click.echo("it had no part in any decision")
    _table(
        ["part", "verdict", "uses", "examples", "first step", "last step"],
        [[one.part, one.verdict, f"{one.uses:,}", f"{one.examples:,}", *_steps(one)] for one in found.parts],
        numeric=range(2, 6),
    )
    for event in found.expirations:
        click.echo(f"it first stopped {plural(event['count'], 'example')} at step {event['step']:,}")
    if found.examples:
        stopped = f"{plural(found.examples, 'example')} got no weight at all in {plural(found.uses, 'use')}"
        click.echo(f"{stopped} where it bore on the decision")
    _table(
        ["example", "uses", "first step", "last step", "rules"],
        [[one.commitment[:SHOWN], f"{one.uses:,}", *_steps(one), ", ".join(one.rules)] for one in found.top],
        numeric=range(1, 4),
    )


def show_footprint(index: Index, found: FootprintTrace) -> None:
    _basis(index)
    stopped, uses = plural(found.stopped, "example"), plural(found.uses, "use")
    click.echo(
        f"{_strong(found.rule)} stopped {stopped}; {found.examples:,} of them shaped the model, in {uses}"
    )
    if not found.examples:
        return
    _table(
        ["band", "weight", "share"],
        [[band, f"{weight:,.2f}", f"{found.shares[band]:.3%}"] for band, weight in found.weights.items()],
        numeric=[1, 2],
    )
    click.echo(APPROXIMATE)
    for saved in found.checkpoints:
        click.echo(printable(f"it is in the checkpoint `{saved['file']}` of step {saved['step']:,}"))
    _table(
        ["example", "uses", "first step", "last step", "stopped at", "after that", "weights"],
        [
            [
                one.commitment[:SHOWN],
                f"{one.uses:,}",
                *_steps(one),
                f"{one.stopped:,}",
                f"{one.later:,}",
                ", ".join(f"{band} {weight:,.2f}" for band, weight in one.weights.items()),
            ]
            for one in found.top
        ],
        numeric=range(1, 6),
    )


def show_added(found: Added) -> None:
    rows = [("base", found.base.whole), ("this run", found.run.whole)]
    for name, side in (("base", found.base), ("this run", found.run)):
        policies = ", ".join(f"{one['name']} version {one['version']}" for one in side.policies)
        click.echo(printable(f"{name}: {side.origin}, {plural(side.size, 'entry', 'entries')}, {policies}"))
    if found.linked is not None:
        rows += [("  new in it", found.linked.new), ("  known to the base", found.linked.repeated)]
    bands = list(dict.fromkeys(band for _, taken in rows for band in taken.weights))
    _table(
        ["learned from", "examples", "uses", *bands],
        [[name, *_taken(taken, bands)] for name, taken in rows],
        numeric=range(1, 3 + len(bands)),
    )
    if found.linked is None:
        click.echo("examples of two runs cannot be told apart without --ids, --secret and --base-secret")
    else:
        linked = found.linked
        unlisted = f"the run learned from {plural(linked.unlisted, 'example')} that no id names"
        click.echo(f"of {plural(linked.ids, 'id')}, {linked.left:,} only the base learned from; {unlisted}")
    click.echo(LINEAGE[found.declared])


def _basis(index: Index) -> None:
    covers = f"entries 0 to {index.size - 1:,}, {plural(index.steps, 'step')}, root {index.root}"
    click.echo(f"{index.ledger}: {covers}")
    if index.behind > 0:
        click.echo(f"  {index.behind:,} bytes were written since: `gradwarden trace index` takes them in")


def _table(headings: list[str], rows: list[list[str]], *, numeric: Sequence[int] = ()) -> None:
    emit_table(headings, [[printable(cell) for cell in row] for row in rows], numeric=numeric)


def _taken(taken: Taken, bands: list[str]) -> list[str]:
    weights = (f"{taken.weights.get(band, 0.0):,.2f}" for band in bands)
    return [f"{taken.examples:,}", f"{taken.uses:,}", *weights]


def _contribution(added: Contribution | None) -> tuple[str, str]:
    """Return what an example added, and in how many steps that is recorded; blank where it is not."""
    if added is None:
        return "", ""
    private = f"{added.private:,} private" if added.private else ""
    told = f"{added.steps:,}" if added.steps else ""
    return "" if added.norm is None else f"{added.norm:,g}", " + ".join(filter(None, [told, private]))


def _steps(one: Any) -> tuple[str, str]:
    return f"{one.first:,}", f"{one.last:,}"


def _often(times: int, steps: tuple[int, int]) -> str:
    return f"{plural(times, 'time')}, from step {steps[0]:,} to step {steps[1]:,}"


def _span(steps: Steps) -> str:
    first, last = steps
    return f"steps {first:,} to {last:,}" if last is not None else f"from step {first:,} on"


def _strong(text: str) -> str:
    return click.style(printable(text), bold=True)
