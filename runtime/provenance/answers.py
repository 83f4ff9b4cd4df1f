"""What questions to an index are answered with (`queries`): values, without a database.

Weights are in whole examples, see `queries`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen

Steps: TypeAlias = tuple[int, int | None]
"""The first step and the last, None for all that follow."""


@frozen
class Contribution:
    """What an example added to a band's gradient, as far as steps record it.

    steps: those that record it. norm: the sum of the norms of what it added in these (see `recorded` for what
    that means); None where there are none. private: steps that do not tell, since it was private there.
    """

    steps: int
    norm: float | None
    private: int


@frozen
class Movement:
    """How far a band moved in some steps, as far as they record it.

    steps: those that record it, of the `taken` ones: committed, or lost in a crash. norm: the sum of the
    norms of what its parameters changed by in each of them.
    """

    steps: int
    taken: int
    norm: float


@frozen
class Shaper:
    """An example that shaped a band. weight, share: see `queries`. first, last: steps in which it did.

    added: what it added to the gradient in these; None where none of them records it.
    """

    commitment: str
    uses: int
    weight: float
    share: float
    first: int
    last: int
    added: Contribution | None = None


@frozen
class BandTrace:
    """What shaped a band in some steps. examples, uses, weight: of all that did; `top` are the heaviest.

    moved: how far the band moved; None where none of the steps records it.
    """

    band: str
    steps: Steps
    examples: int
    uses: int
    weight: float
    top: tuple[Shaper, ...]
    moved: Movement | None = None


@frozen
class Chapter:
    """Steps of one example that were decided alike.

    weights: by band. learned: in how many of the steps the model may have learned from it.
    """

    program: int
    verdict: str
    weights: dict[str, float]
    rules: tuple[str, ...]
    first: int
    last: int
    uses: int
    learned: int


@frozen
class ExampleTrace:
    """What became of an example; `uses` is 0 where the indexed entries never name it.

    proposed: the first and the last step that proposed it. exposed: those from which the model may have
    learned it; None: none. weights, shares: by band. added: what it added to the gradient, by band; of none
    where nothing is recorded. steps: every step that proposed it, with its entry, its outcome, the verdict,
    and whether the run has abandoned it.
    """

    commitment: str
    uses: int
    exposures: int
    proposed: tuple[int, int] | None
    exposed: tuple[int, int] | None
    weights: dict[str, float]
    shares: dict[str, float]
    added: dict[str, Contribution]
    chapters: tuple[Chapter, ...]
    steps: tuple[dict[str, Any], ...]


@frozen
class Part:
    """How often a rule had a part of one kind in decisions of one verdict."""

    program: int
    part: str
    verdict: str
    uses: int
    examples: int
    first: int
    last: int


@frozen
class Stopped:
    """An example that a rule stopped, how often, and in which steps."""

    commitment: str
    uses: int
    first: int
    last: int
    rules: tuple[str, ...]
    """All that had a part."""


@frozen
class RuleTrace:
    """What a rule did. declared: as each program in force says.

    examples, uses: that got no weight at all in a decision on which it bore; `top` the most often stopped.
    """

    rule: str
    declared: tuple[dict[str, Any], ...]
    parts: tuple[Part, ...]
    examples: int
    uses: int
    top: tuple[Stopped, ...]
    expirations: tuple[dict[str, Any], ...]


@frozen
class Footprint:
    """What the model had learned of an example that a rule stops. stopped: the first step in which it did.

    uses, first, last: steps from which the model may have learned it. later: how many of them came after that
    step (under another verdict). weights: by band.
    """

    commitment: str
    stopped: int
    uses: int
    first: int
    last: int
    later: int
    weights: dict[str, float]


@frozen
class FootprintTrace:
    """What was learned of all that a rule stops.

    stopped, examples: how many it stopped, and how many of these left something. checkpoints: saved after the
    first such exposure. top: those with the most weight.
    """

    rule: str
    stopped: int
    examples: int
    uses: int
    weights: dict[str, float]
    shares: dict[str, float]
    checkpoints: tuple[dict[str, Any], ...]
    top: tuple[Footprint, ...]
