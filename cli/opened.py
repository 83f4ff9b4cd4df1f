"""What `verify` can say with the data set and the run's secret: whether metadata were recorded truly, and
what another policy would have decided.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.output import arrived, emit_table, progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradwarden.policy.program import Program
    from gradwarden.runtime.verification.opened_data import OpenedData
    from gradwarden.runtime.verification.what_if import Difference


def open_data(path: Path, secret: Path, program: Program) -> OpenedData:
    """Return the examples of a manifest, to be found by their commitments under a run's secret.

    program: says how the cells of a CSV file are read. Raises InputError, KeyFileError, ExampleError and
    OSError.
    """
    from gradwarden.cli.failures import InputError
    from gradwarden.cli.manifest import open_manifest
    from gradwarden.runtime.commitments import Committer
    from gradwarden.runtime.verification.opened_data import OpenedData

    committer = Committer.load(secret)
    manifest = open_manifest(path, program)

    def pieces() -> Iterator[tuple[Sequence[object], Any]]:
        with progress(f"reading {path.name}", manifest.total, manifest.unit) as advance:
            report = arrived(advance)
            for piece in manifest.pieces:
                if piece.malformed:
                    place, reason = piece.malformed[0]
                    raise InputError(f"`{path}`, {manifest.place} {place}: {reason}")
                yield piece.ids, piece.columns
                report(piece.done)

    return OpenedData(committer, pieces())


def program_of(ledger: Path) -> Program | None:
    """Return the program that a ledger began under, None where it holds no complete one."""
    from gradwarden.policy.errors import GradwardenError
    from gradwarden.runtime.verification.opened_data import RecordedRun

    try:
        return next((stretch.program for stretch in RecordedRun(ledger).stretches()), None)
    except GradwardenError:
        return None


def difference_to_json(difference: Difference) -> dict[str, Any]:
    """Return what another policy would have changed, as JSON data; weights are sums over examples."""
    from gradwarden.policy.program import SCALE

    return {
        "steps": difference.steps,
        "steps_changed": difference.steps_changed,
        "first_step_changed": difference.first,
        "examples": difference.uses,
        "verdicts": [
            {"recorded": before, "other": after, "examples": count}
            for (before, after), count in sorted(difference.verdicts.items())
        ],
        "bands": {
            band: {"recorded": before / SCALE, "other": after / SCALE}
            for band, (before, after) in difference.bands.items()
        },
        "learned_only_as_recorded": difference.admitted_only_before,
        "learned_only_under_other": difference.admitted_only_after,
        "stopped_by": dict(sorted(difference.refusing.items())),
    }


def show_difference(difference: Difference, policy: Path) -> None:
    """Print what another policy would have changed."""
    from gradwarden.policy.program import SCALE

    click.echo(f"\nunder {policy} instead, as far as the recorded run can tell:")
    if not difference.steps_changed:
        click.echo(f"  the same decisions in all {difference.steps:,} steps")
        return
    click.echo(
        f"  other decisions in {difference.steps_changed:,} of {difference.steps:,} steps, "
        f"first in step {difference.first:,}"
    )
    click.echo(
        f"  {difference.admitted_only_before:,} of {difference.uses:,} examples in steps would have taught "
        f"nothing, and {difference.admitted_only_after:,} would have that did not"
    )
    rows = [
        (band, f"{before / SCALE:,.6g}", f"{after / SCALE:,.6g}")
        for band, (before, after) in difference.bands.items()
    ]
    emit_table(("band", "weight recorded", "weight under the other"), rows, numeric=(1, 2))
    if difference.refusing:
        stopped = [(rule, f"{count:,}") for rule, count in difference.refusing.most_common()]
        emit_table(("rule that would have stopped", "examples"), stopped, numeric=(1,))
    click.echo(
        "signals and losses are those of the run that took place: another policy would have changed them"
    )
