"""Calls that fail: injected errors, limits of the kernel, clocks that leap."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger import durable, recovery, storage
from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.ledger import Ledger
from tests.campaign.disk import Ack
from tests.campaign.genuine import RUN
from tests.campaign.power import trace_of
from tests.campaign.promises import (
    DURABILITIES,
    HEADS,
    RECORD,
    Campaign,
    Promises,
    forked,
    read_promises,
    tell,
    write_on,
)
from tests.campaign.tampering import require

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM, errno.EFBIG)

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
        patch.object(durable, "os", system),
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
    ledger.close()  # for the second time: it does nothing
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
        if random.random() < 0.5:
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
