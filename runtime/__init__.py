"""The training side: masks, gates, privacy, provenance and the ledger.

Names are loaded on first use, so that reading and verifying a ledger never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwarden.runtime.governor import Governor
    from gradwarden.runtime.jobs.job import Job
    from gradwarden.runtime.ledger.keys import Signer
    from gradwarden.runtime.ledger.ledger import Ledger
    from gradwarden.runtime.ledger.program_signature import Approvers
    from gradwarden.runtime.model_map import ModelMap
    from gradwarden.runtime.options import Measuring, Privacy

__all__ = ["Approvers", "Governor", "Job", "Ledger", "Measuring", "ModelMap", "Privacy", "Signer"]

_HOMES = {
    "Approvers": "ledger.program_signature",
    "Governor": "governor",
    "Job": "jobs.job",
    "Ledger": "ledger.ledger",
    "Measuring": "options",
    "ModelMap": "model_map",
    "Privacy": "options",
    "Signer": "ledger.keys",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
