"""Power cuts: a ledger is written, and the disk holds what it may hold where the power fails (`disk`)."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest.mock import patch

from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.ledger import Ledger
from tests.campaign.disk import Ack, Image, Trace, after_crash, prefixes, recorded
from tests.campaign.genuine import RUN
from tests.campaign.promises import DURABILITIES, HEADS, TOTALS, Campaign, Promises, write_on


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
