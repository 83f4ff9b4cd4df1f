"""Compares a run with the one that it goes on from: what did the fine-tuning add to what the base held?

Each ledger stands by itself: ids are committed to under a secret of each run, so that no example of one can
be told in the other. Whoever holds both secrets and a list of ids can; without these only sums are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.provenance.queries import Queries
from gradwarden.runtime.records.base_run import is_base


@frozen
class Taken:
    """What some examples gave a model: how many they are, in how many uses, and their weight by band."""

    examples: int
    uses: int
    weights: dict[str, float]


@frozen
class Side:
    """One of two ledgers. size, root: the entries that its index covers. policies: in force, in order."""

    origin: str
    run: str
    size: int
    root: str
    policies: tuple[dict[str, Any], ...]
    whole: Taken


@frozen
class Linked:
    """What is known of the ids that were given. ids: how many.

    new, repeated: of those that the run learned from, the ones that the base had not learned from and the
    ones that it had; both as the run took them. left: how many only the base learned from. unlisted: examples
    that the run learned from and that no id names.
    """

    ids: int
    new: Taken
    repeated: Taken
    left: int
    unlisted: int


@frozen
class Added:
    """A run beside its base. linked: where the ids of examples are known.

    declared: whether the run's own ledger names this base; None: it names none.
    """

    base: Side
    run: Side
    linked: Linked | None
    declared: bool | None


def compare(base: Queries, run: Queries, pairs: Sequence[tuple[bytes, bytes]] | None = None) -> Added:
    """Compare a run with its base. pairs: each known example's commitments in the base and in the run."""
    whole = _side(run)
    if pairs is None:
        return Added(_side(base), whole, None, _declared(base, run))
    before = base.known([one for one, _ in pairs])
    after = run.known([one for _, one in pairs])
    new = [now for then, now in pairs if now in after and then not in before]
    repeated = [now for then, now in pairs if now in after and then in before]
    left = sum(then in before and now not in after for then, now in pairs)
    linked = Linked(
        len(pairs),
        Taken(*run.weight_of(new)),
        Taken(*run.weight_of(repeated)),
        left,
        whole.whole.examples - len(after),
    )
    return Added(_side(base), whole, linked, _declared(base, run))


def _declared(base: Queries, run: Queries) -> bool | None:
    """Whether a run's ledger names another as its base; None where it names none."""
    named = run.base()
    return None if named is None else is_base(base.index.ledger, base.index.origin, named)


def _side(queries: Queries) -> Side:
    index = queries.index
    return Side(
        index.origin,
        index.run,
        index.size,
        index.root,
        tuple(queries.programs()),
        Taken(*queries.weight_of()),
    )
