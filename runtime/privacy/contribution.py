"""What a contributor of data signs: for which class of data, with how much noise at least, and how long.

The attestation is a C2SP signed note over six lines, by the contributor's own key, whose name is the
contributor's:

    gradwarden contribution
    contributor clinic-7
    class phi
    noise at least 1.5
    from 2026-01-01
    until 2027-01-01

`attested` checks the signature once, when the data are prepared, and puts what was signed into an example's
metadata. All else is the policy's to decide, in each step and on record: whether the attestation is in force
on that day, and whether its bound is above the floor of the corpus.

Noise is meant as in `noise at most`: the standard deviation of what is added to the sum of clipped gradients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Literal, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import open_note, sign_note

Standing: TypeAlias = Literal["good", "missing", "bad", "other"]
"""Of an example's attestation: good; none; its signature or form does not hold; it is for other data."""

MAX_NOTE_BYTES = 1 << 12

_FORM = re.compile(
    r"gradwarden contribution\n"
    r"contributor (?P<contributor>\S{1,200})\n"
    r"class (?P<data_class>\S{1,200})\n"
    r"noise at least (?P<noise>(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,6})?)\n"
    r"from (?P<valid_from>[0-9]{4}-[0-9]{2}-[0-9]{2})\n"
    r"until (?P<valid_until>[0-9]{4}-[0-9]{2}-[0-9]{2})\n"
)


@frozen
class Contribution:
    """What is signed. noise: decimal text. valid_from: the first day; valid_until: the first day after."""

    contributor: str
    data_class: str
    noise: str
    valid_from: date
    valid_until: date

    def text(self) -> str:
        """Return the text that the signature covers."""
        return (
            "gradwarden contribution\n"
            f"contributor {self.contributor}\n"
            f"class {self.data_class}\n"
            f"noise at least {self.noise}\n"
            f"from {self.valid_from.isoformat()}\n"
            f"until {self.valid_until.isoformat()}\n"
        )


def sign_contribution(contribution: Contribution, signers: Iterable[Signer]) -> bytes:
    """Return the signed note. Raises NoteError for what `open_contribution` would not read."""
    _parse(contribution.text())
    return sign_note(contribution.text(), signers).encode()


def open_contribution(note: bytes, keys: Mapping[str, PublicKey]) -> Contribution:
    """Return what a contributor signed. keys: the key of each contributor, by their name.

    Raises NoteError where the note is malformed, the signature does not hold, or the contributor that it
    names did not sign it, whoever else did.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"an attestation has at most {MAX_NOTE_BYTES:,} bytes")
    verified = open_note(note, list(dict.fromkeys(keys.values())))
    found = _parse(verified.text)
    if keys.get(found.contributor) not in verified.keys:
        raise NoteError(f"`{found.contributor}` did not sign the attestation", fault="unknown_key")
    return found


def attested(
    record: Mapping[str, Any],
    note: bytes | None,
    keys: Mapping[str, PublicKey],
    *,
    contributor: str = "contributor",
    data_class: str = "class",
) -> dict[str, Any]:
    """Return an example's metadata, and what its attestation says.

    note: the attestation, None where there is none. contributor, data_class: the attributes that say whose
    the example is and of which class. Adds `attestation` (`Standing`), and where it is good `attested_noise`,
    `attested_from` and `attested_until`. What the record says of these itself does not count.
    """
    own = {name: value for name, value in record.items() if not name.startswith("attest")}
    if note is None:
        return {**own, "attestation": "missing"}
    try:
        found = open_contribution(note, keys)
    except NoteError:
        return {**own, "attestation": "bad"}
    if (record.get(contributor), record.get(data_class)) != (found.contributor, found.data_class):
        return {**own, "attestation": "other"}
    return {
        **own,
        "attestation": "good",
        "attested_noise": float(found.noise),
        "attested_from": found.valid_from,
        "attested_until": found.valid_until,
    }


def _parse(text: str) -> Contribution:
    """Read the text. Raises NoteError where printing what was read would not give the same text again."""
    match = _FORM.fullmatch(text)
    try:
        found = None if match is None else _contribution(match.groupdict())
    except ValueError:
        found = None
    if found is None or found.text() != text:
        raise NoteError(
            "the note is no attestation of a contribution",
            help="its lines are `contributor`, `class`, `noise at least`, `from` and `until`",
        )
    if found.valid_from >= found.valid_until:
        raise NoteError("the attestation ends before it begins")
    return found


def _contribution(fields: Mapping[str, str]) -> Contribution:
    return Contribution(
        fields["contributor"],
        fields["data_class"],
        fields["noise"],
        date.fromisoformat(fields["valid_from"]),
        date.fromisoformat(fields["valid_until"]),
    )
