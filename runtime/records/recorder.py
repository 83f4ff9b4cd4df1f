"""Writes a run's entries: what each kind of entry says, in one place.

Intent comes before effect: `propose` is durable before the optimizer moves (`settle` waits for it), the
outcome follows. Bodies hold commitments, class numbers and outcomes, never ids or metadata.
"""

from __future__ import annotations

import platform
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.evaluation.admission import Admitted
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.jobs.shares import WholeBatch
from gradwarden.runtime.ledger.entries import encode_body
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.unwritten import Unwritten
from gradwarden.runtime.weights.record import KIND as TENSORS
from gradwarden.runtime.weights.record import part_bodies, summary
from gradwarden.runtime.weights.tree import WeightTree

FORMAT = "gradwarden/ledger/1"

PROGRAM_CHUNK = 32_000
"""Characters of program text per `program` entry; an entry may not pass 65,535 bytes."""

INLINE_EXAMPLES = 256
"""Examples whose commitments fit in the step entry itself; more go into `examples` entries before it."""

EXAMPLES_PER_ENTRY = 1_000

CLASSES_PER_ENTRY = 500

DECISIONS_PER_ENTRY = 50


NORMS_PER_ENTRY = 4_000
"""Contributions per `contributed` entry: each takes some 12 bytes."""


class Recorder:
    """Appends the entries of one run to its ledger.

    sparing: a decision class is declared when an example of it is recorded, not when it becomes known, which
    would tell of examples that are not recorded.
    """

    def __init__(self, ledger: Ledger | Unwritten, sparing: bool = False) -> None:
        self._ledger = ledger
        self._sparing = sparing
        self._intent: int | None = None
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._known_classes: dict[int, Mapping[str, Any]] = {}
        self._class_numbers: dict[int, int] = {}

    def open(self, program: Program, facts: Mapping[str, Any], signature: bytes | None = None) -> None:
        """Record the start of a run: what it runs under. `facts` are the run's own fields of `opened`.

        signature: the signed note of the program, which is kept; None where it has none.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._ledger.append(
            "opened",
            {
                "format": FORMAT,
                "at": now,
                "policy": _identity(program),
                "model_map": program.model_map,
                "bands": list(program.band_names),
                "code": code_versions(),
                **facts,
            },
        )
        self._program(program, signature)

    def change_policy(self, program: Program, step: int, signature: bytes | None = None) -> None:
        """Record that another program is in force from `step` on. signature: as of `open`."""
        self._numbers.clear()
        self._known_classes.clear()
        self._class_numbers.clear()
        self._ledger.append("policy_changed", {"policy": _identity(program), "step": step})
        self._program(program, signature)

    def _program(self, program: Program, signature: bytes | None) -> None:
        text = program.to_json()
        chunks = [text[at : at + PROGRAM_CHUNK] for at in range(0, len(text), PROGRAM_CHUNK)]
        for part, chunk in enumerate(chunks):
            self._ledger.append(
                "program", {"digest": program.digest, "part": part, "parts": len(chunks), "text": chunk}
            )
        if signature is not None:
            self._ledger.append("approved", {"note": signature.decode()})

    def classes(self, classes: Sequence[Mapping[str, Any]]) -> None:
        """Record newly seen decision classes (`{id, bits}` or `{id, problems}`)."""
        if self._sparing:
            self._known_classes |= {described["id"]: described for described in classes}
        else:
            self._declare(classes)

    def _declare(self, classes: Sequence[Mapping[str, Any]]) -> None:
        for at in range(0, len(classes), CLASSES_PER_ENTRY):
            self._ledger.append("classes", {"classes": list(classes[at : at + CLASSES_PER_ENTRY])})

    def propose(self, admitted: Admitted, commitments: bytes, context: Context, verdict: str) -> None:
        """Record a step's intent: the inputs of every decision, and the decisions by number."""
        count = len(admitted.class_ids)
        numbers = self._class_ids(admitted.class_ids.tolist())
        inline = count <= INLINE_EXAMPLES
        body = {
            "step": context.step,
            "epoch": context.epoch,
            "today": context.today,
            "count": count,
            "commitments": b64encode(commitments).decode() if inline else "",
            "classes": numbers,
            "exposures": None if admitted.exposures is None else admitted.exposures.tolist(),
            "signals": {name: values.tolist() for name, values in admitted.signals.items()},
            "slots": {name: list(values) for name, values in admitted.slots.items()},
            "spent": sorted(context.spent),
            "decision": self._decisions(admitted),
            "verdict": verdict,
        }
        if not inline:
            _check_length(body)
            self._examples(commitments, context.step)
        self._intent = self._ledger.append("step", body)

    def _class_ids(self, known: list[int]) -> list[int]:
        """Return the numbers of classes in the ledger, declaring those that are not yet."""
        if not self._sparing:
            return known
        fresh = [number for number in dict.fromkeys(known) if number not in self._class_numbers]
        start = len(self._class_numbers)
        self._class_numbers |= {number: start + place for place, number in enumerate(fresh)}
        self._declare(
            [{**self._known_classes[number], "id": self._class_numbers[number]} for number in fresh]
        )
        return [self._class_numbers[number] for number in known]

    def settle(self) -> None:
        """Wait until the intent is durable. Raises LedgerError where it cannot be: then nothing may move."""
        if self._intent is not None:
            self._ledger.wait(self._intent)

    def commit(
        self,
        step: int,
        active: Sequence[str],
        norms: Mapping[str, str | None],
        loss: str | None,
        privacy: Mapping[str, Mapping[str, Any]],
        whole: WholeBatch | None = None,
    ) -> None:
        """Record that a step was taken. whole: of a rank of a job, what all ranks proposed."""
        self._intent = None
        self._ledger.append(
            "committed",
            {
                "step": step,
                "active": list(active),
                "norms": dict(norms),
                "loss": loss,
                "privacy": {rule: dict(spending) for rule, spending in privacy.items()},
                **({} if whole is None else {"batch": whole.count, "shares": list(whole.sums)}),
            },
        )

    def contributions(
        self, step: int, added: Mapping[str, Sequence[str | None]], moved: Mapping[str, str]
    ) -> None:
        """Record what a step adds. added: by band, the norm of each example's part of the band's gradient,
        None for private examples. moved: by band, the norm of its parameters' change.
        """
        count = len(next(iter(added.values())))
        size = max(1, NORMS_PER_ENTRY // len(added))
        for first in range(0, count, size):
            norms = {band: list(values[first : first + size]) for band, values in added.items()}
            self._ledger.append("contributed", {"step": step, "first": first, "norms": norms})
        self._ledger.append("moved", {"step": step, "norms": dict(moved)})

    def refuse(self, step: int, gate: str, reason: str, detail: str) -> None:
        self._intent = None
        body = {"step": step, "gate": gate, "reason": reason, "detail": detail[:2_000]}
        self._ledger.append("refused", body)

    def event(self, kind: str, body: Mapping[str, Any]) -> None:
        """Record an event beside the steps: `starved`, `halted`, `expired`, `checkpoint`."""
        self._ledger.append(kind, dict(body))

    def checkpoint(
        self, step: int, file: str, digest: str, tree: WeightTree, *, averaged: bool = False
    ) -> None:
        """Record weights that were saved before a step, tensor by tensor. averaged: they are an average."""
        for body in part_bodies(tree, step):
            self._ledger.append(TENSORS, body)
        told = summary(tree, averaged=averaged)
        self._ledger.append("checkpoint", {"step": step, "file": file, "digest": digest, "tensors": told})

    def _decisions(self, admitted: Admitted) -> list[int]:
        """Return the number of each example's decision; those not met before are recorded first."""
        used, index = np.unique(admitted.decision_ids, return_inverse=True)
        numbers: list[int] = []
        fresh: list[dict[str, Any]] = []
        for decision in (admitted.decisions[i] for i in used.tolist()):
            key = _recorded_fields(decision)
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                fresh.append({"id": self._numbers[key], **decision_body(decision)})
            numbers.append(self._numbers[key])
        for at in range(0, len(fresh), DECISIONS_PER_ENTRY):
            self._ledger.append("decisions", {"decisions": fresh[at : at + DECISIONS_PER_ENTRY]})
        return [numbers[i] for i in index.tolist()]

    def _examples(self, commitments: bytes, step: int) -> None:
        size = 32 * EXAMPLES_PER_ENTRY
        for part, at in enumerate(range(0, len(commitments), size)):
            chunk = b64encode(commitments[at : at + size]).decode()
            self._ledger.append("examples", {"step": step, "part": part, "commitments": chunk})


def _check_length(body: Mapping[str, Any]) -> None:
    """Raise EntryInvalid where a step has too many examples, before anything of it is recorded."""
    try:
        encode_body("step", body)
    except EntryInvalid as error:
        raise EntryInvalid(
            f"the ledger cannot hold a step of {body['count']:,} examples: {error.message}",
            help="propose fewer examples in one step",
        ) from error


def _recorded_fields(decision: Decision) -> tuple[Any, ...]:
    obligations = tuple((o.kind, o.rule) for o in decision.obligations)
    return (
        decision.verdict,
        decision.micro,
        decision.rules,
        decision.advisory,
        decision.waived,
        obligations,
    )


def decision_body(decision: Decision) -> dict[str, Any]:
    """Return what the ledger records of a decision; a verifier compares it with what the program gives."""
    return {
        "verdict": decision.verdict,
        "weights": list(decision.micro),
        "rules": list(decision.rules),
        "advisory": list(decision.advisory),
        "waived": list(decision.waived),
        "obligations": [[o.kind, o.rule] for o in decision.obligations],
    }


def code_versions() -> dict[str, str | None]:
    """Return the versions of what runs the training, None for what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("gradwarden", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _identity(program: Program) -> dict[str, Any]:
    return {"name": program.name, "version": program.version, "digest": program.digest}
