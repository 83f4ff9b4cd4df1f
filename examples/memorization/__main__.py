"""`python -m examples.memorization`: plant canaries in code, train under policies, try to get them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from examples.gradient_routing.governed import default_workers, make_room, run_all
from examples.gradient_routing.results import console, markdown, write_results
from examples.memorization.confidence import levels, summary
from examples.memorization.detection import detected, strange
from examples.memorization.figure import draw
from examples.memorization.planting import Settings
from examples.memorization.training import GUESSABLE, Run, prepare, run
from examples.memorization.unseen import cost_rows, trace_rows, traces

POLICIES = {"unguarded": True, "goldfish": False, "signals": False, "confined": True, "guarded": True}
"""Whether each canary is compared with itself never seen, which takes another run."""

UNGUARDED, *_ = POLICIES


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/memorization"))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes; shows no result.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes corpus, canaries, order and weights.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Experiments, with one seed after another.")
@click.option("--workers", type=click.IntRange(1), default=default_workers, help="Runs side by side.")
def command(out: Path, quick: bool, seed: int, seeds: int, workers: int) -> None:
    settings = Settings.quick() if quick else Settings()
    make_room(out)
    prepared = [
        job
        for jobs in run_all(partial(prepare, settings, out, POLICIES), range(seed, seed + seeds), workers)
        for job in jobs
    ]
    runs = sorted(
        run_all(run, prepared, workers),
        key=lambda one: (list(POLICIES).index(one.policy), one.seed, one.unseen),
    )
    report(runs, settings, out)


def report(runs: Sequence[Run], settings: Settings, out: Path) -> None:
    """Write and print what came out. runs: the unguarded ones first; twins included."""
    seen = [one for one in runs if not one.unseen]
    found, left = levels(seen, settings.fillings), traces(runs)
    title = "Canaries extracted, and their exposure in bits, by how often they came"
    rows = summary(seen, found, settings.fillings)
    write_results(out, title, settings, [replace(one, scored=[]) for one in runs], rows)
    plain = [one for one in seen if one.policy == UNGUARDED]
    curves, table = detected([one.scored for one in plain])
    scored = [example for one in plain for example in one.scored]
    lines = [
        "*: above what canaries that never came have in 97.5 % of cases.",
        "Each canary against itself never seen, in bits; *: the interval lies above 0.",
        markdown(trace_rows(left)),
        markdown(cost_rows(runs)),
        f"Of {len(scored):,} examples {sum(one.extractable for one in scored):,} can be extracted unguarded; "
        f"{sum(one.memorized for one in scored):,} of these have more than {GUESSABLE:g} bits under the "
        "reference model.",
        f"Strange at first sight: {strange(plain)}.",
        markdown(table),
    ]
    with (out / "results.md").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n\n".join(lines))
    console.print("\n".join(lines), highlight=False)
    draw(found, left, curves, out / "memorization.png")
    console.print(f"Tables, figure and ledgers are in {out}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    command()
