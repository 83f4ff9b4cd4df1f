"""Each canary against itself never seen: what a run knows of its canaries beyond what its twin does.

The twin is the same run: the same weights at first, the same batches in the same order, the same policy; but
nothing is learned from a canary when it comes. So what differs is what the canaries taught. The difference is
told in two ways, both in bits and both of each canary by itself:

exposure   that of the canary, less that under the twin: of a rank among 128, so at most 7 bits
learned    by how much likelier the canary became, beyond what other fillings of its blanks did:
           [mean_j b'(j) - b'(canary)] in the run, less the same in the twin, b' = -log2 p and j the fillings.
           What is learned of the form of canaries helps all fillings alike, and does not count.

The second has no bound, and more noise: two models differ by some bits in what they think of any one string
that neither of them expects, whatever they learned. Of a canary that left nothing both are 0 in the mean,
whichever filling it is, for that was drawn at random.
Intervals are those of `confidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from examples.memorization.confidence import Interval, mean_within
from examples.memorization.training import Kept, Run

Pair = tuple[Kept, Kept]
"""A canary as a run knows it, and as its twin does."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over canaries, in bits, and its interval."""

    value: float
    within: Interval

    @property
    def known(self) -> bool:
        """Whether the interval lies above 0: the canaries left something."""
        return self.within[0] > 0.0

    def __str__(self) -> str:
        low, high = self.within
        return f"{self.value:+.2f} ({low:+.2f} to {high:+.2f}){' *' if self.known else ''}"


@dataclass(frozen=True, slots=True)
class Traces:
    """What the canaries of one kind that came left under a policy.

    repetitions: how often these came; None: all that came.
    """

    policy: str
    kind: str
    repetitions: int | None
    count: int
    times_learned: float
    extracted: int
    exposure: float
    exposure_unseen: float
    more_exposure: Mean
    learned: Mean


def pairs(runs: Sequence[Run], policy: str) -> list[Pair]:
    """Return the canaries that came under a policy, of all seeds. runs: twins included."""
    twins = {
        (run.seed, canary.id): canary
        for run in runs
        if run.policy == policy and run.unseen
        for canary in run.canaries
    }
    return [
        (canary, twins[run.seed, canary.id])
        for run in runs
        if run.policy == policy and not run.unseen
        for canary in run.canaries
        if canary.repetitions
    ]


def traces(runs: Sequence[Run]) -> list[Traces]:
    """Return what is left of the canaries that came, by policy and kind, in all and by repetitions.

    Of policies that have twins.
    """
    found = []
    for policy in dict.fromkeys(run.policy for run in runs if run.unseen):
        own = pairs(runs, policy)
        for kind in dict.fromkeys(canary.kind for canary, _ in own):
            of_kind = [pair for pair in own if pair[0].kind == kind]
            found.append(_traces(policy, kind, None, of_kind))
            for times in dict.fromkeys(canary.repetitions for canary, _ in of_kind):
                alike = [pair for pair in of_kind if pair[0].repetitions == times]
                found.append(_traces(policy, kind, times, alike))
    return found


def _traces(policy: str, kind: str, repetitions: int | None, found: Sequence[Pair]) -> Traces:
    return Traces(
        policy,
        kind,
        repetitions,
        len(found),
        mean(canary.learned for canary, _ in found),
        sum(canary.reproduced == 1.0 for canary, _ in found),
        mean(canary.exposure for canary, _ in found),
        mean(twin.exposure for _, twin in found),
        _more(found, lambda kept: kept.exposure),
        _more(found, lambda kept: kept.advantage),
    )


def _more(found: Sequence[Pair], of: Callable[[Kept], float]) -> Mean:
    values = [of(canary) - of(twin) for canary, twin in found]
    return Mean(mean(values), mean_within(values))


def trace_rows(found: Sequence[Traces]) -> list[dict[str, str]]:
    """Return a row for each policy and kind, over all repetitions."""
    return [
        {
            "policy": one.policy,
            "kind": one.kind,
            "came": str(one.count),
            "learned from": f"{one.times_learned:.1f}×",
            "extracted": str(one.extracted),
            "exposure": f"{one.exposure:.2f}",
            "itself never seen": f"{one.exposure_unseen:.2f}",
            "difference": str(one.more_exposure),
            "bits learned": str(one.learned),
        }
        for one in found
        if one.repetitions is None
    ]


def cost_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return a row for each policy: its held-out loss, and by how much that is above the first policy's.

    Of the runs with canaries and of their twins: without canaries, guards have nothing to win.
    """
    plain = {(run.seed, run.unseen): run.held_out for run in runs if run.policy == runs[0].policy}
    rows = []
    for policy in dict.fromkeys(run.policy for run in runs):
        row = {"policy": policy}
        for unseen, words in ((False, "with canaries"), (True, "on code alone")):
            own = [run for run in runs if run.policy == policy and run.unseen == unseen]
            costs = [100 * (run.held_out / plain[run.seed, unseen] - 1) for run in own]
            row |= {f"held-out loss {words}": "", f"cost {words}, %": ""}
            if own:
                row[f"held-out loss {words}"] = f"{mean(run.held_out for run in own):.3f}"
                row[f"cost {words}, %"] = f"{mean(costs):+.1f} ({min(costs):+.1f} to {max(costs):+.1f})"
        rows.append(row)
    return rows
