"""A run as its steps see it: what was joined, what is in force, how far it has come, what they decide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from gradwarden.policy.context import Context, IntArray
from gradwarden.policy.errors import did_you_mean
from gradwarden.runtime.errors import ExampleError
from gradwarden.runtime.in_force import InForce
from gradwarden.runtime.joining import Joined
from gradwarden.runtime.progress import Progress


@dataclass(slots=True)
class Run:
    """One run. today: gives the day of a step. holdout_key: see `holdout_mask`. epoch: the caller's."""

    joined: Joined
    in_force: InForce
    progress: Progress
    today: Callable[[], date]
    holdout_key: int
    epoch: int = 0

    @property
    def point(self) -> str:
        """What a rank that enters a step would do: all ranks must be about to do the same."""
        return f"begin step {self.progress.next_step} of epoch {self.epoch}"

    def bare_context(self) -> Context:
        """Return the context of the next step, as far as it is of no example."""
        return Context(self.progress.next_step, self.epoch, self.today())

    def context(self, rows: IntArray, signals: Mapping[str, Any]) -> Context:
        """Return the context of the next step for the examples in `rows`. signals: those that are given."""
        joined = self.joined
        self._check_declared(signals)
        joined.budgets.check_signals(signals.keys())
        known = {**joined.measures.signals(rows), **signals}
        return Context(
            step=self.progress.next_step,
            epoch=self.epoch,
            at=self.today(),
            exposures=joined.roster.exposures(rows),
            signals=known,
            spent=joined.budgets.spent(),
        )

    def _check_declared(self, signals: Mapping[str, Any]) -> None:
        """Raise ExampleError for a signal that the policy does not declare: its rules would not read it."""
        declared = [signal.name for signal in self.in_force.program.signals]
        for name in signals:
            if name not in declared:
                known = ", ".join(f"`{one}`" for one in declared) or "none"
                raise ExampleError(
                    f"the policy declares no signal `{name}`",
                    help=did_you_mean(str(name), declared) or f"declared: {known}",
                )

    def check_home(self, rows: IntArray) -> None:
        """Raise ExampleError where an example belongs to another rank."""
        keeping, roster = self.joined.keeping, self.joined.roster
        if not keeping.apart:
            return
        own = keeping.at_home(roster.commitments(rows))
        if not own.all():
            name = roster.names(rows[~own][:1])[0]
            raise ExampleError(
                f"the example `{name}` belongs to another rank of the job",
                help="propose only what `governor.at_home` says: an example's exposures are in one ledger",
            )

    def divisor(self, batch: int) -> float:
        """Return what the sum of the gradients of so many examples is divided by."""
        normaliser = self.joined.terms.normaliser
        if normaliser is not None:
            return normaliser
        # In a job how many examples there are is known only when all gradients are: then they are divided.
        return 1.0 if self.joined.keeping.apart else float(batch)
