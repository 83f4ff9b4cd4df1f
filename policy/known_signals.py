"""The signals that a run measures itself, where a policy declares them by one of these names.

A policy declares its own range, places and default; what is measured is clamped and rounded to them. An
example that has not been measured yet has the declared default. `range` is the one to declare in most
policies.
"""

from __future__ import annotations

from gradwarden.policy.frozen import frozen


@frozen
class KnownSignal:
    """One signal. lo, hi, default: what to declare, as decimal text. needs: what the loop must give."""

    name: str
    lo: str
    hi: str
    default: str
    meaning: str
    needs: str = "nothing"

    @property
    def declaration(self) -> str:
        """The line to write in `signals { … }`."""
        return f"{self.name} : number {self.lo}..{self.hi} default {self.default}"


KNOWN_SIGNALS: tuple[KnownSignal, ...] = (
    KnownSignal(
        "loss_ratio", "0", "10", "1",
        "the last loss over the loss before the first exposure; near 0: the model reproduces the example",
    ),
    KnownSignal(
        "loss_gap", "-20", "20", "0",
        "the reference loss less the last loss, in the unit of the loss; above 0: better known than expected",
        "`Measuring(reference_losses=…)`, from a model that never saw the examples; "
        "else the first loss is taken",
    ),
    KnownSignal(
        "loss_fall", "-10", "10", "0",
        "by how much the loss fell per exposure, over the last 4 losses at most; above 0: being learned",
    ),
    KnownSignal(
        "gradient_norm", "-10", "10", "0",
        "how far the norm of the loss's gradient with respect to the model's outputs stands out from the "
        "last 1,024 examples: a robust z-score of its logarithm; 3 and more: an outlier",
        "a model that returns tensors with the batch in their first dimension",
    ),
    KnownSignal(
        "parameter_gradient_norm", "-10", "10", "0",
        "the same of the norm of the example's own gradient with respect to all parameters that it may shape",
        "one step in `Measuring(every=16)` is measured; `split` takes a backward pass for each "
        "example then",
    ),
    KnownSignal(
        "depth_share", "0", "1", "0",
        "the deepest band's share of the squared norm of the example's own gradient, where it was last "
        "measured; near 1: what the example teaches goes deep",
        "as `parameter_gradient_norm`; measured together",
    ),
    KnownSignal(
        "token_score", "-20", "5", "-20",
        "Min-K%++ of the example's tokens: how likely its least likely fifth is, against all other tokens "
        "that could stand there; near 0 and above: recited",
        "`proposal.observe_tokens(logits, targets)` before the step is left",
    ),
    KnownSignal(
        "copies", "0", "1000000", "0",
        "the exposures so far of the example and its near-duplicates together",
        "`Measuring(clusters=…)`, which copies are of one text; else each example is by itself",
    ),
    KnownSignal(
        "comings", "0", "1000000", "0",
        "how often the example and its near-duplicates came so far, learned from or not; above the number of "
        "the epoch: more often than once an epoch",
        "as `copies`",
    ),
)  # fmt: skip

BY_NAME = {signal.name: signal for signal in KNOWN_SIGNALS}
