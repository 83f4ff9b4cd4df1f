"""Checks that the entries of a run come in turn: a step, its outcome, and all else between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwarden.runtime.records.history import History, PendingStep
from gradwarden.runtime.verification.violation import ViolationError


def check_begin(body: Mapping[str, Any], history: History) -> None:
    """Check that a step comes after the outcome of the one before. Raises ViolationError `wrong_step`."""
    due, pending = history.next_step, history.pending
    if pending is not None:
        raise ViolationError("wrong_step", f"step {body['step']} begins before step {pending.step} has ended")
    if body["step"] != due:
        raise ViolationError("wrong_step", f"step {body['step']} comes where step {due} was due")


def check_part(body: Mapping[str, Any], history: History) -> None:
    """Check that commitments come before the step that they belong to. Raises ViolationError `wrong_step`."""
    due = (history.next_step, history.parts)
    if (body["step"], body["part"]) != due or history.pending is not None:
        raise ViolationError("wrong_step", "commitments come out of turn, or belong to another step")


def check_between(body: Mapping[str, Any], history: History, what: str) -> None:
    """Check that something happens between steps, at the one that it names. what: it happens, in words.

    Raises ViolationError `wrong_step`.
    """
    if body["step"] != history.next_step or history.pending is not None:
        raise ViolationError("wrong_step", f"{what} in the middle of a step or at another one")


def pending_step(body: Mapping[str, Any], history: History) -> PendingStep:
    """Return the step that an outcome belongs to. Raises ViolationError `wrong_outcome`."""
    pending = history.pending
    if pending is None or pending.step != body["step"]:
        raise ViolationError("wrong_outcome", f"an outcome of step {body['step']}, which was not proposed")
    return pending


def check_sealed(body: Mapping[str, Any], history: History) -> None:
    """Check the totals of a run, and that it ends between steps.

    Raises ViolationError: `wrong_totals`, `wrong_outcome`.
    """
    counted = {
        "steps": history.next_step,
        "committed": history.committed,
        "refused": history.refused,
        "examples": history.example_count,
    }
    if body != counted:
        raise ViolationError("wrong_totals", f"the seal says {dict(body)}; the entries add up to {counted}")
    if history.pending is not None:
        raise ViolationError("wrong_outcome", f"step {history.pending.step} has no outcome")
