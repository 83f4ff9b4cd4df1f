"""Whom a verifier believes: the keys of a log, and the witnesses who must have seen the same."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import KeyFileError
from gradwarden.runtime.ledger.keys import PublicKey, WitnessKey


@frozen
class Quorum:
    """How many of its members must vouch: at least `needed`. A member is a witness, or a quorum in turn."""

    needed: int
    members: tuple[WitnessKey | Quorum, ...]

    def met(self, by: Container[WitnessKey]) -> bool:
        """Return whether these witnesses are enough."""
        vouching = sum(m.met(by) if isinstance(m, Quorum) else m in by for m in self.members)
        return vouching >= self.needed

    def witnesses(self) -> Iterator[WitnessKey]:
        for member in self.members:
            if isinstance(member, Quorum):
                yield from member.witnesses()
            else:
                yield member

    def __str__(self) -> str:
        names = [f"({m})" if isinstance(m, Quorum) else m.name for m in self.members]
        if len(names) == 1:
            return names[0]
        return f"{self.needed} of {', '.join(names)}"


NOBODY = Quorum(0, ())
"""No witness is asked for."""


@frozen
class Trust:
    """Whom to believe.

    keys: of the log. quorum: of witnesses. origin: of the log that is meant; None: any that the keys sign.
    """

    keys: Sequence[PublicKey]
    quorum: Quorum = NOBODY
    origin: str | None = None

    @property
    def witnesses(self) -> tuple[WitnessKey, ...]:
        return tuple(self.quorum.witnesses())

    def after(self, vkeys: Iterable[str]) -> Trust:
        """Return the trust after the keys of the log have handed over to others.

        Raises KeyFileError where one of these is the key of a witness.
        """
        known = {key.vkey for key in self.keys}
        others = [PublicKey.from_vkey(vkey) for vkey in vkeys if vkey not in known]
        check_witnesses(self.witnesses, others)
        return replace(self, keys=[*self.keys, *others])


def check_witnesses(witnesses: Sequence[WitnessKey], keys: Sequence[PublicKey]) -> None:
    """Raise KeyFileError where one key is given under two names, or a witness signs the log itself.

    Such keys would be counted twice (https://c2sp.org/tlog-policy, section "Defining a witness").
    """
    owners: dict[bytes, str] = {key.raw: f"`{key.name}`, which signs the log itself" for key in keys}
    for witness in witnesses:
        if witness.raw in owners:
            raise KeyFileError(
                f"the witness `{witness.name}` has the key of {owners[witness.raw]}",
                help="a witness has a key of its own",
            )
        owners[witness.raw] = f"another witness, `{witness.name}`"
