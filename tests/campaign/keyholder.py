"""What somebody can do to a ledger who holds a key: its own, an old one, or one of theirs.

Each gives lines, and what must come of them.
"""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.runtime.ledger.entries import compose, decode, encode_body
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from tests.campaign.genuine import (
    EVERY,
    HEAD,
    NAMESAKE,
    RULES,
    RUN,
    THIEF,
    Body,
    Entries,
    Genuine,
    genuine,
    rewritten,
    signed,
)
from tests.campaign.spellings import SPELLINGS

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


# --- runs that the policy did not allow, with the true key -------------------------------------------------

Change = Callable[[Random, Entries], tuple[int, frozenset[str]]]
"""Changes entries in place; returns the entry at fault, heads not counted, and how it must be told."""


def _some(random: Random, entries: Entries, kind: str) -> tuple[int, Body]:
    return random.choice([(place, body) for place, (k, body) in enumerate(entries) if k == kind])


def _step(random: Random, entries: Entries, least: int = 1) -> tuple[int, Body]:
    found = [(p, body) for p, (k, body) in enumerate(entries) if k == "step" and body["count"] >= least]
    return random.choice(found)


def _user(entries: Entries, start: int, decision: int) -> int:
    """Return the first step from an entry on that uses a decision, under the same policy."""
    return next(
        place
        for place, (kind, body) in enumerate(entries)
        if place > start and kind == "step" and decision in body["decision"]
    )


def _decision(random: Random, entries: Entries) -> tuple[int, Body]:
    place, body = _some(random, entries, "decisions")
    return place, random.choice(body["decisions"])


def nudged_weight(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, decision = _decision(random, entries)
    band = random.randrange(len(decision["weights"]))
    weight = decision["weights"][band]
    decision["weights"][band] = weight + random.choice((1, -1) if weight else (1, 500_000))
    return _user(entries, place, decision["id"]), frozenset({"wrong_decision"})


def other_verdict(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, decision = _decision(random, entries)
    others = [v for v in ("admit", "limit", "defer", "refuse", "invalid") if v != decision["verdict"]]
    decision["verdict"] = random.choice(others)
    return _user(entries, place, decision["id"]), frozenset({"wrong_decision"})


def rule_left_out(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, decision = _decision(random, entries)
    decision["rules"] = (
        ["permissive", *decision["rules"]] if random.randrange(2) else decision["rules"][:-1] or ["x"]
    )
    return _user(entries, place, decision["id"]), frozenset({"wrong_decision"})


def swapped_decision(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Give an example the decision of another."""
    steps = [(p, b) for p, (k, b) in enumerate(entries) if k == "step" and max(b["decision"], default=0) > 0]
    place, body = random.choice(steps)
    example = random.randrange(body["count"])
    body["decision"][example] = 0 if body["decision"][example] else max(body["decision"])
    return place, frozenset({"wrong_decision"})


def padded(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Let an example stand once more in its step, in every list."""
    place, body = _step(random, entries)
    example, at = random.randrange(body["count"]), body["count"]
    packed = b64decode(body["commitments"])
    body["commitments"] = b64encode(packed + packed[32 * example : 32 * example + 32]).decode()
    for name in ("classes", "exposures", "decision"):
        body[name].insert(at, body[name][example])
    body["count"] += 1
    return place, frozenset({"wrong_exposures"})


def replaced_example(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Pass an example off as another, which came before."""
    steps = [(p, b) for p, (k, b) in enumerate(entries) if k == "step" and any(b["exposures"])]
    place, body = random.choice(steps)
    example = next(at for at, count in enumerate(body["exposures"]) if count)
    packed = bytearray(b64decode(body["commitments"]))
    packed[32 * example : 32 * example + 32] = random.randbytes(32)
    body["commitments"] = b64encode(packed).decode()
    return place, frozenset({"wrong_exposures"})


def fewer_exposures(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, body = _step(random, entries)
    example = random.randrange(body["count"])
    before = body["exposures"][example]
    body["exposures"][example] = (
        before - 1 if before and random.randrange(2) else before + random.choice((1, 5))
    )
    return place, frozenset({"wrong_exposures"})


def other_class(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Say that an example has the metadata of another class."""
    steps = [(p, b) for p, (k, b) in enumerate(entries) if k == "step" and max(b["classes"], default=0) > 0]
    place, body = random.choice(steps)
    example = random.randrange(body["count"])
    body["classes"][example] = 0 if body["classes"][example] else max(body["classes"])
    return place, frozenset({"wrong_decision", "wrong_classes"})


def policy_swapped(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Put another policy in the place of the one that governed."""
    weight = random.choice(("0.25", "0.75", "0.499999", "1"))
    other = compile_policy(
        parse_policy(HEAD + RULES.replace("reach shallow at 0.5", f"reach shallow at {weight}"))
    )
    place = next(p for p, (kind, _) in enumerate(entries) if kind == "program")
    entries[place] = ("program", {"digest": other.digest, "part": 0, "parts": 1, "text": other.to_json()})
    entries[0][1]["policy"]["digest"] = other.digest
    changed = next(
        decision["id"]
        for kind, body in entries
        if kind == "decisions"
        for decision in body["decisions"]
        if decision["weights"] == [500_000, 0]
    )
    return _user(entries, place, changed), frozenset({"wrong_decision"})


def policy_altered(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Change the text of the policy and nothing else."""
    place, body = _some(random, entries, "program")
    body["text"] = body["text"].replace("500000", str(random.choice((400_000, 600_000))), 1)
    return place, frozenset({"program_damaged"})


def refused_became_committed(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place = next(
        p for p, (kind, body) in enumerate(entries) if kind == "refused" and body["gate"] == "admission"
    )
    bands = random.choice(([], ["shallow"], ["shallow", "deep"]))
    norms = {"shallow": "0.1" if bands else None, "deep": "0.1" if len(bands) == 2 else None}
    step = entries[place][1]["step"]
    entries[place] = (
        "committed",
        {"step": step, "active": bands, "norms": norms, "loss": "1", "privacy": {}},
    )
    return place, frozenset({"wrong_outcome"})


def step_left_out(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    steps = [p for p, (kind, _) in enumerate(entries) if kind == "step"][:-1]
    place = random.choice(steps)
    del entries[place : place + 2]
    later = (p for p, (kind, _) in enumerate(entries) if kind in ("step", "checkpoint") and p >= place)
    return next(later), frozenset({"wrong_step"})


def step_repeated(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, _ = _step(random, entries)
    entries[place + 2 : place + 2] = copy.deepcopy(entries[place : place + 2])
    return place + 2, frozenset({"wrong_step"})


def outcome_left_out(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place = random.choice([p for p, (kind, _) in enumerate(entries) if kind == "step"][:-1])
    del entries[place + 1]
    kinds = ("step", "checkpoint", "policy_changed")
    return next(p for p, (kind, _) in enumerate(entries) if kind in kinds and p > place), frozenset(
        {"wrong_step"}
    )


def other_bands(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, body = _some(random, entries, "committed")
    others = [["shallow"], ["deep"], ["shallow", "deep"], []]
    body["active"] = random.choice([bands for bands in others if bands != body["active"]])
    return place, frozenset({"wrong_outcome"})


def above_the_cap(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, body = _some(random, entries, "committed")
    body["norms"]["shallow"] = random.choice(("0.50001", "1e3", "nan", "-0.1", "0x1", "1e999"))
    return place, frozenset({"wrong_outcome"})


def other_totals(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place = len(entries) - 1
    name = random.choice(("steps", "committed", "refused", "examples"))
    entries[place][1][name] += random.choice((1, 7))
    return place, frozenset({"wrong_totals"})


def early_checkpoint(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, body = _some(random, entries, "checkpoint")
    body["step"] -= random.choice((1, 2))
    return place, frozenset({"wrong_step"})


def padded_by_a_stranger(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Add an example to a step that stands nowhere else. What is wrong then is the number of examples."""
    steps = [
        (p, b, b["exposures"].index(0))
        for p, (k, b) in enumerate(entries)
        if k == "step" and entries[p + 1][0] == "committed" and 0 in b["exposures"]
    ]
    weighty = {
        decision["id"]
        for kind, body in entries
        if kind == "decisions"
        for decision in body["decisions"]
        if any(decision["weights"])
    }
    _, body, example = random.choice([s for s in steps if s[1]["decision"][s[2]] in weighty])
    packed = b64decode(body["commitments"]) + sha256(random.randbytes(8)).digest()
    body["commitments"] = b64encode(packed).decode()
    for name, value in (("classes", None), ("exposures", 0), ("decision", None)):
        body[name].append(body[name][example] if value is None else value)
    body["count"] += 1
    return len(entries) - 1, frozenset({"wrong_totals"})


def budget_lowered(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Say that fewer private steps were paid for."""
    place, body = _some(random, entries, "committed")
    body["privacy"]["p"]["steps"] -= 1
    return place, frozenset({"wrong_budget"})


def budget_spent(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Say that the budget is spent, so that a step need not be paid for."""
    place, body = _step(random, entries)
    body["spent"] = ["p"]
    return place, frozenset({"wrong_budget", "wrong_decision"})


def budget_widened(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Change the terms of the budget in the opening."""
    terms = entries[0][1]["privacy"][0]
    name, value = random.choice((("epsilon", "30.0"), ("clip", "2.0"), ("delta", "0.1"), ("rule", "q")))
    terms[name] = value
    return next(p for p, (kind, _) in enumerate(entries) if kind == "program"), frozenset({"wrong_budget"})


CHANGES: dict[str, tuple[str, Change]] = {
    "weight nudged": ("plain", nudged_weight),
    "verdict changed": ("plain", other_verdict),
    "rule left out": ("plain", rule_left_out),
    "decision swapped": ("plain", swapped_decision),
    "example list padded": ("plain", padded),
    "example list padded by a stranger": ("plain", padded_by_a_stranger),
    "example replaced": ("plain", replaced_example),
    "exposures changed": ("plain", fewer_exposures),
    "class changed": ("plain", other_class),
    "policy swapped": ("plain", policy_swapped),
    "policy altered": ("plain", policy_altered),
    "refused step committed": ("plain", refused_became_committed),
    "step left out": ("plain", step_left_out),
    "step repeated": ("plain", step_repeated),
    "outcome left out": ("plain", outcome_left_out),
    "bands changed": ("plain", other_bands),
    "norm above the cap": ("plain", above_the_cap),
    "totals changed": ("plain", other_totals),
    "checkpoint moved": ("plain", early_checkpoint),
    "budget lowered": ("private", budget_lowered),
    "budget called spent": ("private", budget_spent),
    "budget widened": ("private", budget_widened),
}
"""By name: the ledger that is rewritten, and how."""


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
