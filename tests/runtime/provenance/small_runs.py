"""Small ledgers with everything in them that an index must get right, and a slow reading of them."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.evidence.tally import tally_ledger
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.records.history import History
from tests.cli.conftest import DIGEST, OPENED, decision

BANDS = ("shallow", "deep")

DECISIONS = [
    {**decision(0, "admit", "granted"), "weights": [1_000_000, 1_000_000]},
    {**decision(1, "limit", "granted", "capped"), "weights": [500_000, 0]},
    {**decision(2, "refuse", "granted", "closed"), "weights": [0, 0]},
    {
        **decision(3, "limit", "granted"),
        "weights": [250_000, 125_000],
        "advisory": ["asked"],
        "waived": ["capped"],
    },
    {**decision(4, "defer", "later", "closed"), "weights": [0, 0]},
    {**decision(5, "admit", "granted", "people"), "obligations": [["privacy", "people"]]},
]


COMMITTER = Committer(bytes(32))


def commitment(example: int) -> bytes:
    return COMMITTER.commit(f"e{example}")


class Writer:
    """Appends the steps of one run, as a governor would."""

    def __init__(
        self, path: Path, signer: Signer, seed: int, examples: int = 12, *, recording: bool = False
    ) -> None:
        """recording: whether some steps say what examples added, and how far bands moved."""
        self.path, self.signer = path, signer
        self.chance = random.Random(seed)
        self.recording, self.amounts = recording, random.Random(seed + 1)
        self.examples = examples
        self.next_step = self.committed = self.refused = 0
        self.open()
        opened = {**OPENED, "secret_commitment": COMMITTER.secret_commitment}
        self.ledger.append("opened", {**opened, "keys": [signer.public.vkey]})
        self.declare(list(DECISIONS))

    def open(self) -> None:
        self.ledger = Ledger.open(self.path, self.signer, durability="os", origin="gradwarden/test")

    def declare(self, decisions: list[dict[str, Any]]) -> None:
        self.declared, self.known = decisions, len(decisions)
        numbered = [{**body, "id": number} for number, body in enumerate(decisions)]
        self.ledger.append("decisions", {"decisions": numbered})

    def propose(self, count: int, *, apart: bool = False) -> None:
        """Record an intent; its commitments in entries of their own if asked."""
        chosen = [self.chance.randrange(self.examples) for _ in range(count)]
        packed = b64encode(b"".join(map(commitment, chosen))).decode()
        self.decided = [self.chance.randrange(self.known) for _ in range(count)]
        body = {
            "step": self.next_step, "epoch": self.next_step // 10, "today": None, "count": count,
            "commitments": "" if apart else packed, "classes": [0] * count, "exposures": None, "signals": {},
            "slots": {}, "spent": [], "decision": self.decided,
            "verdict": "limit",
        }  # fmt: skip
        if apart:
            self.ledger.append("examples", {"step": self.next_step, "part": 0, "commitments": packed})
        self.ledger.append("step", body)
        self.next_step += 1

    def record(self) -> None:
        """Say of the step in hand what its examples added, two to an entry; then each band's move."""
        step = self.next_step - 1
        decided = [self.declared[number] for number in self.decided]
        for first in range(0, len(decided), 2):
            part = decided[first : first + 2]
            norms = {band: [self._norm(one, place) for one in part] for place, band in enumerate(BANDS)}
            self.ledger.append("contributed", {"step": step, "first": first, "norms": norms})
        moves = {band: f"{self.amounts.random():.6g}" for band in BANDS}
        self.ledger.append("moved", {"step": step, "norms": moves})

    def _norm(self, decision: dict[str, Any], band: int) -> str | None:
        if decision["obligations"]:
            return None
        return f"{self.amounts.random():.4g}" if decision["weights"][band] else "0"

    def settle(self) -> None:
        step = self.next_step - 1
        if self.chance.random() < 0.2:
            self.refused += 1
            self.ledger.append(
                "refused", {"step": step, "gate": "gradient", "reason": "not_finite", "detail": "a loss"}
            )
        else:
            self.committed += 1
            if self.recording and self.amounts.random() < 0.6:
                self.record()
            self.ledger.append(
                "committed", {"step": step, "active": list(BANDS), "norms": {}, "loss": "1.5", "privacy": {}}
            )

    def train(self, steps: int, **how: Any) -> None:
        for _ in range(steps):
            self.propose(self.chance.randrange(5), **how)
            self.settle()

    def crash(self) -> None:
        """Stop in the middle of a step, and go on with decisions that are numbered anew."""
        self.propose(3)
        if self.recording:
            self.record()
        self.ledger.close()
        self.open()
        self.declare(DECISIONS[::-1])


def write_run(
    path: Path,
    signer: Signer,
    seed: int = 0,
    *,
    sealed: bool = True,
    tallied: bool = False,
    recording: bool = False,
) -> Path:
    writer = Writer(path, signer, seed, recording=recording)
    writer.train(20)
    writer.ledger.append(
        "checkpoint", {"step": 20, "file": "early.safetensors", "digest": DIGEST, "tensors": None}
    )
    writer.ledger.append("expired", {"step": 20, "rule": "closed", "count": 4})
    writer.train(4, apart=True)
    writer.crash()
    writer.train(20)
    policy = {"name": "changed", "version": 2, "digest": DIGEST}
    writer.ledger.append("policy_changed", {"policy": policy, "step": writer.next_step})
    writer.declare(DECISIONS[:3])
    writer.train(10)
    writer.ledger.append(
        "checkpoint",
        {"step": writer.next_step, "file": "late.safetensors", "digest": DIGEST, "tensors": None},
    )
    if tallied:
        writer.ledger.flush()
        writer.ledger.append("tallied", tally_ledger(path).body())
    if sealed:
        totals = {
            "steps": writer.next_step,
            "committed": writer.committed,
            "refused": writer.refused,
            "examples": 0,
        }
        writer.ledger.close(totals)
    else:
        writer.propose(2)
        if recording:
            writer.record()
        writer.ledger.close()
    return path


@dataclass(frozen=True)
class Use:
    """An example in a step, as a slow reading of the ledger finds it."""

    step: int
    entry: int
    commitment: str
    decision: dict[str, Any]
    outcome: str

    @property
    def learned(self) -> bool:
        return self.outcome in ("committed", "lost") and any(self.decision["weights"])

    def weight(self, band: str) -> int:
        return int(self.decision["weights"][BANDS.index(band)])


def read_uses(path: Path) -> Iterator[Use]:
    """Yield every use, entry by entry."""
    history, entry = History(), 0
    waiting: list[tuple[int, int, str, dict[str, Any]]] = []
    for found in read_entries(path):
        kind = found.kind
        if kind in ("committed", "refused", "resumed"):
            yield from (Use(*use, outcome="lost" if kind == "resumed" else kind) for use in waiting)
            waiting = []
        history.apply(kind, found.body)
        if kind == "step":
            entry, step = found.index, history.pending
            assert step is not None
            named = zip(step.commitments, step.body["decision"], strict=True)
            waiting = [
                (step.step, entry, one.hex(), dict(history.decisions[number])) for one, number in named
            ]
    yield from (Use(*use, outcome="open") for use in waiting)


@dataclass(frozen=True)
class Record:
    """What a step that was taken records: of an example in a band, or, without one, of the band's move."""

    step: int
    commitment: str
    band: str
    norm: float | None


def read_records(path: Path) -> Iterator[Record]:
    """Yield what steps that were taken record of contributions, entry by entry."""
    history = History()
    waiting: list[Record] = []
    for found in read_entries(path):
        kind, body = found.kind, found.body
        if kind in ("committed", "resumed"):
            yield from waiting
        history.apply(kind, body)
        if kind in ("step", "committed", "refused", "resumed"):
            waiting = []
        elif kind == "contributed":
            assert history.pending is not None
            for band, texts in body["norms"].items():
                for place, text in enumerate(texts, body["first"]):
                    decision = history.decisions[history.pending.body["decision"][place]]
                    if decision["weights"][BANDS.index(band)]:
                        name = history.pending.commitments[place].hex()
                        waiting.append(
                            Record(body["step"], name, band, None if text is None else float(text))
                        )
        elif kind == "moved":
            waiting += [Record(body["step"], "", band, float(text)) for band, text in body["norms"].items()]


def taken_steps(path: Path) -> set[int]:
    """Return the steps that were committed, or lost in a crash."""
    taken: set[int] = set()
    pending: int | None = None
    for found in read_entries(path):
        if found.kind in ("committed", "resumed") and pending is not None:
            taken.add(pending)
        if found.kind in ("step", "committed", "refused", "resumed"):
            pending = found.body["step"] if found.kind == "step" else None
    return taken
