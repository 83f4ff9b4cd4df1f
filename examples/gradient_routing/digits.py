"""Splits the code of an autoencoder between digits 0-4 and 5-9, as gradient routing did for MNIST.

Cloud et al. 2024 (arXiv 2410.04332), section 4.1, on the 1,797 8x8 digits of scikit-learn. An autoencoder
is trained with digits 0-4 routed to the top half of its code and 5-9 to the bottom half. Then a fresh
decoder, the certificate, is trained on all digits from one half alone: what it cannot reconstruct is not in
that half. The policy files say what is routed; everything else is the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from examples.gradient_routing.autoencoder import (
    AutoencoderConfig,
    SplitAutoencoder,
    make_decoder,
    reconstruction_losses,
    sparsity_losses,
)
from examples.gradient_routing.digits_figure import draw
from examples.gradient_routing.governed import (
    Stopwatch,
    default_workers,
    governed,
    make_room,
    run_all,
    verified_steps,
)
from examples.gradient_routing.results import console, spread, write_results
from examples.run_files import RunFiles

TESTED = 397
"""Images kept back to measure with, of 1,797."""

VARIANTS = ("unrouted", "routed", "own_sparsity", "own_encoders")
"""Each is a policy, `digits_<variant>.policy`; `own_encoders` has a model of its own as well."""


@dataclass(frozen=True, slots=True)
class Settings:
    """sparsity: factor of the code's L1 norm. certificate_epochs: how long each certificate is trained."""

    variants: tuple[str, ...] = VARIANTS
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 80
    batch: int = 128
    width: int = 128
    half: int = 16
    learning_rate: float = 1.5e-3
    sparsity: float = 3e-3
    certificate_epochs: int = 40

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a test: it shows that everything works, and no result."""
        return cls(
            VARIANTS[:2], seeds=(0,), epochs=4, width=32, half=8, learning_rate=5e-3, certificate_epochs=2
        )


@dataclass(frozen=True, slots=True)
class Job:
    settings: Settings
    variant: str
    seed: int
    files: RunFiles


@dataclass(frozen=True, slots=True)
class DigitRun:
    """The result of one run. Losses are by digit, over test images.

    decoder: of the model's own decoder. certificate: of one trained on the top half. strict: of one that sees
    the top half standardised. constant: of the best constant image, which needs no code.
    samples: the first test image of each digit and what the certificate makes of it, [10, 2, P].
    """

    variant: str
    seed: int
    decoder: list[float]
    certificate: list[float]
    strict: list[float]
    constant: list[float]
    steps: int
    cpu_seconds: float
    samples: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Digits:
    """pixels [N, P] and digits [N] of all images; training and testing are rows."""

    pixels: Tensor
    digits: Tensor
    training: Tensor
    testing: Tensor


def load(seed: int) -> Digits:
    """Return the images of scikit-learn, split at random."""
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    return Digits(
        torch.from_numpy(pixels / 16).float(), torch.from_numpy(digits), order[TESTED:], order[:TESTED]
    )


def run(job: Job) -> DigitRun:
    """Train one autoencoder under one policy, then the certificates on the top half of its code."""
    watch, settings = Stopwatch(), job.settings
    data = load(job.seed)
    torch.manual_seed(job.seed)
    model = SplitAutoencoder(
        AutoencoderConfig(settings.width, settings.half, own_encoders=job.variant == "own_encoders")
    )
    train(model, data, job)
    steps = verified_steps(job.files)
    with torch.no_grad():
        reconstructed, code = model(data.pixels)
    top = code[:, : settings.half]
    certified = certificate(top, data, settings)
    constant = data.pixels[data.training].median(dim=0).values.expand_as(data.pixels)
    return DigitRun(
        job.variant,
        job.seed,
        decoder=by_digit(reconstructed, data),
        certificate=by_digit(certified, data),
        strict=by_digit(certificate(standardised(top, data), data, settings), data),
        constant=by_digit(constant, data),
        steps=steps,
        cpu_seconds=watch.seconds,
        samples=samples(certified, data),
    )


def train(model: SplitAutoencoder, data: Digits, job: Job) -> None:
    """Train under the job's policy. Every image is proposed twice: how well it fits, how long its code is."""
    settings = job.settings
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    with governed(f"digits_{job.variant}", model, optimizer, job.files) as governor:
        for epoch in range(settings.epochs):
            governor.epoch = epoch
            for rows in shuffled(data.training, settings.batch):
                images = data.pixels[rows]
                with governor.step(examples(rows, data)) as proposal:
                    reconstructed, code = model(torch.cat([images, images]))
                    fit = reconstruction_losses(reconstructed[: len(rows)], images)
                    length = sparsity_losses(code[len(rows) :])
                    proposal.backward(torch.cat([fit, settings.sparsity * length]))


def examples(rows: Tensor, data: Digits) -> list[tuple[str, dict[str, Any]]]:
    """Return what is proposed of some images: first all reconstructions, then all lengths of codes."""
    numbered = list(zip(rows.tolist(), data.digits[rows].tolist(), strict=True))
    return [
        (f"image-{row}/{term}", {"digit": digit, "term": term, "held_out": False})
        for term in ("reconstruction", "sparsity")
        for row, digit in numbered
    ]


def certificate(code: Tensor, data: Digits, settings: Settings) -> Tensor:
    """Train a fresh decoder on one half of the code, for all digits alike; return all images through it."""
    torch.manual_seed(1000)
    decoder = make_decoder(code.shape[1], settings.width)
    optimizer = torch.optim.Adam(decoder.parameters(), settings.learning_rate)
    for _ in range(settings.certificate_epochs):
        for rows in shuffled(data.training, settings.batch):
            optimizer.zero_grad()
            reconstruction_losses(decoder(code[rows]), data.pixels[rows]).mean().backward()
            optimizer.step()
    with torch.no_grad():
        return decoder(code)


def standardised(code: Tensor, data: Digits) -> Tensor:
    """Return a code whose numbers all have one spread: what is small in it reads as well as what is large."""
    known = code[data.training]
    return (code - known.mean(dim=0)) / (known.std(dim=0) + 1e-6)


def shuffled(rows: Tensor, batch: int) -> Iterator[Tensor]:
    yield from rows[torch.randperm(len(rows))].split(batch)


def by_digit(images: Tensor, data: Digits) -> list[float]:
    """Return the loss of test images by digit."""
    losses = reconstruction_losses(images, data.pixels)[data.testing]
    digits = data.digits[data.testing]
    return [round(losses[digits == digit].mean().item(), 5) for digit in range(10)]


def samples(images: Tensor, data: Digits) -> Any:
    digits = data.digits[data.testing]
    first = [data.testing[(digits == digit).nonzero()[0, 0]] for digit in range(10)]
    return np.stack([torch.stack([data.pixels[row], images[row]]).numpy() for row in first])


def summary(runs: list[DigitRun]) -> list[dict[str, str]]:
    """Return a row for each variant: losses of low and high digits, as mean and spread over the seeds."""
    rows = []
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        row = {"policy": f"`digits_{variant}`"}
        for title, losses in (
            ("decoder", [run.decoder for run in own]),
            ("certificate", [run.certificate for run in own]),
            ("strict", [run.strict for run in own]),
        ):
            row[f"{title}, 0-4"] = spread([float(np.mean(loss[:5])) for loss in losses])
            row[f"{title}, 5-9"] = spread([float(np.mean(loss[5:])) for loss in losses])
        rows.append(row)
    constant = [run.constant for run in runs]
    nothing = {"policy": "none: the best constant image"}
    nothing["decoder, 0-4"] = spread([float(np.mean(loss[:5])) for loss in constant])
    nothing["decoder, 5-9"] = spread([float(np.mean(loss[5:])) for loss in constant])
    return [*rows, nothing]


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/gradient_routing/digits"))
@click.option("--quick", is_flag=True, help="Seconds instead of a minute; shows no result.")
@click.option("--workers", type=click.IntRange(1), default=default_workers, help="Runs side by side.")
def main(out: Path, quick: bool, workers: int) -> None:
    settings = Settings.quick() if quick else Settings()
    make_room(out)
    jobs = [
        Job(settings, variant, seed, RunFiles(out / "runs" / f"{variant}-{seed}"))
        for seed in settings.seeds
        for variant in settings.variants
    ]
    runs = []
    for finished in run_all(run, jobs, workers):
        runs.append(finished)
        console.print(
            f"{finished.variant} (seed {finished.seed}): {finished.steps} steps, ledger verified",
            highlight=False,
        )
    runs.sort(key=lambda one: (VARIANTS.index(one.variant), one.seed))
    write_results(out, "Digits", settings, runs, summary(runs))
    draw(runs, out / "digits.png")
    console.print(f"Tables, figure and ledgers are in {out}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
