"""Compiles a checked policy to the program that is executed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gradwarden.policy.load import Policy
from gradwarden.policy.program import Program

if TYPE_CHECKING:
    from gradwarden.policy.model_map import ModelMap


def compile_policy(policy: Policy, model_map: ModelMap | None = None) -> Program:
    """Return the program of a policy, its bands bound to a model's parameters where a map is given.

    Raises PolicyError where the bands do not cover the model, each parameter exactly once.
    """
    if model_map is None:
        return policy.program
    from gradwarden.policy.model_map import bind

    bands = bind(policy.program.bands, model_map, policy.bands)
    return replace(policy.program, bands=bands, model_map=model_map.digest)
