"""What is left of the canaries, with intervals: how much of it could be chance.

The exposure of a canary that never came is that of a uniform rank, 1.4 bits in the mean with a standard
deviation of about as much. So the mean of n of them lies in an interval (`never_seen`), and a policy has
brought canaries to the level of those that never came where their mean is not above it.

All intervals hold 95 %, and take canaries as independent; those of one run share its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean

import numpy as np
from scipy.stats import binomtest, bootstrap

from examples.memorization.training import Kept, Run

SHARE = 0.95

_RESAMPLES = 5_000

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Level:
    """The canaries of one kind that came so often under a policy, of all seeds.

    extracted: the share of them; exposure: their mean, in bits; each with its interval. chance: that of the
    mean exposure of as many that never came. learned: how often one was learned from, in the mean.
    """

    policy: str
    kind: str
    repetitions: int
    count: int
    extracted: float
    extracted_within: Interval
    exposure: float
    exposure_within: Interval
    chance: Interval
    learned: float

    @property
    def known(self) -> bool:
        """Whether they are better known than canaries that never came."""
        return self.exposure > self.chance[1]

    def __str__(self) -> str:
        low, high = self.exposure_within
        return f"{self.extracted:.0%}, {self.exposure:.1f} ({low:.1f}-{high:.1f}){' *' if self.known else ''}"


def levels(runs: Sequence[Run], fillings: int) -> list[Level]:
    """Return what is left of the canaries by policy, kind and repetitions.

    fillings: how many others each is ranked among.
    """
    groups: dict[tuple[str, str, int], list[Kept]] = {}
    for one in runs:
        for canary in one.canaries:
            groups.setdefault((one.policy, canary.kind, canary.repetitions), []).append(canary)
    return [_level(*key, canaries, fillings) for key, canaries in groups.items()]


def _level(policy: str, kind: str, repetitions: int, canaries: Sequence[Kept], fillings: int) -> Level:
    count = len(canaries)
    hits = sum(canary.reproduced == 1.0 for canary in canaries)
    exposures = [canary.exposure for canary in canaries]
    return Level(
        policy,
        kind,
        repetitions,
        count,
        hits / count,
        share_within(hits, count),
        mean(exposures),
        mean_within(exposures),
        never_seen(count, fillings),
        mean(canary.learned for canary in canaries),
    )


@cache
def never_seen(count: int, fillings: int) -> Interval:
    """Return where the mean exposure of so many canaries lies that never came, by simulation."""
    ranks = np.random.default_rng(0).integers(1, fillings + 2, (_RESAMPLES, count))
    means = (np.log2(fillings + 1) - np.log2(ranks)).mean(axis=1)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def mean_within(values: Sequence[float]) -> Interval:
    """Return an interval for the mean, by the bootstrap (percentiles); a single value is its own."""
    if len(set(values)) == 1:
        return values[0], values[0]
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=SHARE, method="percentile", rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def share_within(hits: int, count: int) -> Interval:
    """Return Wilson's interval for a share."""
    found = binomtest(hits, count).proportion_ci(SHARE, method="wilson")
    return float(found.low), float(found.high)


def summary(runs: Sequence[Run], found: Sequence[Level], fillings: int) -> list[dict[str, str]]:
    """Return a row for each policy and kind: extracted, exposure and its interval.

    `all that came` is of all canaries but those that never did.
    """
    policies, kinds = dict.fromkeys(one.policy for one in runs), dict.fromkeys(one.kind for one in found)
    repetitions = dict.fromkeys(f"{one.repetitions}×" for one in found)
    rows = []
    for policy in policies:
        own = [one for one in runs if one.policy == policy]
        for kind in kinds:
            here = {
                f"{one.repetitions}×": str(one) for one in found if (one.policy, one.kind) == (policy, kind)
            }
            came = [one for run in own for one in run.canaries if one.kind == kind and one.repetitions]
            here["all that came"] = str(_level(policy, kind, 1, came, fillings))
            rows.append({"policy": policy, "kind": kind, **dict.fromkeys(repetitions, ""), **here})
    return rows
