"""Holds a run to its sampler: each step's private examples are exactly those that Poisson sampling drew.

The sampler's rows are places in the run's `dataset`. That the seed is secret, and that the loop does not
choose among draws by what is in them, nobody can check here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from gradwarden.policy.context import IntArray
from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.privacy.accounting import JointPlan
from gradwarden.runtime.privacy.sampling import MixedSampler, PoissonSampler

MARKS = 1 << 20

_ALL_OF_THEM = "give all examples that a privacy rule covers, to the sampler's `units`"


class DrawWatch:
    """Compares the private examples of steps with the draws of a sampler, one after the other.

    plan: whose rates the sampler must keep. count: the examples of the data set. units: the privacy unit of
    each row that a privacy rule covers. place: the rank, and the number of those of which each watches its
    own part of every draw, as the sampler deals it out; a unit is then on one of them alone.

    Raises PrivacyError where the sampler draws at a higher rate than a rule counts on, where its units are
    not the policy's, or where it takes private rows for public or leaves them out.
    """

    def __init__(
        self,
        sampler: PoissonSampler | MixedSampler,
        plan: JointPlan,
        count: int,
        units: Mapping[int, Hashable],
        place: tuple[int, int] = (0, 1),
    ) -> None:
        self.mark = 0
        """Of the draw that was last compared: a number below 2^20, another one for most other draws."""
        self._place = place
        if isinstance(sampler, MixedSampler):
            self._private, self._public = sampler.private, sampler.public
        else:
            self._private, self._public = sampler, np.zeros(0, dtype=np.int64)
        for rule in plan.rules:
            if self._private.rate > rule.sampling_rate:
                raise PrivacyError(
                    f"the sampler draws with probability {self._private.rate:g}, and `{rule.rule.name}` is "
                    f"accounted at {rule.sampling_rate:g}",
                    help="make the plan with the rate of the sampler",
                )
        self.cover(count, units)
        self._draws = self._private.remember()

    def cover(self, count: int, units: Mapping[int, Hashable]) -> None:
        """Go by other privacy units from now on. Raises PrivacyError like the constructor."""
        if not units.keys().isdisjoint(self._public.tolist()):
            raise PrivacyError(
                "a private example is among the rows that the sampler takes for public", help=_ALL_OF_THEM
            )
        _check_units(self._private.units, units, count)
        self._covered = np.zeros(count, dtype=bool)
        self._covered[list(units)] = True

    def forget(self) -> None:
        """Let go of the draws so far: no step is taken with them."""
        self._draws.clear()

    def check(self, rows: IntArray, private: npt.NDArray[np.bool_]) -> None:
        """Check a step's batch. rows: places in the data set, [B]. private: which a privacy rule covers."""
        if not self._draws:
            raise PrivacyError(
                "a step came without a draw of the run's sampler",
                help="draw the private examples of every step from the sampler that the governor was given",
            )
        whole = self._draws.popleft()
        self.mark = int.from_bytes(blake2b(whole.tobytes(), digest_size=8).digest(), "big") % MARKS
        drawn = self._private.part(whole, *self._place)
        came = rows[private]
        inside = came < len(self._covered)
        if not inside.all() or sorted(came.tolist()) != sorted(drawn[self._covered[drawn]].tolist()):
            raise PrivacyError(
                "the private examples of a step are not those that the sampler drew for it",
                help="pass every row of a draw, or of this rank's `part`, in the order of draws, and no "
                "other private row",
            )


def _check_units(drawn: Sequence[IntArray], units: Mapping[int, Hashable], count: int) -> None:
    """Check that the rows of each privacy unit are drawn together, and every private row is drawn at all."""
    home: dict[Hashable, int] = {}
    seen = 0
    for number, rows in enumerate(drawn):
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            raise PrivacyError(
                "the sampler draws rows that the data set lacks",
                help="pass `dataset=` with the examples in the order that the sampler numbers them",
            )
        for row in rows.tolist():
            if row in units:
                seen += 1
                if home.setdefault(units[row], number) != number:
                    raise PrivacyError(
                        "the rows of one privacy unit are in several units of the sampler",
                        help="group them with `group_rows` by the attribute that `unit` names",
                    )
    if seen < len(units):
        raise PrivacyError("the sampler leaves private examples out", help=_ALL_OF_THEM)
