"""Who may shape what: the weights of each case, and what its name stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.routing.workload import Shape

TOP = 3
"""Bands that the masks of rows leave open: the output and two blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Weights [B, bands] of every batch; band 0 is the output, the last one the input.

    weights: None where a policy gives them, to a whole governor. masked_rows: the share of examples that are
    masked below the top two blocks, where that is all that is masked.
    """

    name: str
    title: str
    weights: Tensor | None
    masked_rows: float | None = None

    @property
    def masked(self) -> bool:
        """Whether anything is masked out, so that work is saved."""
        return self.weights is not None and bool((self.weights == 0).any())

    @property
    def uniform(self) -> bool:
        """Whether the weights are the same for all examples."""
        return self.weights is not None and bool((self.weights == self.weights[0]).all())


def cases(shape: Shape) -> list[Case]:
    """Return all cases for a shape."""
    rows, count = shape.batch, shape.depth + 2
    ones = torch.ones(rows, count, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    fractional = 0.1 + 0.8 * torch.rand(rows, count, dtype=torch.float64, generator=generator)
    random = (torch.rand(rows, count, generator=generator) < 0.5).double()
    scattered = _masked_rows(ones, 0.5)[torch.randperm(rows, generator=generator)]
    bottom = ones.clone()
    bottom[:, 1 + shape.depth // 2 :] = 0
    below = "masked below the top two blocks"
    return [
        Case("all_ones", "every weight 1", ones, 0.0),
        Case("fractional", "every weight a fraction of its own", fractional),
        Case("rows_25", f"a quarter of the rows {below}", _masked_rows(ones, 0.25), 0.25),
        Case("half_rows", f"half the rows {below}, adjacent", _masked_rows(ones, 0.5), 0.5),
        Case("half_rows_scattered", f"half the rows {below}, scattered", scattered),
        Case("rows_75", f"three quarters of the rows {below}", _masked_rows(ones, 0.75), 0.75),
        Case("bottom_half", "the bottom half of the blocks masked for all", bottom),
        Case("top_two_only", f"every row {below}", _masked_rows(ones, 1.0), 1.0),
        Case("random_mask", "a random half of all weights 0, the rest 1", random),
        Case("whole_governor", "fractional weights by a policy, with gates and a ledger on disk", None),
    ]


def _masked_rows(ones: Tensor, share: float) -> Tensor:
    weights = ones.clone()
    weights[: round(share * len(ones)), TOP:] = 0
    return weights


NAMES = tuple(case.name for case in cases(Shape("gpt", 64, 6, 4, 16, 16)))
