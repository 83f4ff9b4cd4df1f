"""What campaigns of crashes share: a writer that makes promises, and how they are held against it."""

from __future__ import annotations

import os
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from tests.campaign.disk import Ack
from tests.campaign.genuine import RUN
from tests.campaign.tampering import WrongVerdictError, require

DURABILITIES = ("every", "group", "os")
HEADS = 20
"""Entries after which a head is due."""

RECORD = struct.Struct("<qq")
"""A promise on its way from a writer: index and number."""

TOTALS = {"steps": 0, "committed": 0, "refused": 0, "examples": 0}
MAX_FINDINGS = 50

Promises = dict[int, int]
"""What entries that were promised say, by index."""


def opened(ledger: Ledger) -> dict[str, Any]:
    return {
        "format": "gradwarden/ledger/1",
        "run": "5f",
        "origin": ledger.origin,
        "at": "2026-01-31T12:00:00+00:00",
        "policy": {"name": "small", "version": 1, "digest": "0" * 64},
        "model_map": "",
        "dataset": None,
        "bands": ["shallow", "deep"],
        "code": {"python": "3.11.7", "torch": None},
        "keys": [ledger.vkey],
        "engine": "split",
        "normaliser": None,
        "clip_norm": None,
        "secret_commitment": "0" * 64,
        "privacy": [],
    }


def outcome(number: int) -> dict[str, Any]:
    """Return an entry of a few hundred bytes that says a number."""
    norms = {f"band {place}": "0.25" for place in range(number % 17)}
    return {"step": number, "active": ["shallow"], "norms": norms, "loss": "2.5", "privacy": {}}


def write_on(ledger: Ledger, number: int, batch: int, promise: Callable[[Ack], None]) -> int:
    """Append some entries, wait for the last, and promise them; return the next number."""
    first = len(ledger)
    if not first:
        ledger.append("opened", opened(ledger))
    told = []
    for _ in range(batch):
        told.append(Ack(ledger.append("committed", outcome(number)), number))
        number += 1
    ledger.wait(told[-1].index)
    for ack in told:
        promise(ack)
    return number


@dataclass
class Campaign:
    """The state of a campaign: how many trials of each sort there were, and what was seen."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "run.ledger"

    def clean(self) -> None:
        for left in self.folder.iterdir():
            left.unlink()

    def attempt(self, sort: str, seed: object, trial: Callable[[], None]) -> None:
        """Make one trial."""
        self.counts[sort] += 1
        try:
            trial()
        except Exception as error:
            what = str(error) if isinstance(error, WrongVerdictError) else f"{type(error).__name__}: {error}"
            self.seen["findings"] += 1
            if len(self.findings) < MAX_FINDINGS:
                detail = "".join(traceback.format_exception(error))[-2_000:]
                self.findings.append({"sort": sort, "seed": str(seed), "what": what, "detail": detail})
                print(f"finding: {sort} {seed}: {what}", file=sys.stderr, flush=True)

    def check(self, promised: Promises) -> None:
        """Hold a ledger against what was promised, open it again, and verify what it is then."""
        recovered = reopened(self.path, self.seen)
        report = verify_chain(self.path, [RUN.public])
        require(
            report.status in ("OK", "INCOMPLETE"), f"recovered, it is {report.status} {report.findings[:1]}"
        )
        require(report.status == "OK" or recovered, "a sealed ledger does not verify")
        said = {e.index: e.body["step"] for e in read_entries(self.path) if e.kind == "committed"}
        lost = {index: number for index, number in promised.items() if said.get(index) != number}
        require(not lost, f"promised entries are lost: {dict(list(lost.items())[:3])}")

    def report(self) -> dict[str, Any]:
        return {"trials": self.counts, "seen": self.seen, "findings": self.findings}


def reopened(path: Path, seen: Counter[str]) -> bool:
    """Open a ledger and write on; False where it is sealed, and so complete."""
    try:
        ledger = Ledger.open(path, RUN, "os")
    except LedgerError as error:
        if error.message != "the ledger is sealed":
            raise
        seen["sealed before the crash"] += 1
        return False
    seen["torn tails set aside"] += ledger.cut_on_open > 0
    write_on(ledger, 0, 1, lambda ack: None)
    ledger.close()
    return True


def tell(pipe: int, ack: Ack) -> None:
    os.write(pipe, RECORD.pack(ack.index, ack.number))


@contextmanager
def forked(work: Callable[[int], object]) -> Iterator[tuple[int, int]]:
    """Run something in a process of its own; give its id and the pipe on which it tells. It ends with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        yield child, reading
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def read_promises(pipe: int) -> Promises:
    """Return all that a process that is gone had promised."""
    data = b""
    while chunk := os.read(pipe, 1 << 16):
        data += chunk
    whole = data[: len(data) // RECORD.size * RECORD.size]
    return dict(RECORD.iter_unpack(whole))
