"""What somebody can do to a ledger who holds a key: its own, an old one, or one of theirs.

Each gives lines, and what must come of them.
"""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from gradwarden.runtime.ledger.entries import compose, decode, encode_body
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from tests.campaign.genuine import (
    EVERY,
    NAMESAKE,
    RUN,
    THIEF,
    Genuine,
    genuine,
    rewritten,
    signed,
)
from tests.campaign.spellings import SPELLINGS
from tests.campaign.violations import CHANGES

ANYWHERE = -1


@dataclass
class Forgery:
    """Lines that somebody wrote in the place of a ledger, and what verification must say of them alone.

    statuses: one of these. at: the entry that must be named. codes: one of these; any where there are none.
    sidecar: the head put beside it.
    """

    base: Genuine
    lines: list[bytes]
    statuses: frozenset[str]
    at: int = ANYWHERE
    codes: frozenset[str] = field(default_factory=frozenset)
    sidecar: bytes | None = None


Forge = Callable[[Random, Genuine], Forgery]

TAMPERED, VIOLATION = frozenset({"TAMPERED"}), frozenset({"VIOLATION"})
FORMS = frozenset({"too_long", "not_json", "not_canonical", "not_an_entry", "unknown_kind", "wrong_shape"})


def signed_anew(lines: list[bytes], signer: Signer, origin: str, start: int = 0) -> list[bytes]:
    """Number, chain and sign lines anew from one on; what stands before is kept as it is."""
    tree, out = Tree(), list[bytes]()
    prev = "0" * 64
    for index, line in enumerate(lines):
        if index >= start:
            _, kind, _, body = decode(line)
            if kind == "head":
                body = {"note": signed(signer, origin, index, tree.root())}
            line = compose(kind, index, prev, encode_body(kind, body))
        out.append(line)
        prev = leaf_hash(line).hex()
        tree.append(bytes.fromhex(prev))
    return out


# --- keys that are not the ledger's -------------------------------------------------------------------------


def by_a_stranger(random: Random, base: Genuine) -> Forgery:
    """Sign all anew, or from some head on, with a key that `opened` does not name."""
    signer = random.choice((THIEF, NAMESAKE)) if base.name != "changed" else NAMESAKE
    lines, heads = base.lines, sorted(base.heads)
    start = random.choice((0, *heads))
    first = next(head for head in heads if head >= start)
    forged = signed_anew(lines, signer, base.origin, start)
    if first == heads[0] and base.name != "changed":
        return Forgery(base, forged, frozenset({"UNTRUSTED"}), first, frozenset({"unknown_key"}))
    return Forgery(base, forged, frozenset({"UNTRUSTED", "TAMPERED"}))


def key_substituted(random: Random, base: Genuine) -> Forgery:
    """Name another key in `opened`, in the place of the true one or beside it, and sign all with it."""
    signer = random.choice((THIEF, NAMESAKE))
    lines = base.lines
    _, kind, prev, body = decode(lines[0])
    others = [vkey for vkey in body["keys"] if vkey not in (RUN.public.vkey, signer.public.vkey)]
    body["keys"] = random.choice(
        (
            [signer.public.vkey, *others],
            [signer.public.vkey, *body["keys"]],
            [*body["keys"], signer.public.vkey],
        )
    )
    lines[0] = compose(kind, 0, prev, encode_body(kind, body))
    return Forgery(base, signed_anew(lines, signer, base.origin), frozenset({"UNTRUSTED", "TAMPERED"}))


def under_the_true_name(random: Random, base: Genuine) -> Forgery:
    """Rewrite the run, and pass off signatures by another key as those of the true one."""
    lines = signed_anew(base.lines, NAMESAKE, base.origin)
    true, false = RUN.public.key_id, NAMESAKE.public.key_id
    at = random.choice([*base.heads])
    _, kind, prev, body = decode(lines[at])
    start, _, blob = body["note"].rpartition(" ")
    raw = b64decode(blob).replace(false, true, 1)
    lines[at] = compose(kind, at, prev, encode_body(kind, {"note": f"{start} {b64encode(raw).decode()}\n"}))
    chained = [*lines[: at + 1], *_chained(lines, at + 1)]
    if base.name == "changed":
        return Forgery(base, chained, frozenset({"TAMPERED", "UNTRUSTED"}))
    return Forgery(base, chained, TAMPERED, min(base.heads), frozenset({"bad_signature"}))


def _chained(lines: list[bytes], start: int) -> list[bytes]:
    prev, out = leaf_hash(lines[start - 1]).hex(), []
    for index in range(start, len(lines)):
        _, kind, _, body = decode(lines[index])
        out.append(compose(kind, index, prev, encode_body(kind, body)))
        prev = leaf_hash(out[-1]).hex()
    return out


def by_an_old_key(random: Random, base: Genuine) -> Forgery:
    """Go on with a key that was handed over, or revoked, after that."""
    base = genuine("changed")
    lines = base.lines
    kinds = [decode(line)[1] for line in lines]
    handed_over, revoked = kinds.index("rotated"), kinds.index("revoked")
    signer, since = random.choice(((RUN, handed_over), (THIEF, revoked)))
    at = random.choice([head for head in base.heads if head > since])
    forged = signed_anew(lines, signer, base.origin, at)
    return Forgery(
        base,
        forged,
        TAMPERED,
        at,
        frozenset({"retired_key"} if signer is RUN else {"retired_key", "unknown_key"}),
    )


# --- the true key -------------------------------------------------------------------------------------------


def spelled_and_signed(random: Random, base: Genuine) -> Forgery:
    """Spell a line otherwise, and chain and sign all that follows with the true key."""
    if base.name == "changed":
        base = genuine("plain")
    lines = base.lines
    at = random.randrange(len(lines))
    lines[at] = random.choice([*SPELLINGS.values()])(random, lines[at])
    return Forgery(base, signed_anew(lines, base.signer, base.origin, at + 1), TAMPERED, at, FORMS)


def another_history(random: Random, base: Genuine) -> Forgery:
    """Write a run that could have been, with the true key: nothing in the file shows it."""
    base = genuine("plain") if base.name == "changed" else base
    entries = copy.deepcopy(base.entries())
    match random.randrange(5):
        case 0:
            body = random.choice([body for kind, body in entries if kind == "committed"])
            body["loss"] = f"{random.random():.6f}"
        case 1:
            body = random.choice([body for kind, body in entries if kind == "committed"])
            band = next(band for band, norm in body["norms"].items() if norm is not None)
            body["norms"][band] = f"{random.random() / 3:.6f}"
        case 2:
            entries[0][1]["at"] = f"2025-{random.randint(1, 12):02}-01T00:00:00+00:00"
        case 3:
            entries[0][1]["run"] = f"{random.getrandbits(128):032x}"
        case _:
            entries[0][1]["secret_commitment"] = random.randbytes(32).hex()
    return Forgery(base, rewritten(entries, base.signer, base.origin), frozenset({base.status}))


def rolled_back(random: Random, base: Genuine) -> Forgery:
    """Put the ledger back to how it stood at an earlier head."""
    at = random.choice(sorted(base.heads)[:-1])
    lines = base.lines[: at + 1 + random.choice((0, 0, 1))]
    beside = random.choice((None, base.heads[at]))
    return Forgery(base, lines, frozenset({"INCOMPLETE"}), len(lines), frozenset({"not_sealed"}), beside)


def violation(name: str) -> Forge:
    ledger, change = CHANGES[name]

    def forge(random: Random, _base: Genuine) -> Forgery:
        base = genuine(ledger)
        entries = copy.deepcopy(base.entries())
        place, codes = change(random, entries)
        # A head stands behind every so many entries.
        return Forgery(
            base, rewritten(entries, base.signer, base.origin), VIOLATION, place + place // EVERY, codes
        )

    return forge


FORGERIES: dict[str, tuple[float, Forge]] = {
    "signed by a stranger": (1.5, by_a_stranger),
    "key substituted": (1.5, key_substituted),
    "signed under the true name": (1.0, under_the_true_name),
    "signed by an old key": (1.0, by_an_old_key),
    "spelled otherwise and signed": (3.0, spelled_and_signed),
    "another history": (1.0, another_history),
    "put back": (1.0, rolled_back),
    **{name: (0.2, violation(name)) for name in CHANGES},
}
"""By name: how many of a hundred tamperings, and how they are made."""
