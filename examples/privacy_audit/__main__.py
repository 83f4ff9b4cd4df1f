"""`python -m examples.privacy_audit`: attack models that were trained under three policies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.privacy_audit.training import Effort, Ward, draw, train
from gradwarden.runtime.privacy.auditing import (
    area,
    epsilon_lower_bound,
    guess,
    likelihood_ratios,
    rate_at,
)

POLICIES = {"unguarded": None, "confined": None, "private": 8.0}
"""The policies, and the epsilon that each claims."""

DELTA = 1e-5
QUICK = Effort(canaries=24, steps=4, rate=0.2, batch=8, shadows=4, guesses=12)


@dataclass(frozen=True, slots=True)
class Audit:
    """What an attack by likelihood ratios found out of a model.

    lower_bound: of epsilon, at 95 % confidence, from this one model. area: under the ROC curve. found: the
    share of canaries that were found at one false accusation in a hundred.
    """

    policy: str
    claimed: float | None
    lower_bound: float
    guesses: int
    right: int
    area: float
    found: float
    accuracy: float


def audit(policy: str, effort: Effort) -> Audit:
    """Train under a policy, train shadow models for the likelihood ratios, and attack."""
    ward = Ward.load(effort.canaries)
    inside = [draw(ward, 0)]
    for pair in range(effort.shadows // 2):  # each canary is then in half of the shadow models
        members = draw(ward, 1 + pair)
        inside += [members, ~members]
    runs = [
        train(policy, ward, members, effort, seed)
        for seed, members in enumerate(track(inside, description=policy, transient=True))
    ]
    scores = [found for found, _ in runs]
    ratios = likelihood_ratios(scores[0], scores[1:], inside[1:])
    guesses = guess(ratios, inside[0], effort.guesses)
    return Audit(
        policy,
        POLICIES[policy],
        epsilon_lower_bound(guesses, DELTA),
        guesses.made,
        guesses.right,
        area(ratios, inside[0]),
        rate_at(ratios, inside[0], 0.01),
        runs[0][1],
    )


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/privacy_audit"), show_default=True)
@click.option("--quick", is_flag=True, help="Seconds, and no result: for tests.")
def command(out: Path, quick: bool) -> None:
    torch.set_num_threads(1)
    effort = QUICK if quick else Effort()
    audits = [audit(policy, effort) for policy in POLICIES]
    out.mkdir(parents=True, exist_ok=True)
    document = {"effort": asdict(effort), "delta": DELTA, "audits": [asdict(found) for found in audits]}
    (out / "audit.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    titles = ("policy", "claimed", "at least", "right", "LiRA area", "found", "accuracy")
    table = Table(*titles, caption="epsilon claimed, and refuted at 95 %; canaries found at 1 % false alarms")
    for found in audits:
        table.add_row(
            found.policy,
            "none" if found.claimed is None else f"{found.claimed:g}",
            f"{found.lower_bound:.2f}",
            f"{found.right} of {found.guesses}",
            f"{found.area:.3f}",
            f"{found.found:.1%}",
            f"{found.accuracy:.1%}",
        )
    Console().print(table)
    click.echo(f"written: {out / 'audit.json'}")


if __name__ == "__main__":
    command()
