"""Min-K%++: how likely an example's least likely tokens are, against what else could stand there.

For token x_t after its prefix, with log-probabilities over the vocabulary,

    z_t = (log p(x_t) - mu_t) / sigma_t
    mu_t = sum_v p(v) log p(v)
    sigma_t^2 = sum_v p(v) (log p(v) - mu_t)^2

and the score of an example is the mean of the least fraction K of its z_t (Zhang et al. 2024,
arXiv:2404.02936, with K = 20 %). Text that was trained on tends to be a local maximum of the model's
distribution, also at its hardest tokens, so its score is higher.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradwarden.runtime.errors import MaskError

FRACTION = 0.2
"""K, the share of an example's tokens that count."""

_RULED_OUT = -200.0
"""Logits so far below the greatest stand for no probability in single precision."""

IGNORED = -100
"""The target that marks a position without a token, as in `torch.nn.functional.cross_entropy`."""

_FLOOR = 1e-6


def token_scores(
    logits: Tensor, targets: Tensor, *, fraction: float = FRACTION, ignore: int = IGNORED
) -> Tensor:
    """Return the score of each example, float64 [B] on the CPU; NaN for one without any token.

    logits: [B, T, V], those that predict `targets`: int64 [B, T], `ignore` where nothing is predicted. Raises
    MaskError for other shapes.
    """
    if logits.dim() != 3 or targets.shape != logits.shape[:2]:
        raise MaskError(
            f"token scores need logits [B, T, V] and targets [B, T], not {list(logits.shape)} and "
            f"{list(targets.shape)}",
            help="shift them before: the logits at a position predict the target at the same position",
        )
    with torch.no_grad():
        own, mean, spread = _moments(logits.detach().float(), targets.clamp_min(0))
        scores = ((own - mean) / spread).cpu().numpy().astype(np.float64)
    counted = (targets != ignore).cpu().numpy()
    least = np.ceil(counted.sum(axis=1) * fraction).astype(np.int64)
    scores = np.sort(np.where(counted, scores, np.inf), axis=1)
    total = np.where(np.arange(scores.shape[1]) < least[:, None], scores, 0.0).sum(axis=1)
    return torch.from_numpy(np.where(least > 0, total / np.maximum(least, 1), np.nan))


def _moments(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of each target, and mean and deviation of all tokens' there, each [B, T].

    All log-probabilities are told without the normaliser, which is the same for every token and cancels.
    """
    weights = torch.softmax(logits, dim=-1)
    logs = logits - logits.amax(dim=-1, keepdim=True)
    own = logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # 0 log 0 is 0: a token that is ruled out adds nothing.
    logs.clamp_min_(_RULED_OUT)
    terms = weights.mul_(logs)
    mean = terms.sum(-1)
    spread = (terms.mul_(logs).sum(-1) - mean.square()).clamp_min(_FLOOR**2).sqrt()
    return own, mean, spread
