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
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

from gradwarden.runtime.errors import LedgerBusy
from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.ledger import Ledger
from tests.campaign.failures import clocks, faults, limits
from tests.campaign.genuine import RUN, workplace
from tests.campaign.power import power_cuts, sweep
from tests.campaign.promises import (
    DURABILITIES,
    RECORD,
    TOTALS,
    Campaign,
    Promises,
    forked,
    read_promises,
    tell,
    write_on,
)
from tests.campaign.tampering import WrongVerdictError, require

LONGEST = 0.08
"""Seconds after which a writer is killed at the latest."""

LEDGERS = 25
"""Kills after which a ledger is sealed and another begun."""


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


def run(given: argparse.Namespace) -> Campaign:
    """Make all trials; the report is written anew after each part."""
    with workplace() as folder:
        os.chmod(folder, 0o755)
        campaign = Campaign(folder)
        for part, count in (
            (kills, given.kills),
            (faults, given.faults),
            (limits, given.limits),
            (clocks, given.clocks),
            *((power_cuts, share) for share in shares(given.images)),
        ):
            part(campaign, count, given.seed + campaign.counts["images"])
            write(given.out, campaign)
        if given.sweep:
            sweep(campaign, given.seed)
            write(given.out, campaign)
    return campaign


def shares(count: int, most: int = 1_000) -> list[int]:
    """Return a number in parts."""
    return [min(most, count - at) for at in range(0, count, most)]


def write(out: Path | None, campaign: Campaign) -> None:
    if out is not None:
        out.write_text(json.dumps(campaign.report(), indent=1) + "\n", "utf-8")


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
    print(json.dumps({key: value for key, value in campaign.report().items() if key != "findings"}))
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
