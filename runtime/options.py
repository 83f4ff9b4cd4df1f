"""Options of a governor that belong together.

`Privacy` and `Measuring` say how a run treats its private examples, and what it knows of examples for the
signals that it measures. A run without privacy rules, or without such signals, needs neither. Who must have
signed a policy is told by `Approvers` (`gradwarden.runtime.ledger.program_signature`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gradwarden.runtime.privacy.accounting import JointPlan
from gradwarden.runtime.privacy.clipping import Clipping
from gradwarden.runtime.privacy.conditions import Trust
from gradwarden.runtime.privacy.sampling import MixedSampler, PoissonSampler

NO_PLAN = JointPlan(0.0, ())
"""The plan of a policy without privacy rules."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """How a run treats the examples under its privacy rules.

    plan: how their units are sampled and noised. sampler: what they are drawn by; each step is then held to
    its draw. Its rows are places in the governor's `dataset`. clipping: over what a unit's gradient is
    clipped jointly, see `clip_groups`. secure_noise: draw the noise so that its low bits give nothing away,
    see `SecureNoise`. withhold: leave private examples out of the ledger. on_trust: conditions of the privacy
    claim that the caller answers for, see `Trust`. noise_seed: fixes the noise, for tests.
    """

    plan: JointPlan = NO_PLAN
    sampler: PoissonSampler | MixedSampler | None = None
    clipping: Clipping = "flat"
    secure_noise: bool = False
    withhold: bool = False
    on_trust: Collection[Trust] = ()
    noise_seed: int | None = None

    @classmethod
    def of(cls, given: Privacy | JointPlan | None) -> Privacy:
        """Return the options that a caller gave: all of them, a plan alone, or none."""
        if isinstance(given, Privacy):
            return given
        return cls() if given is None else cls(given)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What a run knows of examples for the signals that it measures (`gradwarden.policy.known_signals`).

    reference_losses: by id, the loss of a model that never saw the example. clusters: by id, which examples
    are copies of one text. every: one step in so many is measured for `depth_share` and
    `parameter_gradient_norm`.
    """

    reference_losses: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, str] | None = None
    every: int = 16


NOTHING_KNOWN = Measuring()
"""What is given of examples where nothing is."""
