"""What a rank of a job can decide apart from the others, and what it cannot.

A decision reads an example's own metadata and signals, the clock (step, epoch, date) and, in some policies,
what came of the example before. Of these only the last can depend on other ranks. So a policy that counts
exposures needs every example to have one home (`by_example`): then all that ever came of it is in one ledger.
What joins the examples of a batch, or of a run, over the ranks is refused here: rehearsal and other terms of
`maintain` rules, and the signals that a run measures itself. Of privacy rules the budgets are the same on all
ranks, since every step is paid for; units are dealt out by a sampler, so that none of their examples has a
home.
"""

from __future__ import annotations

import numpy as np

from gradwarden.policy.context import IntArray
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import SIZE
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.jobs.layout import Placement
from gradwarden.runtime.privacy.accounting import privacy_rules

GATHERED = "give rank 0 a ledger, and no `job=`: then every rank decides the batch of all"


def check_apart(program: Program, placement: Placement) -> None:
    """Raise MaskError for a program that the ranks of a job cannot decide each for itself."""
    if program.maintained:
        raise MaskError(
            f"`{program.maintained[0].name}` maintains bands over the batch of all ranks", help=GATHERED
        )
    private = privacy_rules(program)
    if private and placement == "by_example":
        raise MaskError(
            f"the units of `{private[0].name}` are dealt out to the ranks by a sampler, which knows no homes",
            help=f'`Job(…, placement="anywhere")`, with a policy that counts no exposures; or {GATHERED}',
        )
    declared = {signal.name for signal in program.signals}
    measured = [signal.name for signal in KNOWN_SIGNALS if signal.name in declared]
    if measured:
        raise MaskError(
            f"the signal `{measured[0]}` is measured over the examples of all ranks", help=GATHERED
        )
    if placement == "anywhere" and partition(program).uses_exposures:
        raise MaskError(
            "the policy counts exposures, and an example may come to any rank of the job",
            help='give each a home: `Job(…, placement="by_example")`, and propose what is `at_home`',
        )


def homes(commitments: bytes, ranks: int) -> IntArray:
    """Return the rank that each of some joined commitments belongs to (`layout.home`): int64 [N]."""
    words = np.frombuffer(commitments, ">u8")[:: SIZE // 8]
    return (words % np.uint64(ranks)).astype(np.int64)
