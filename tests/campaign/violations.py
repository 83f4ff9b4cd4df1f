"""Runs that the policy did not allow, as a holder of the true key could write them down.

Each change falsifies entries in place, and says which of them is at fault and how it must be told.
"""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from random import Random

from gradwarden.policy import compile_policy, parse_policy
from tests.campaign.genuine import HEAD, RULES, Body, Entries

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


def contributions_changed(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Say that examples of a step added less than they did, or something where they have no weight."""
    place, body = _some(random, entries, "contributed")
    band, norms = random.choice([(b, norms) for b, norms in body["norms"].items() if {*norms} - {"0"}])
    if random.randrange(2) or "0" not in norms:
        body["norms"][band] = ["0.001"] * len(norms) if "0" not in norms else ["0"] * len(norms)
    else:
        norms[norms.index("0")] = "0.3"
    return _outcome(entries, place), frozenset({"wrong_contribution"})


def contributions_left_out(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Leave out what a step should record of contributions, or a part of it."""
    place, _ = _some(random, entries, "contributed")
    less = random.choice((slice(place, place + 2), slice(place, place + 1), slice(place + 1, place + 2)))
    del entries[less]
    return _outcome(entries, place), frozenset({"wrong_contribution"})


def _outcome(entries: Entries, start: int) -> int:
    return next(place for place, (kind, _) in enumerate(entries) if place >= start and kind == "committed")


def other_totals(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place = len(entries) - 1
    name = random.choice(("steps", "committed", "refused", "examples"))
    entries[place][1][name] += random.choice((1, 7))
    return place, frozenset({"wrong_totals"})


def early_checkpoint(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    place, body = _some(random, entries, "checkpoint")
    body["step"] -= random.choice((1, 2))
    return place, frozenset({"wrong_step"})


def mark_changed(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Say that a run went back to other weights than it did, or abandoned other steps."""
    place, body = _some(random, entries, "rewound")
    match random.randrange(4):
        case 0:
            body["effective"] += random.choice((1, -1))
        case 1:
            body["abandoned"] = random.choice(([], [[0, body["step"]]], [*body["abandoned"], [90, 91]]))
        case 2:
            body["checkpoint"]["digest"] = random.randbytes(32).hex()
        case _:
            body["step"] += random.choice((1, -1))
    return place, frozenset({"wrong_rewind"})


def mark_left_out(random: Random, entries: Entries) -> tuple[int, frozenset[str]]:
    """Leave out that the run went back the first time; what it abandons the second time shows it."""
    first, second = (place for place, (kind, _) in enumerate(entries) if kind == "rewound")
    del entries[first]
    return second - 1, frozenset({"wrong_rewind"})


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
    "contributions changed": ("recorded", contributions_changed),
    "contributions left out": ("recorded", contributions_left_out),
    "totals changed": ("plain", other_totals),
    "checkpoint moved": ("plain", early_checkpoint),
    "mark of abandoned steps changed": ("rewound", mark_changed),
    "mark of abandoned steps left out": ("rewound", mark_left_out),
    "budget lowered": ("private", budget_lowered),
    "budget called spent": ("private", budget_spent),
    "budget widened": ("private", budget_widened),
}
"""By name: the ledger that is rewritten, and how."""
