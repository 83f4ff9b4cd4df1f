"""Shared test settings: deterministic hypothesis runs, bounded in time by example counts, not deadlines."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

from gradwarden.runtime.ledger import writer

settings.register_profile(
    "gradwarden",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("soak", settings.get_profile("gradwarden"), max_examples=5000)
settings.register_profile(
    "mutants", settings.get_profile("gradwarden"), phases=[Phase.explicit, Phase.generate]
)  # that it fails is enough: what it fails for need not be made small
settings.load_profile("gradwarden")


@pytest.fixture
def no_timed_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ledgers be signed only where a test says so, however slow the machine is."""
    monkeypatch.setattr(writer, "HEAD_SECONDS", 1e6)
