"""Checks what steps record of contributions, where the program asks one step in so many for it.

A chosen step that is committed must have, between its intent and its outcome, the norm of what each of its
examples added to each band's gradient (`contributed`), and how far each band was moved (`moved`); no other
step has them. Whether these are the norms that there were is not in the ledger. They must agree with what is:
nothing was added where an example has no weight, nothing is told of a private one, no band was moved that the
step did not reach, and no gradient has a norm above the sum of the norms that it is made of (the triangle
inequality). A norm that is too large to measure is recorded as `inf`. The code of what is found:
`wrong_contribution`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.policy.program import Program
from gradwarden.runtime.privacy.accounting import privacy_rules
from gradwarden.runtime.verification.violation import ViolationError, names, number

ROUNDING = 0.02
"""How far a norm may pass the sum of its parts: gradients in half precision are rounded, and their sums."""

LEAST = 1e-15
"""Up to which norms are not compared: the squares that they are made of are lost in single precision."""


class ContributionAudit:
    """Follows what one run records of contributions. Its methods raise ViolationError."""

    def __init__(self) -> None:
        self._every = 0
        self._bands: tuple[str, ...] = ()
        self._summed: tuple[str, ...] = ()
        """Bands whose gradient is a sum of what public examples of this ledger added, and of nothing else."""
        self._added: list[Mapping[str, Any]] = []
        self._told = 0
        """Of how many examples of the step at hand these entries tell."""
        self._moved: Mapping[str, str] | None = None
        self.steps = 0
        """Steps whose contributions agree with what they were decided to be."""

    def take_program(self, program: Program, *, together: bool) -> None:
        """Take the program that is in force from now on.

        together: whether the run is one rank of a job; then others add to its gradients.
        """
        noised = {band for rule in privacy_rules(program) for band in rule.bands}
        self._every, self._bands = program.recorded, program.band_names
        self._summed = () if together else tuple(sorted({*self._bands} - noised - program.pulled_bands))

    def accept(self, kind: str, body: Mapping[str, Any], count: int) -> None:
        """Take a `contributed` or a `moved` entry. count: of the step's examples; of more nothing is kept."""
        step = body["step"]
        if not self._asks(step):
            raise _violation(f"step {step} records contributions, and the policy does not ask it to")
        if body["norms"].keys() != {*self._bands}:
            raise _violation(f"step {step} does not say of each band what was added to it")
        if self._moved is not None:
            raise _violation(f"step {step} records more after how far it moved the bands")
        if kind == "moved":
            self._moved = body["norms"]
            return
        lengths = {len(column) for column in body["norms"].values()}
        if body["first"] != self._told or len(lengths) != 1 or 0 in lengths:
            raise _violation(f"step {step} records contributions out of turn")
        self._told += lengths.pop()
        if self._told > count:
            raise _incomplete(step, count)
        self._added.append(body)

    def check_refused(self, step: int) -> None:
        """Check that a refused step has added nothing."""
        if self._added or self._moved is not None:
            raise _violation(f"step {step} was refused, and records contributions")

    def check_outcome(
        self, intent: Mapping[str, Any], outcome: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]]
    ) -> None:
        """Check a committed step against what it records. decisions: all, by number."""
        step = intent["step"]
        if not self._asks(step):
            return
        if self._moved is None:
            raise _violation(f"step {step} does not record contributions, as the policy asks")
        if self._told != intent["count"]:
            raise _incomplete(step, intent["count"])
        taken = [decisions[number] for number in intent["decision"]]
        for band, name in enumerate(self._bands):
            added = [text for body in self._added for text in body["norms"][name]]
            total = sum(_parts(step, name, band, added, taken))
            norm = outcome["norms"][name]
            if name in self._summed and norm is not None and number(norm) > total * (1 + ROUNDING) + LEAST:
                raise _violation(
                    f"the gradient of `{name}` in step {step} has norm {norm}, above the {total:.4g} that "
                    "its examples are said to have added together"
                )
            moved = _norm(self._moved[name])
            if moved < 0 or (moved > 0 and name not in outcome["active"]):
                raise _violation(
                    f"step {step} is said to have moved `{name}` by {self._moved[name]}; it may move "
                    f"{names(outcome['active'])}"
                )
        self.steps += 1
        self.forget()

    def forget(self) -> None:
        """Forget what a step recorded that has its outcome, or gets none."""
        self._added, self._told, self._moved = [], 0, None

    def _asks(self, step: int) -> bool:
        return is_chosen(step, self._every)


def _parts(
    step: int, name: str, band: int, added: Sequence[str | None], taken: Sequence[Mapping[str, Any]]
) -> Iterator[float]:
    """Yield what public examples added to a band. taken: the decision on each example."""
    for place, (text, decision) in enumerate(zip(added, taken, strict=True)):
        private = any(kind == "privacy" for kind, _ in decision["obligations"])
        if private != (text is None):
            raise _violation(
                f"step {step}, example {place}: what it added to `{name}` is "
                + ("told, though it is private" if private else "not told")
            )
        part = 0.0 if text is None else _norm(text)
        if part < 0 or (part > 0 and not decision["weights"][band]):
            raise _violation(
                f"step {step}, example {place}: `{text}` added to `{name}`, without a weight there"
            )
        yield part


def _norm(text: str) -> float:
    """Return a recorded norm as a number. Raises ViolationError."""
    if text == "inf":
        return inf
    try:
        return number(text)
    except ViolationError as error:
        raise _violation(str(error)) from None


def _incomplete(step: int, count: int) -> ViolationError:
    return _violation(
        f"step {step} does not say of each of its {count} examples what it added, and of no other"
    )


def _violation(message: str) -> ViolationError:
    return ViolationError("wrong_contribution", message)
