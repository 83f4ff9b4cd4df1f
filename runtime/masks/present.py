"""What forward passes are bound to at present: a plan, an observer, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.recorder import Recorder
from gradwarden.runtime.masks.sites import Quiet


class Present:
    """The state of one engine between and in forward passes. quiet: whether there is nothing to do in one."""

    def __init__(self) -> None:
        self.quiet = Quiet()
        self._pending: Plan | None = None
        self._plan: Plan | None = None
        self._recorder: Recorder | None = None
        self._severed: frozenset[int] | None = None
        self._reached = 0  # the bands of the layers that were called so far, as a bit mask

    @property
    def pending(self) -> Plan | None:
        """The plan of the batch that is armed and not yet run."""
        return self._pending

    @pending.setter
    def pending(self, plan: Plan | None) -> None:
        self._pending = plan
        self._settle()

    @property
    def plan(self) -> Plan | None:
        """The plan of the last armed forward pass, as long as its graph may be differentiated."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan
        self._settle()

    def _settle(self) -> None:
        """Let layers, pieces and blocks be run as they are where each would be anyway."""
        busy = not (self._recorder is None and self._severed is None and self._pending is None)
        self.quiet.now = not busy and (self._plan is None or self._plan.trivial)

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Inside, supported layers run as if no engine were attached, and `recorder` sees each call."""
        self._recorder, self._reached = recorder, 0
        self._settle()
        try:
            yield
        finally:
            self._recorder = None
            self._settle()

    @contextmanager
    def severing(self, bands: frozenset[int]) -> Iterator[None]:
        """Inside, layers run as if no engine were attached, those of some bands on detached inputs."""
        self._severed = bands
        self._settle()
        try:
            yield
        finally:
            self._severed = None
            self._settle()
