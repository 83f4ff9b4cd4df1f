"""The run that another run goes on from, as the second one's ledger names it.

A `derived` entry, before the first step, names the ledger of the base by its origin and its last signed head
(size and root), and the weights that it saved last. It is the trainer's word that training began from these
weights; what the base itself was allowed to learn is in its own ledger, and stays there.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from gradwarden.runtime.errors import HeadMismatch
from gradwarden.runtime.evidence.prover import entries_of, last_head, prove_inclusion, root_over

KIND = "derived"


def describe_base(ledger: Path) -> dict[str, Any]:
    """Return the body of an entry that names a base. weights: None where the base saved none.

    Raises HeadMismatch where the ledger is not what its last head covers, ProofError where none is signed.
    """
    head = last_head(ledger)
    prove_inclusion(ledger, 0, head)
    size = head.checkpoint.size
    weights = None
    with closing(entries_of(ledger, {"checkpoint"})) as saved:
        for index, _, body in saved:
            if index < size:
                weights = body["digest"]
    return {
        "origin": head.checkpoint.origin,
        "size": size,
        "root": head.checkpoint.root.hex(),
        "weights": weights,
    }


def is_base(ledger: Path, origin: str, declared: dict[str, Any]) -> bool:
    """Whether a ledger, of this origin, is the one that a `derived` entry names."""
    if origin != declared["origin"]:
        return False
    try:
        return bool(root_over(ledger, declared["size"]).hex() == declared["root"])
    except HeadMismatch:
        return False
