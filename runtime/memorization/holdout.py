"""Which tokens a model is never taught to predict: goldfish masks.

A token is held out where a keyed hash of the tokens before it falls into one of k parts:

    H_key(x_{t-c}, ..., x_{t-1}) mod k = 0

(Hans et al. 2024, arXiv:2406.10209, with c = 13). What is held out depends on the context and on nothing
else, so a passage that comes again, in whatever document, lacks the same tokens each time, and no repetition
fills them in. At the beginning of a row, where fewer tokens come before, the hash is of those that there are;
a first token is kept.

The hash is splitmix64's mixing step, folded over the context (Steele et al. 2014): fast, even, the same on
every device. It is not meant to withstand somebody who chooses texts to match a key that they know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradwarden.runtime.errors import MaskError

CONTEXT = 13
"""How many tokens before one decide about it."""

_WORD = 1 << 64
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def holdout_mask(tokens: Tensor, one_in: int, *, context: int = CONTEXT, key: int = 0) -> Tensor:
    """Return which tokens are learned: bool [B, T], False for those held out, about one in `one_in`.

    tokens: integers [B, T]. key: the same for all runs over the data, or what one run holds out another
    teaches. Raises MaskError for other shapes and types.
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise MaskError(
            f"tokens are held out of integers [B, T], not of {tokens.dtype} {list(tokens.shape)}",
            help="give the token ids of one sequence for each example",
        )
    if one_in < 2 or context < 1:
        raise MaskError(
            f"one token in 2 or more is held out, by 1 or more before it, not {one_in}, {context}"
        )
    ids = tokens.long() + 1
    state = torch.full_like(ids, _signed(key * _GOLDEN + context))
    for back in range(context, 0, -1):
        earlier = torch.zeros_like(ids)  # 0: nothing stands there
        earlier[:, back:] = ids[:, :-back]
        state = _mixed(state ^ earlier)
    held = (state & (2**63 - 1)) % one_in == 0
    held[:, :1] = False
    return ~held


def _mixed(state: Tensor) -> Tensor:
    """Return splitmix64's output for each state, in the wrapping arithmetic of int64."""
    state = state + _signed(_GOLDEN)
    state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Return a logical shift to the right, which torch has for no signed type."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value
