"""Carries out `rehearse`: refuses steps that bring too little of what is to be kept; forms steps that do not.

The gate stands at admission, before the forward pass, and works on weights that are decided already. The
sampler is for the loop: whoever forms batches in another way may do so, as long as the gate lets them pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import IntArray
from gradwarden.policy.evaluation.rehearsal import demands, shortfall
from gradwarden.policy.program import SCALE
from gradwarden.runtime.batching.epochs import Epochs
from gradwarden.runtime.errors import MaskError

if TYPE_CHECKING:
    from gradwarden.policy.evaluation.admission import Admitted
    from gradwarden.policy.program import Program
    from gradwarden.runtime.governor import Governor
    from gradwarden.runtime.roster import Examples


def short_of_rehearsal(program: Program, step: int, admitted: Admitted) -> tuple[str, str] | None:
    """Return the band in which a step rehearses too little, and the fault in words; None for enough."""
    if not demands(program, step):
        return None
    ids, counts = np.unique(admitted.decision_ids, return_counts=True)
    decisions = [admitted.decisions[number] for number in ids.tolist()]
    short = shortfall(
        program, step, [(d.micro, d.rules, n) for d, n in zip(decisions, counts.tolist(), strict=True)]
    )
    return None if short is None else (short.band, str(short))


class RehearsalSampler(Epochs):
    """Batches in each of which enough is rehearsed.

    weights: int [N, bands], in millionths, in the bands of one rule. rehearsed: bool [N]; those without
    weight in one of the bands do not count. share: in millionths. One iteration is one epoch, in which every
    example that is not rehearsed comes once; those that are join them `per_batch` at a time, in shuffled
    rounds. `per_batch` is the least number that is enough whichever examples meet. The order is a function of
    seed, epoch and what is given here.

    Raises MaskError where no number is enough, or more would be needed than there are.
    """

    def __init__(
        self,
        weights: IntArray,
        rehearsed: npt.NDArray[np.bool_],
        share: int,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MaskError(f"a batch has at least one example, not {batch_size}")
        self._pool = np.flatnonzero(rehearsed & (weights > 0).all(axis=1))
        self._others = np.setdiff1d(np.arange(len(weights)), self._pool)
        self._seed = seed
        needed = _needed(weights[self._pool], weights[self._others], share, batch_size)
        needed = max(needed, min(1, len(self._pool)))
        if needed > len(self._pool) or (needed >= batch_size and len(self._others)):
            raise MaskError(
                f"batches of {batch_size} examples need {needed} that are rehearsed, and there are "
                f"{len(self._pool)}",
                help="rehearse more examples or a smaller share, or take other batches",
            )
        self.per_batch = needed
        self._room = batch_size - needed if len(self._others) else batch_size

    @classmethod
    def of(
        cls, governor: Governor, examples: Examples, *, batch_size: int, seed: int, rule: str | None = None
    ) -> Self:
        """Return batches of known examples (rows of `examples`) as the next step would decide about them.

        A band that has a pace counts as in its next turn: between its turns nothing has weight there.
        rule: the `maintain` rule that has something rehearsed; None: the only one. Raises MaskError where
        there is no such rule, or several.
        """
        program = governor.program
        rules = [x for x in program.maintained if x.rehearsal and rule in (None, x.name)]
        if len(rules) != 1 or rules[0].rehearsal is None:
            raise MaskError(
                f"{len(rules)} `maintain` rules have something rehearsed", help="name one of them"
            )
        admitted = governor.foresee(examples)
        named = np.array([rules[0].rehearsal.rule in decision.rules for decision in admitted.decisions])
        weights = [
            governor.foresee(examples, band=band).micro[:, program.band_names.index(band)]
            for band in rules[0].bands
        ]
        return cls(
            np.stack(weights, axis=1).astype(np.int64),
            named[admitted.decision_ids],
            rules[0].rehearsal.share,
            batch_size=batch_size,
            seed=seed,
        )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self._others if len(self._others) else self._pool) // self._room)

    def order(self, epoch: int) -> list[IntArray]:
        generator = np.random.default_rng((self._seed, epoch))
        rounds = generator.permutation(self._pool)
        if not len(self._others):
            return [rounds[at : at + self._room] for at in range(0, len(rounds), self._room)]
        others = generator.permutation(self._others)
        batches: list[IntArray] = []
        for at in range(0, len(others), self._room):
            if len(rounds) < self.per_batch:
                again = generator.permutation(self._pool)
                # What is left of one round comes before the next; no batch holds an example twice.
                kept = np.isin(again, rounds)
                rounds = np.concatenate([rounds, again[~kept], again[kept]])
            batches.append(np.concatenate([rounds[: self.per_batch], others[at : at + self._room]]))
            rounds = rounds[self.per_batch :]
        return batches


def _needed(pool: IntArray, others: IntArray, share: int, batch_size: int) -> int:
    """Return how many of a batch must be rehearsed. pool, others: weights in millionths, [n, bands].

    With k of the least weight r beside batch_size - k of the greatest weight o, their part of the weight is
    k r / (k r + (batch_size - k) o), which is to be at least the share.
    """
    if not len(others):
        return 0
    needed = 0
    for r, o in zip(pool.min(axis=0, initial=SCALE).tolist(), others.max(axis=0).tolist(), strict=True):
        if o:
            needed = max(needed, -(-share * batch_size * o // (r * (SCALE - share) + share * o)))
    return needed
