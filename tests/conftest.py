"""Shared test settings: deterministic hypothesis runs, bounded in time by example counts, not deadlines."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gradwarden",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("soak", settings.get_profile("gradwarden"), max_examples=5000)
settings.load_profile("gradwarden")
