"""What the ranks of a job say together: of the same step the same, and of its batch shares that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gradwarden.runtime.jobs.layout import named_ranks
from gradwarden.runtime.jobs.majority import odd_ranks
from gradwarden.runtime.jobs.shares import PRIME, located
from gradwarden.runtime.verification.job_report import JobFinding, finding
from gradwarden.runtime.verification.rank_steps import (
    ABSENT,
    COMMITTED,
    REFUSED,
    Clash,
    Numbers,
    RankSteps,
    first_clash,
)

TERMS = ("normaliser", "clip_norm", "secret_commitment", "bands", "model_map", "policy", "privacy")
"""What the openings of all ranks must say alike."""


def compared(steps: Mapping[int, RankSteps], ranks: int) -> Iterator[JobFinding]:
    """Compare the ranks with each other."""
    if len(steps) < 2:
        return
    yield from _openings(steps)
    yield from _contradictions(steps)
    yield from _saved(steps)
    yield from _left_out(steps)
    if len(steps) == ranks:
        yield from _shares(steps)


def _openings(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Name the ranks that began under other terms than most."""
    for name in TERMS:
        said = {rank: repr(found.opened[name]) for rank, found in steps.items() if found.opened}
        yield from _odd_ones(said, "other_terms", f"began with another {name.replace('_', ' ')}")
    said = {
        rank: found.opened["job"]["weights"]
        for rank, found in steps.items()
        if found.opened and "job" in found.opened
    }
    yield from _odd_ones(said, "other_weights", "began from other weights")


def _odd_ones(said: Mapping[int, str], code: str, what: str) -> Iterator[JobFinding]:
    """Name those that say something else than most do (`odd_ranks`)."""
    odd = odd_ranks(said)
    if len(odd) == 1:
        yield finding(code, f"rank {odd[0]} {what} than the others", odd, 0)
    elif odd:
        yield finding(code, f"{named_ranks(odd)}: some {what} than others", odd, 0)


def _saved(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Compare the weights that were saved or gone back to, at the first step where the ranks differ."""
    for step in sorted({step for found in steps.values() for step in found.weights}):
        said = {rank: ",".join(found.weights[step]) for rank, found in steps.items() if step in found.weights}
        findings = list(_odd_ones(said, "other_weights", f"saved or restored other weights at step {step}"))
        if findings:
            yield from findings
            return


def _contradictions(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Name who contradicts whom.

    All are compared with the rank that knows most steps. Where others know more of some step than that one,
    as behind its end, they are compared with each other.
    """
    left = dict(steps)
    covered = np.zeros(_size(steps), np.uint8)
    while len(left) > 1:
        reference = max(left, key=lambda rank: np.count_nonzero(left[rank].outcomes >= REFUSED))
        own = left.pop(reference)
        clashes = {rank: first_clash(own, other) for rank, other in left.items()}
        found = {rank: clash for rank, clash in clashes.items() if clash is not None}
        if found:
            yield from _clashing(reference, found, left)
            return
        known = _known(own)
        covered[: len(known)] = np.maximum(covered[: len(known)], known)
        beyond = np.zeros(len(covered), np.int64)
        for other in left.values():
            known = _known(other)
            beyond[: len(known)] += known > covered[: len(known)]
        if not (beyond > 1).any():
            return


def _known(steps: RankSteps) -> npt.NDArray[np.uint8]:
    """Return how much a rank's ledger says of each step: nothing, what was proposed, or the outcome, too."""
    return np.minimum(steps.outcomes, REFUSED)


def _clashing(
    reference: int, clashes: Mapping[int, Clash], others: Mapping[int, RankSteps]
) -> Iterator[JobFinding]:
    """Name who contradicts the reference. others: all that were compared with it.

    Where more say alike what the reference does not than say what it does, it is the reference that is named.
    """
    clash, times = Counter(clashes.values()).most_common(1)[0]
    alike = {step: 1 + _agreeing(step, clashes, others) for step in {one.step for one in clashes.values()}}
    if times > alike[clash.step]:
        message = f"at step {clash.step} rank {reference} has another {clash.what} than {times} others"
        yield finding("contradiction", message, [reference])
        return
    for rank, found in clashes.items():
        message = f"at step {found.step} rank {rank} has another {found.what} than rank {reference}"
        yield finding("contradiction", message, [reference, rank] if alike[found.step] == 1 else [rank])


def _agreeing(step: int, clashes: Mapping[int, Clash], others: Mapping[int, RankSteps]) -> int:
    """Return how many ranks that contradict the reference nowhere say as much of a step as one that does."""
    place = max(step - _begun(others), 0)
    known = {rank: int(_known(one)[place : place + 1].max(initial=ABSENT)) for rank, one in others.items()}
    least = max(known[rank] for rank, clash in clashes.items() if clash.step == step)
    return sum(told >= least for rank, told in known.items() if rank not in clashes)


def _left_out(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Name the ranks that have no part in a step which another committed: no rank moves before all recorded.

    What comes after the end of a ledger that is not sealed may only not have been written yet.
    """
    size = _size(steps)
    committed = np.zeros(size, bool)
    for found in steps.values():
        committed[: len(found.outcomes)] |= found.outcomes == COMMITTED
    for rank, found in steps.items():
        own = found.outcomes
        known = size if found.sealed is not None else len(own)
        absent = np.ones(known, bool)
        absent[: len(own)] = own == ABSENT
        missing = np.flatnonzero(absent & committed[:known])
        if len(missing):
            step = _begun(steps) + missing[0]
            message = f"rank {rank} has no part in step {step}, which others committed"
            yield finding("left_out_step", message, [rank])


def _shares(steps: Mapping[int, RankSteps]) -> Iterator[JobFinding]:
    """Check that the ranks' shares of each committed batch add up to what all of them state of it.

    Of the first that do not, the rank is named whose share alone explains it (`jobs.shares`).
    """
    excess, stated, compared = _excess(steps)
    known = stated[1] >= 0
    wrong = compared & ((excess[0] != 0) | (known & (excess[1:] % PRIME != 0).any(axis=0)))
    if not wrong.any():
        return
    place = int(np.flatnonzero(wrong)[0])
    step, more = _begun(steps) + place, int(excess[0, place])
    told_of = _differing(excess[:, place].tolist(), stated[:, place].tolist(), sums=bool(known[place]))
    message = f"the shares of the batch of step {step} do not add up: {told_of}"
    rank = located(excess[:, place].tolist(), len(steps)) if known[place] else None
    told = -1 if rank is None else int(steps[rank].columns(step + 1).counts[place]) - more
    if rank is None or told < 0:
        yield finding("wrong_shares", message, steps)
    else:
        yield finding("wrong_shares", f"{message}; rank {rank} told the others of {told} of its own", [rank])


def _differing(excess: Sequence[int], stated: Sequence[int], *, sums: bool) -> str:
    """Say which of the three sums differ from what the ranks' ledgers hold. sums: whether all are stated."""
    count, whole = excess[0], stated[0]
    parts = [f"{whole} examples are stated, and the ranks' ledgers hold {whole + count}"] if count else []
    if sums:
        weighed = zip(("place", "the square of the place"), excess[1:], stated[1:], strict=True)
        parts += [
            f"weighted by {weight}, {said} is stated, and {(said + more) % PRIME} held"
            for weight, more, said in weighed
            if more % PRIME
        ]
    return "; ".join(parts)


def _begun(steps: Mapping[int, RankSteps]) -> int:
    """Return the first step that is compared, the same for all ranks."""
    return next(iter(steps.values())).begun


def _size(steps: Mapping[int, RankSteps]) -> int:
    """Return how many steps are compared, of the rank that has most."""
    return max(len(found.outcomes) for found in steps.values())


def _excess(steps: Mapping[int, RankSteps]) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
    """Return by how much the ranks' records exceed the three sums that they state, and the sums: [3, steps].

    The third: which steps all ranks had a part in, and some rank committed.
    """
    steps_compared = min(found.steps for found in steps.values())
    size = steps_compared - _begun(steps)
    total, stated = np.zeros((3, size), np.int64), np.zeros((3, size), np.int64)
    everywhere, committed = np.ones(size, bool), np.zeros(size, bool)
    for rank, found in steps.items():
        told, place = found.columns(steps_compared), rank + 1
        everywhere &= told.outcomes != ABSENT
        total += [told.counts, told.counts * place % PRIME, told.counts * place**2 % PRIME]
        here = told.outcomes == COMMITTED
        stated = np.where(here, [told.batches, *told.sums.T], stated)
        committed |= here
    return total - stated, stated, everywhere & committed
