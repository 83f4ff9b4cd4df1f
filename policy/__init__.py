"""The policy language: text -> syntax tree -> typed policy -> compiled program -> decisions. No torch.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwarden.policy.compile import compile_policy
    from gradwarden.policy.context import Context
    from gradwarden.policy.decision import Decision
    from gradwarden.policy.errors import Diagnostic, GradwardenError, PolicyError
    from gradwarden.policy.load import Policy, load_policy, parse_policy
    from gradwarden.policy.model_map import ModelMap
    from gradwarden.policy.program import Program
    from gradwarden.policy.syntax.format import format_policy

__all__ = [
    "Context",
    "Decision",
    "Diagnostic",
    "GradwardenError",
    "ModelMap",
    "Policy",
    "PolicyError",
    "Program",
    "compile_policy",
    "format_policy",
    "load_policy",
    "parse_policy",
]

_HOMES = {
    "Context": "context",
    "Decision": "decision",
    "Diagnostic": "errors",
    "GradwardenError": "errors",
    "ModelMap": "model_map",
    "Policy": "load",
    "PolicyError": "errors",
    "Program": "program",
    "compile_policy": "compile",
    "format_policy": "syntax.format",
    "load_policy": "load",
    "parse_policy": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
