"""A campaign of crashes: whatever happens to a writer or its disk, no promise is broken.

    python -m tests.campaign.crashes --kills 1000 --images 20000 --faults 2000 --seed 1 --out crashes.json

Kills: a writer is killed by SIGKILL at a random moment, and the next one goes on with what it left. Images:
the power fails at a random call, and the disk holds what it may hold then (`disk`), once and once more during
the recovery. Sweep: one run is cut off at every byte that it wrote. Faults: a call fails (the disk is full,
broken, read-only, permissions are lost), once for each call of a run and at random. Limits: the kernel itself
refuses to write on. Clocks: time leaps while a ledger is written. After each:

- every entry that a caller was told is durable is there, with what it said;
- the ledger is opened again, goes on, and verifies; no signature speaks of what is not there;
- after a failure nothing is promised any more: every later call is an error (GW600);
- a second writer is refused (GW601) as long as the first one lives.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

from gradwarden.runtime.errors import LedgerBusy, LedgerError
from gradwarden.runtime.ledger import recovery, sidecar, storage
from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from tests.campaign.disk import Ack, Image, Trace, after_crash, prefixes, recorded
from tests.campaign.genuine import RUN, workplace
from tests.campaign.tampering import WrongVerdictError, require

DURABILITIES = ("every", "group", "os")
HEADS = 20
"""Entries after which a head is due."""

RECORD = struct.Struct("<qq")
"""A promise on its way from a writer: index and number."""

TOTALS = {"steps": 0, "committed": 0, "refused": 0, "examples": 0}
MAX_FINDINGS = 50
LONGEST = 0.08
"""Seconds after which a writer is killed at the latest."""

LEDGERS = 25
"""Kills after which a ledger is sealed and another begun."""

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM, errno.EFBIG)

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


# --- kills --------------------------------------------------------------------------------------------------


def writer(path: Path, durability: Any, number: int, promises: int, seed: int) -> NoReturn:
    """Write until killed; say on a pipe what was promised. Runs in a process of its own."""
    random = Random(seed)
    ledger = Ledger.open(path, RUN, durability)
    while True:
        number = write_on(
            ledger,
            number,
            random.choice((1, 1, 3, 30, 200)),
            lambda ack: tell(promises, ack),
        )


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


def kills(campaign: Campaign, count: int, seed: int) -> None:
    random = Random(f"kills:{seed}")
    promised: Promises = {}

    def kill(number: int) -> None:
        durability = DURABILITIES[number % 3]
        with forked(lambda pipe: writer(campaign.path, durability, 1_000 * number, pipe, number)) as (
            child,
            pipe,
        ):
            if number % 4:  # else it may be killed while it starts
                promised.update([RECORD.unpack(os.read(pipe, RECORD.size))])
            if number % 10 == 9:
                refused_as_second(campaign)
            time.sleep(random.uniform(0, LONGEST))
            os.kill(child, signal.SIGKILL)
            told = read_promises(pipe)
        promised.update(told)
        campaign.seen["promises before a kill"] += len(told)
        campaign.seen["killed before any promise of its own"] += not told and number % 4 == 0
        report = verify_chain(campaign.path, [RUN.public]) if campaign.path.exists() else None
        if report is not None:
            require(report.status in ("INCOMPLETE", "UNTRUSTED"), f"a killed writer left it {report.status}")
            require(report.size > max(promised, default=-1), "a promised entry is not there")
        if number % LEDGERS == LEDGERS - 1:
            campaign.check(promised)
            Ledger.open(campaign.path, RUN).close(TOTALS)
            require(verify_chain(campaign.path, [RUN.public]).status == "OK", "sealed, it does not verify")
            promised.clear()
            campaign.clean()

    with patch.object(writer_module, "HEAD_ENTRIES", 200):
        for number in range(count):
            campaign.attempt("kills", number, lambda number=number: kill(number))  # type: ignore[misc]
    campaign.clean()


def refused_as_second(campaign: Campaign) -> None:
    """Try to write to a ledger that another process writes."""
    try:
        Ledger.open(campaign.path, RUN)
    except LedgerBusy:
        campaign.seen["second writers refused"] += 1
        return
    raise WrongVerdictError("a second writer was let in")


# --- what a disk may hold -----------------------------------------------------------------------------------


def trace_of(campaign: Campaign, random: Random, start: Image | None, *, seal: bool) -> Trace:
    """Write a run, or go on with what is there, and return what was asked of the disk."""
    trace: Trace = []
    campaign.clean()
    if start is not None:
        start.put(campaign.path)
    durability: Any = random.choice(DURABILITIES)
    with recorded(trace), patch.object(writer_module, "HEAD_ENTRIES", random.choice((HEADS, 1_000))):
        ledger = Ledger.open(campaign.path, RUN, durability)
        number = 1_000 * len(ledger)
        for _ in range(random.randint(1, 4)):
            # Under `os` only a head makes entries stand through a power cut.
            told: Any = (lambda ack: None) if durability == "os" else trace.append
            number = write_on(ledger, number, random.choice((1, 2, 10, 40)), told)
        ledger.close(TOTALS if seal else None)
    return trace


def power_cuts(campaign: Campaign, count: int, seed: int) -> None:
    """Cut the power at random calls; each trace serves for some images."""
    images = 0
    number = seed
    while images < count:
        random = Random(f"images:{number}")
        trace = trace_of(campaign, random, None, seal=random.randrange(4) == 0)
        for _ in range(min(25, count - images)):
            campaign.attempt("images", f"{number}/{images}", lambda: power_cut(campaign, random, trace))  # noqa: B023
            images += 1
        number += 1


def power_cut(campaign: Campaign, random: Random, trace: Trace) -> None:
    before = trace[: random.randint(0, len(trace))]
    promised = {event.index: event.number for event in before if isinstance(event, Ack)}
    image = after_crash(random, before, Image(b"", None))
    if random.randrange(3) == 0:
        image = crashed_again(campaign, random, image, promised)
    campaign.clean()
    image.put(campaign.path)
    campaign.seen["images with holes"] += b"\0" in image.content
    campaign.check(promised)


def crashed_again(campaign: Campaign, random: Random, image: Image, promised: Promises) -> Image:
    """Recover from a crash and go on, and cut the power again; add what was promised meanwhile."""
    try:
        trace = trace_of(campaign, random, image, seal=False)
    except LedgerError as error:
        if error.message != "the ledger is sealed":
            raise
        return image
    before = trace[: random.randint(0, len(trace))]
    promised.update({event.index: event.number for event in before if isinstance(event, Ack)})
    campaign.seen["crashes in a recovered ledger"] += 1
    return after_crash(random, before, image)


def sweep(campaign: Campaign, seed: int) -> None:
    """Cut one run off at every byte."""
    random = Random(f"sweep:{seed}")
    trace = trace_of(campaign, random, None, seal=True)
    for number, (image, told) in enumerate(prefixes(trace, Image(b"", None))):
        campaign.clean()
        image.put(campaign.path)
        promised = {ack.index: ack.number for ack in told}
        campaign.attempt("every byte", number, lambda: campaign.check(promised))  # noqa: B023


# --- calls that fail ----------------------------------------------------------------------------------------

CALLS = ("open", "write", "fdatasync", "fsync", "ftruncate", "replace", "close")


class FailingSystem:
    """The system's calls, one of which fails: the one with this number among those of one name."""

    def __init__(self, call: str, number: int, code: int, share: float) -> None:
        self._call, self._left, self._code, self._share = call, number, code, share
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        genuine = getattr(os, name)
        if name != self._call:
            return genuine

        def call(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left >= 0:
                return genuine(*arguments, **named)
            self.failed = True
            self._left = 1 << 30  # once: whoever goes on regardless would succeed
            if name == "write":
                handle, data = arguments
                genuine(handle, bytes(data[: int(len(data) * self._share)]))
            if name == "close":
                genuine(*arguments)
            raise OSError(self._code, os.strerror(self._code))

        return call


def faults(campaign: Campaign, count: int, seed: int) -> None:
    for number in range(seed, seed + count):
        random = Random(f"faults:{number}")
        campaign.attempt("faults", number, lambda: fault(campaign, random))  # noqa: B023


def fault(campaign: Campaign, random: Random) -> None:
    """Let one call fail while a ledger is opened, written, closed."""
    campaign.clean()
    promised: Promises = {}
    if random.randrange(2):  # a ledger that is gone on with, with a torn tail perhaps
        trace = trace_of(campaign, random, None, seal=False)
        promised.update({event.index: event.number for event in trace if isinstance(event, Ack)})
        with campaign.path.open("ab") as file:
            file.write(random.choice((b"", b'{"body":')))
    system = FailingSystem(
        random.choice(CALLS), random.choice((0, 0, 1, 2, 3, 5, 8, 13)), random.choice(ERRORS), random.random()
    )
    failures = 0
    with (
        patch.object(writer_module, "HEAD_ENTRIES", HEADS),
        patch.object(storage, "os", system),
        patch.object(sidecar, "os", system),
        patch.object(recovery, "os", system),
    ):
        try:
            ledger = Ledger.open(campaign.path, RUN, random.choice(DURABILITIES))
        except (LedgerError, OSError) as error:
            require(isinstance(error, LedgerError), f"not told in words: {error!r}")
            campaign.seen["failed on opening"] += 1
        else:
            failures = write_until_it_fails(ledger, random, promised, system)
    campaign.seen["failed in writing"] += failures > 0
    campaign.seen["no call failed"] += not system.failed
    if campaign.path.exists():
        campaign.check(promised)


def write_until_it_fails(ledger: Ledger, random: Random, promised: Promises, system: FailingSystem) -> int:
    """Write, and hold that nothing is promised after a failure. Return how many calls were refused."""
    refused = 0

    def promise(ack: Ack) -> None:
        promised[ack.index] = ack.number

    number = 50_000
    for _ in range(12):
        try:
            number = write_on(ledger, number, random.choice((1, 5, 30)), promise)
        except LedgerError:
            refused += 1
        else:
            require(not refused, "after a failure an entry was promised")
    with suppress(LedgerError):
        ledger.close()
        require(not refused, "after a failure the ledger was closed as if nothing had been")
    ledger.close()
    return refused


def limits(campaign: Campaign, count: int, seed: int) -> None:
    """Let the kernel refuse: files of a limited size, folders that may not be written."""
    for number in range(seed, seed + count):
        random = Random(f"limits:{number}")
        for sort, limit in (("file size limits", limit_size), ("permissions lost", lose_permission)):
            campaign.attempt(sort, number, lambda limit=limit: limited(campaign, random, limit))  # type: ignore[misc]  # noqa: B023


def limit_size(random: Random, _folder: Path) -> None:
    size = random.choice((0, 100, 1_000, 5_000, 20_000, 60_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def lose_permission(_random: Random, folder: Path) -> None:
    """Let the folder be read only, for somebody who is not root."""
    os.chmod(folder, 0o555)
    if os.getuid() == 0:
        os.setuid(65_534)


def limited(campaign: Campaign, random: Random, limit: Callable[[Random, Path], None]) -> None:
    campaign.clean()
    folder, early = campaign.folder, random.randrange(3) == 0

    def work(pipe: int) -> None:
        if early:
            limit(random, folder)
        ledger = Ledger.open(campaign.path, RUN, random.choice(("every", "group")))
        number = 0
        for turn in range(30):
            if turn == 2 and not early:
                limit(random, folder)
            number = write_on(ledger, number, 20, lambda ack: tell(pipe, ack))

    with forked(lambda pipe: told_in_words(work, pipe)) as (_, pipe):
        promised = read_promises(pipe)
    os.chmod(folder, 0o755)
    require(promised.pop(-1, None) is not None, "the writer was not stopped, or not in words")
    campaign.seen["stopped by the kernel"] += 1
    if campaign.path.exists():
        campaign.check(promised)


def told_in_words(work: Callable[[int], None], pipe: int) -> None:
    """Run a writer that must be stopped by a LedgerError, and say so."""
    try:
        with patch.object(writer_module, "HEAD_ENTRIES", HEADS):
            work(pipe)
    except LedgerError:
        os.write(pipe, RECORD.pack(-1, 0))


def clocks(campaign: Campaign, count: int, seed: int) -> None:
    for number in range(seed, seed + count):
        random = Random(f"clocks:{number}")
        campaign.attempt("clocks", number, lambda: leaping(campaign, random))  # noqa: B023


def leaping(campaign: Campaign, random: Random) -> None:
    """Write while the clock leaps, forwards and back."""
    campaign.clean()
    now = [time.monotonic()]

    def clock() -> float:
        if random.random() < 0.2:
            now[0] += random.choice((0.001, 1.0, 3_600.0, 1e9, -1.0, -3_600.0, -1e9))
        return now[0]

    promised: Promises = {}
    with patch.object(writer_module.time, "monotonic", clock):
        ledger = Ledger.open(campaign.path, RUN, random.choice(DURABILITIES))
        number = 0
        for _ in range(10):
            number = write_on(
                ledger, number, random.choice((1, 10)), lambda ack: promised.update({ack.index: ack.number})
            )
        ledger.close()
    campaign.check(promised)


def run(given: argparse.Namespace) -> Campaign:
    with workplace() as folder:
        os.chmod(folder, 0o755)
        campaign = Campaign(folder)
        kills(campaign, given.kills, given.seed)
        power_cuts(campaign, given.images, given.seed)
        if given.sweep:
            sweep(campaign, given.seed)
        faults(campaign, given.faults, given.seed)
        limits(campaign, given.limits, given.seed)
        clocks(campaign, given.clocks, given.seed)
    return campaign


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, count in (
        ("kills", 1_000),
        ("images", 20_000),
        ("faults", 2_000),
        ("limits", 100),
        ("clocks", 200),
    ):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--sweep", action="store_true", help="cut one run off at every byte, besides")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the report")
    given = parser.parse_args(arguments)
    campaign = run(given)
    report = json.dumps(campaign.report(), indent=1)
    if given.out is not None:
        given.out.write_text(report + "\n", "utf-8")
    print(json.dumps({key: value for key, value in campaign.report().items() if key != "findings"}))
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
