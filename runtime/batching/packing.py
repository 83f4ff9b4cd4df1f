"""Packing sequences of different lengths into rows, many in a row, and what a model needs to keep them apart.

Everything follows from one tensor `documents` [R, T]: the number of the sequence that each position belongs
to, -1 for padding. It is what `Proposal.assign` takes, and any packer may make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from gradwarden.runtime.errors import MaskError


def pack(sequences: Sequence[Tensor], width: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return tokens [R, width] and documents [R, width] of sequences of tokens, each whole in one row.

    Each sequence goes into the first row that has room for it. Raises MaskError for one that is longer.
    """
    room: list[int] = []
    places: list[tuple[int, int]] = []
    for number, sequence in enumerate(sequences):
        size = len(sequence)
        if size > width:
            raise MaskError(f"sequence {number} has {size} tokens, more than a row of {width}")
        row = next((row for row, left in enumerate(room) if left >= size), len(room))
        if row == len(room):
            room.append(width)
        places.append((row, width - room[row]))
        room[row] -= size
    like = sequences[0] if sequences else torch.zeros(0, dtype=torch.int64)
    tokens = like.new_full((len(room), width), padding)
    documents = torch.full((len(room), width), -1, dtype=torch.int64, device=like.device)
    for number, (sequence, (row, start)) in enumerate(zip(sequences, places, strict=True)):
        span = slice(start, start + len(sequence))
        tokens[row, span], documents[row, span] = sequence, number
    return tokens, documents


def positions_within(documents: Tensor) -> Tensor:
    """Return the place of each position in its own sequence, [R, T], counted from 0 in each row."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts: Tensor = torch.where(begins, places, 0).cummax(dim=1).values
    return places - starts


def attention_within(documents: Tensor, *, causal: bool = True) -> Tensor:
    """Return which positions may attend to which: bool [R, 1, T, T], block-diagonal by sequence.

    For `scaled_dot_product_attention(…, attn_mask=…)`. Padding attends to padding, so that no row is empty.
    """
    allowed = documents[:, None, :, None] == documents[:, None, None, :]
    return allowed.tril() if causal else allowed


def mean_by_document(each: Tensor, documents: Tensor, count: int, counted: Tensor | None = None) -> Tensor:
    """Return the mean of numbers [R, T] over the positions of each sequence, [count]; 0 where there are none.

    counted: bool [R, T], the positions that are to count; None: all.
    """
    owners = torch.where(documents < 0, count, documents)
    if counted is not None:
        owners = torch.where(counted, owners, count)
    owners = owners.flatten()
    sums: Tensor = _SumByOwner.apply(each.flatten(), owners, count + 1)  # type: ignore[no-untyped-call]
    sizes = torch.bincount(owners, minlength=count + 1).clamp(min=1).to(each.dtype)
    return (sums / sizes)[:count]


class _SumByOwner(Function):
    """Numbers [P] and their owners [P] -> the sum of each owner's numbers.

    What `index_add` would give. That moves rows by content as far as a mask engine can see, which would check
    every batch for it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, owners: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(owners)
        return values.new_zeros(count).index_add_(0, owners, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (owners,) = ctx.saved_tensors
        return grad[owners], None, None


def next_token_losses(logits: Tensor, tokens: Tensor, documents: Tensor, count: int) -> Tensor:
    """Return each sequence's mean cross entropy of its next tokens, [count].

    The last position of a sequence predicts nothing: what follows it in the row is the beginning of another
    sequence, which may not shape what that one may. logits: [R, T, words]; tokens, documents: [R, T].
    """
    each = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    inside = documents[:, 1:] == documents[:, :-1]
    return mean_by_document(each, documents[:, :-1], count, inside)
