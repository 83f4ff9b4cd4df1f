"""The solver: z3, which is an extra. Every module of this package takes it from here.

Importing this module raises ProverMissingError where z3 is not installed. z3 ships no types, so its
expressions are named here by what they stand for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from gradwarden.policy.errors import GradwardenError

__all__ = [
    "FALSE",
    "TRUE",
    "ProverMissingError",
    "Term",
    "Truth",
    "Whole",
    "conjunction",
    "disjunction",
    "negation",
    "solver",
    "z3",
]


class ProverMissingError(GradwardenError):
    """z3 is not installed."""

    code = "GW650"


try:
    import z3  # type: ignore[import-untyped, unused-ignore]  # z3 ships no types
except ImportError:
    raise ProverMissingError(
        "proving needs z3, which is not installed", help="pip install 'gradwarden[prove]'"
    ) from None

Truth: TypeAlias = Any
"""A z3 expression of sort Bool."""

Whole: TypeAlias = Any
"""A z3 expression of sort Int."""

Term: TypeAlias = Any
"""A z3 expression of any sort."""

TRUE: Truth = z3.BoolVal(True)
FALSE: Truth = z3.BoolVal(False)


def conjunction(terms: Iterable[Truth]) -> Truth:
    """Return the conjunction, with TRUE and FALSE folded away: most rules do not touch most bands.

    The two constants are known by identity; asking z3 what an expression is costs more than all the rest.
    """
    kept: list[Truth] = []
    for term in terms:
        if term is FALSE:
            return FALSE
        if term is not TRUE:
            kept.append(term)
    return kept[0] if len(kept) == 1 else z3.And(kept) if kept else TRUE


def disjunction(terms: Iterable[Truth]) -> Truth:
    """Return the disjunction, with TRUE and FALSE folded away."""
    kept: list[Truth] = []
    for term in terms:
        if term is TRUE:
            return TRUE
        if term is not FALSE:
            kept.append(term)
    return kept[0] if len(kept) == 1 else z3.Or(kept) if kept else FALSE


def negation(term: Truth) -> Truth:
    if term is TRUE:
        return FALSE
    return TRUE if term is FALSE else z3.Not(term)


def solver(timeout: float | None = None) -> Any:
    """Return a solver that gives the same answer each time; `timeout` is in seconds, per question."""
    made = z3.Solver()
    made.set("random_seed", 0)
    if timeout is not None:
        made.set("timeout", max(1, int(timeout * 1000)))
    return made
