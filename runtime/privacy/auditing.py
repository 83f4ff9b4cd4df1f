"""What an attack on a trained model shows of its privacy: lower bounds of epsilon.

An audit never shows that a model is private. It shows a claim to be wrong, where the lower bound exceeds it,
and how much of the claimed room attacks of this kind make use of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.errors import PrivacyError

_PRECISION = 1e-4
_GREATEST = 50.0


@dataclass(frozen=True, slots=True)
class Guesses:
    """The outcome of guessing which canaries a model was trained on.

    canaries: how many there were, each trained on with probability 1/2. made: for how many a guess was made.
    right: how many guesses were.
    """

    canaries: int
    made: int
    right: int


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return an upper bound of the chance of that many right guesses under (epsilon, delta)-privacy.

    Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), theorem 5.2, for one run with many canaries: the number
    of right guesses is dominated by a binomial one with success probability e^epsilon / (1 + e^epsilon), up
    to a term in delta.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    made, right = guesses.made, guesses.right
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, made, chance))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), made, chance))
    steepest = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, tail + 2.0 * guesses.canaries * delta * steepest)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Return the greatest epsilon that the guesses refute at a confidence; 0 where they refute none."""
    if not 0 <= guesses.right <= guesses.made <= guesses.canaries:
        raise PrivacyError("there cannot be more right guesses than guesses, or more guesses than canaries")
    low, high = 0.0, _GREATEST
    if p_value(guesses, low, delta) > 1.0 - confidence:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2.0
        refuted = p_value(guesses, middle, delta) <= 1.0 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def guess(scores: FloatArray, trained: npt.NDArray[np.bool_], made: int) -> Guesses:
    """Guess that the canaries of the greatest scores were trained on, those of the least not.

    scores: float64 [canaries], greater where the model knows a canary better. made: guesses, half of each
    kind. The number must be chosen beforehand: the best of several choices is no bound at this confidence.
    """
    order, half = np.argsort(scores, kind="stable"), made // 2
    if not 0 < 2 * half <= len(scores):
        raise PrivacyError(f"{made} guesses cannot be made of {len(scores)} canaries, half of each kind")
    right = int(trained[order[-half:]].sum()) + int((~trained[order[:half]]).sum())
    return Guesses(len(scores), 2 * half, right)


def likelihood_ratios(
    observed: FloatArray, shadows: Sequence[FloatArray], trained: Sequence[npt.NDArray[np.bool_]]
) -> FloatArray:
    """Return each canary's log-likelihood ratio of having been trained on, float64 [canaries].

    Carlini et al. 2022 (arXiv:2112.03570, LiRA): a normal distribution of scores is fitted for the shadow
    models that were trained on a canary, and another for those that were not. observed: scores under the
    attacked model [canaries]. shadows: under each shadow model; trained: which canaries it was trained on.
    Needs two shadow models of each kind for every canary; raises PrivacyError otherwise.
    """
    scores, members = np.stack(shadows), np.stack(trained)
    if (members.sum(axis=0) < 2).any() or ((~members).sum(axis=0) < 2).any():
        raise PrivacyError("every canary needs two shadow models with it and two without it")
    density = []
    for chosen in (members, ~members):
        masked = np.where(chosen, scores, np.nan)
        mean = np.nanmean(masked, axis=0)
        # A common deviation: few shadow models say little of each canary's own.
        deviation = math.sqrt(float(np.nanmean((masked - mean) ** 2))) + 1e-12
        density.append(-(((observed - mean) / deviation) ** 2) / 2.0 - math.log(deviation))
    return np.asarray(density[0] - density[1])


def rate_at(scores: FloatArray, trained: npt.NDArray[np.bool_], false_positives: float) -> float:
    """Return the share of trained canaries found at a threshold that so many of the others exceed."""
    threshold = np.quantile(scores[~trained], 1.0 - false_positives, method="higher")
    return float((scores[trained] > threshold).mean())


def area(scores: FloatArray, trained: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a trained canary scores higher than another (the area under the ROC curve)."""
    inside, outside = scores[trained][:, None], scores[~trained][None]
    return float((inside > outside).mean() + (inside == outside).mean() / 2.0)
