"""`python -m examples.memorization`: plant canaries in code, train under policies, try to get them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from examples.gradient_routing.governed import default_workers, make_room, run_all
from examples.gradient_routing.results import console, markdown, write_results
from examples.memorization.detection import SIGNALS, Curve, curve
from examples.memorization.figure import draw
from examples.memorization.planting import Settings, plant
from examples.memorization.training import GUESSABLE, Job, Run, make_reference, run
from examples.run_files import RunFiles

POLICIES = ("unguarded", "signals", "goldfish", "guarded")

GUARDS = {"reconstruction": 0.25, "loss_gap": 0.6, "exposures": 3}
"""Where the guards of the policies begin to refuse."""

PRECISION = 0.9
"""The precision at which recall is told."""


def summary(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return a row for each policy: what is left of the canaries by repetition, and what the guards cost."""
    rows, plain = [], runs[0].held_out
    for one in runs:
        levels = {
            f"{level.repetitions}×": f"{level.extracted:.0%}, {level.exposure:.1f}" for level in one.levels
        }
        cost = {"held-out loss": f"{one.held_out:.4f}", "cost": f"{one.held_out / plain - 1:+.2%}"}
        rows.append({"policy": one.policy, **levels, **cost})
    return rows


def detection(curves: Sequence[Curve], others: Sequence[Curve]) -> list[dict[str, str]]:
    """Return a row for each signal: how well it finds what was memorized without guards.

    others: the curves of the same signals for all that can be extracted, memorized or guessed.
    """
    rows = []
    for found, other in zip(curves, others, strict=True):
        row = {
            "signal": found.signal,
            "mean precision": f"{found.average:.3f}",
            "of all extractable": f"{other.average:.3f}",
            f"recall at {PRECISION:.0%} precision": f"{found.recall_at(PRECISION):.2f}",
        }
        threshold = GUARDS.get(found.signal)
        if threshold is not None:
            precision, recall = found.at(threshold)
            row |= {
                "guard": f"{threshold:g}",
                "its precision": f"{precision:.2f}",
                "its recall": f"{recall:.2f}",
            }
        rows.append(row)
    return rows


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/memorization"))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes; shows no result.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes corpus, canaries, order and weights.")
@click.option("--workers", type=click.IntRange(1), default=default_workers, help="Runs side by side.")
def command(out: Path, quick: bool, seed: int, workers: int) -> None:
    settings = Settings.quick() if quick else Settings()
    make_room(out)
    planted = plant(settings, seed)
    reference = make_reference(planted, settings, seed)
    jobs = [
        Job(settings, planted, reference, policy, seed, RunFiles(out / "runs" / policy))
        for policy in POLICIES
    ]
    runs = sorted(run_all(run, jobs, workers), key=lambda one: POLICIES.index(one.policy))
    curves = [curve(signal, runs[0].scored, lambda one: one.memorized) for signal in SIGNALS]
    others = [curve(signal, runs[0].scored, lambda one: one.extractable) for signal in SIGNALS]
    title = "Canaries extracted, and their exposure in bits, by how often they came"
    write_results(out, title, settings, [replace(one, scored=[]) for one in runs], summary(runs))
    found = detection(curves, others)
    lines = [
        f"Of {len(runs[0].scored):,} examples {runs[0].extractable} can be extracted unguarded; "
        f"{runs[0].memorized} of these have more than {GUESSABLE:g} bits under the reference model.",
        markdown(found),
    ]
    with (out / "results.md").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n\n".join(lines))
    console.print("\n".join(lines), highlight=False)
    draw(runs, curves, out / "memorization.png")
    console.print(f"Tables, figure and ledgers are in {out}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    command()
