"""The shape of each kind of entry, checked by hand because every entry of a ledger passes here.

`ledger.schema.json` is the published form of the same rules; tests hold the two together. Beyond the schema,
the lists of a `step` must fit each other, so that a reader may index them. Types are exact: a bool is no int,
and there are no floats anywhere, which is what makes the canonical JSON of an entry unique.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from functools import partial
from typing import Any

from gradwarden.runtime.ledger.value_shapes import (
    Shape,
    are_texts,
    is_digest,
    is_list_of,
    is_none_or,
    is_record,
    is_text,
)

COMMITMENT_SIZE = 32

_INT: frozenset[type] = frozenset({int})
_TEXT = frozenset({str})
_MAYBE_INT: frozenset[type] = frozenset({int, type(None)})
_MAYBE_TEXT = frozenset({str, type(None)})
_SCALAR: frozenset[type] = frozenset({int, str, bool, type(None)})
_GATES = frozenset({"admission", "gradient", "commit"})
_WEIGHTS = frozenset({"average", "model"})
_ACTIONS = frozenset({"report", "halt", "accept"})
_VERDICTS = frozenset({"admit", "limit", "defer", "refuse", "invalid"})


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _bits(value: Any) -> bool:
    return type(value) is str and value != "" and all(c in "0123456789abcdef" for c in value)


def _one_of(allowed: frozenset[str], value: Any) -> bool:
    return type(value) is str and value in allowed


def _exactly(expected: str, value: Any) -> bool:
    return type(value) is str and value == expected


def _counts(value: Any) -> bool:
    return type(value) is list and _INT.issuperset(map(type, value)) and (not value or min(value) >= 0)


def _span(value: Any) -> bool:
    return _counts(value) and len(value) == 2


def _map(shape: Shape, value: Any) -> bool:
    """A mapping with names for keys. Names are ASCII: there every sorting of keys agrees."""
    return type(value) is dict and all(k.isascii() and shape(v) for k, v in value.items())


def _pair(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _TEXT.issuperset(map(type, value))


def _norms(value: Any) -> bool:
    """A list of decimals as text, null where there is none."""
    return type(value) is list and _MAYBE_TEXT.issuperset(map(type, value))


def _packed(value: Any) -> int | None:
    """Return how many commitments a base64 string packs, None where it packs no whole number of them."""
    if type(value) is not str or not value.isascii():
        return None
    try:
        size = len(a2b_base64(value, strict_mode=True)) if value else 0
    except (Base64Error, ValueError):
        return None
    return size // COMMITMENT_SIZE if size % COMMITMENT_SIZE == 0 else None


_STEP = frozenset(
    [
        *("step", "epoch", "today", "count", "commitments", "classes", "exposures", "signals", "slots"),
        *("spent", "decision", "verdict"),
    ]
)
_DECISION = frozenset(("id", "verdict", "weights", "rules", "advisory", "waived", "obligations"))


def _column(values: Any, count: int, allowed: frozenset[type]) -> bool:
    """One value per example."""
    return type(values) is list and len(values) == count and allowed.issuperset(map(type, values))


def _columns(columns: Any, count: int, allowed: frozenset[type]) -> bool:
    """Named lists with one value per example."""
    if type(columns) is not dict:
        return False
    return all(name.isascii() and _column(values, count, allowed) for name, values in columns.items())


def _decision(value: Any) -> bool:
    if type(value) is not dict or value.keys() != _DECISION:
        return False
    weights, obligations = value["weights"], value["obligations"]
    rules, advisory, waived = value["rules"], value["advisory"], value["waived"]
    return (
        type(weights) is type(rules) is type(advisory) is type(waived) is type(obligations) is list
        and _count(value["id"])
        and _INT.issuperset(map(type, weights))
        and (not weights or min(weights) >= 0)
        and _TEXT.issuperset(map(type, rules))
        and (not advisory or _TEXT.issuperset(map(type, advisory)))
        and (not waived or _TEXT.issuperset(map(type, waived)))
        and (not obligations or all(map(_pair, obligations)))
        and _one_of(_VERDICTS, value["verdict"])
    )


def step(body: Any) -> bool:
    """A step's intent: the inputs of every decision, and the numbers of the decisions."""
    if type(body) is not dict or body.keys() != _STEP:
        return False
    count, today, classes, exposures = body["count"], body["today"], body["classes"], body["exposures"]
    decision = body["decision"]
    return (
        _count(count)
        and _count(body["step"])
        and _count(body["epoch"])
        and (today is None or type(today) is int)
        and _packed(body["commitments"]) in (count, 0)
        and _column(classes, count, _INT)
        and (exposures is None or _column(exposures, count, _INT))
        and _column(decision, count, _INT)
        and (not count or min(min(classes), min(decision), min(exposures or (0,))) >= 0)
        and _columns(body["signals"], count, _INT)
        and _columns(body["slots"], count, _SCALAR)
        and are_texts(body["spent"])
        and type(body["verdict"]) is str
    )


def _spending(value: Any) -> bool:
    return is_record({"steps": _count, "epsilon": is_text}, value)


_COMMITTED = frozenset(("step", "active", "norms", "loss", "privacy"))
_COMMITTED_FORMS = (_COMMITTED, _COMMITTED | {"batch"}, _COMMITTED | {"batch", "shares"})


def committed(body: Any) -> bool:
    """A step's outcome; of a rank of a job it says, too, how many examples all ranks proposed."""
    if type(body) is not dict or body.keys() not in _COMMITTED_FORMS:
        return False
    norms, loss = body["norms"], body["loss"]
    return (
        _count(body["step"])
        and are_texts(body["active"])
        and type(norms) is dict
        and _MAYBE_TEXT.issuperset(map(type, norms.values()))
        and all(map(str.isascii, norms))
        and (loss is None or type(loss) is str)
        and _map(_spending, body["privacy"])
        and _count(body.get("batch", 0))
        and ("shares" not in body or _span(body["shares"]))
    )


def _decision_class(value: Any) -> bool:
    known = {"id": _count, "bits": _bits}
    broken: dict[str, Shape] = {"id": _count, "problems": partial(is_list_of, _pair)}
    return is_record(known, value) or is_record(broken, value)


def _examples(body: Any) -> bool:
    fields: dict[str, Shape] = {"step": _count, "part": _count, "commitments": is_text}
    return is_record(fields, body) and _packed(body["commitments"]) is not None


def _tensor(value: Any) -> bool:
    """A tensor of a checkpoint: its name, type, shape and root."""
    if type(value) is not list or len(value) != 4:
        return False
    name, dtype, shape, root = value
    return type(name) is type(dtype) is str and _counts(shape) and is_digest(root)


def _checkpoint_tensors(value: Any) -> bool:
    """What a checkpoint says of its tensors: of all, or, as the first form of the format had it, of each."""
    whole: dict[str, Shape] = {
        "chunk": _count,
        "count": _count,
        "of": partial(_one_of, _WEIGHTS),
        "root": is_digest,
    }
    return is_record(whole, value) or _map(is_digest, value)


_POLICY: dict[str, Shape] = {"name": is_text, "version": _count, "digest": is_digest}
_DATASET: dict[str, Shape] = {"digest": is_digest, "count": _count}
_TERMS = (
    *("rule", "sampling_rate", "noise_multiplier", "clip", "unit", "epsilon", "delta", "clipping"),
    *("on_trust", "records"),
)

_OPENED: dict[str, Shape] = {
    "format": partial(_exactly, "gradwarden/ledger/1"),
    "run": is_text,
    "origin": is_text,
    "at": is_text,
    "policy": partial(is_record, _POLICY),
    "model_map": is_text,
    "dataset": partial(is_none_or, partial(is_record, _DATASET)),
    "bands": are_texts,
    "code": partial(_map, partial(is_none_or, is_text)),
    "keys": are_texts,
    "engine": is_text,
    "normaliser": partial(is_none_or, is_text),
    "clip_norm": partial(is_none_or, is_text),
    "secret_commitment": is_digest,
    "privacy": partial(is_list_of, partial(is_record, dict.fromkeys(_TERMS, is_text))),
}

_PLACEMENTS = frozenset({"anywhere", "by_example"})

_MEMBER: dict[str, Shape] = {
    "id": is_text,
    "rank": _count,
    "ranks": _count,
    "placement": partial(_one_of, _PLACEMENTS),
    "weights": is_digest,
}

_JOB: dict[str, Shape] = {
    "format": partial(_exactly, "gradwarden/job/1"),
    "origin": is_text,
    "at": is_text,
    "ranks": _count,
    "every": _count,
    "lag": _count,
    "placement": partial(_one_of, _PLACEMENTS),
    "keys": are_texts,
}

_RANK_HEAD: dict[str, Shape] = {
    "rank": _count,
    "origin": is_text,
    "size": _count,
    "root": is_digest,
    "step": _count,
}

_BOUND: dict[str, Shape] = {
    "binding": _count,
    "part": _count,
    "parts": _count,
    "heads": partial(is_list_of, partial(is_record, _RANK_HEAD)),
}


def _opened(body: Any) -> bool:
    """The start of a run; that of a rank of a job names its place in the job."""
    if type(body) is dict and "job" in body:
        return is_record(_OPENED | {"job": partial(is_record, _MEMBER)}, body)
    return is_record(_OPENED, body)


_PROGRAM: dict[str, Shape] = {"digest": is_digest, "part": _count, "parts": _count, "text": is_text}
_REFUSED: dict[str, Shape] = {
    "step": _count,
    "gate": partial(_one_of, _GATES),
    "reason": is_text,
    "detail": is_text,
}
_STARVED: dict[str, Shape] = {
    "step": _count,
    "band": is_text,
    "steps": _count,
    "action": partial(_one_of, _ACTIONS),
}
_ANCHORED: dict[str, Shape] = {
    "step": _count,
    "band": is_text,
    "rule": is_text,
    "strength": partial(is_none_or, is_text),
    "drift": partial(is_none_or, _count),
    "file": is_text,
    "digest": is_digest,
}
_MAINTAINED: dict[str, Shape] = {"step": _count, "drift": partial(_map, is_text), "held": are_texts}
_CONTRIBUTED: dict[str, Shape] = {"step": _count, "first": _count, "norms": partial(_map, _norms)}
_MOVED: dict[str, Shape] = {"step": _count, "norms": partial(_map, is_text)}
_CHECKPOINT: dict[str, Shape] = {
    "step": _count,
    "file": is_text,
    "digest": is_digest,
    "tensors": partial(is_none_or, _checkpoint_tensors),
}
_TENSORS: dict[str, Shape] = {
    "step": _count,
    "part": _count,
    "tensors": partial(is_list_of, _tensor),
    "tied": partial(is_list_of, _pair),
}
_REWOUND: dict[str, Shape] = {
    "step": _count,
    "checkpoint": partial(is_record, {"step": _count, "file": is_text, "digest": is_digest}),
    "abandoned": partial(is_list_of, _span),
    "effective": _count,
}
_RESUMED: dict[str, Shape] = {
    "from_size": _count,
    "root": is_digest,
    "cut": _count,
    "broken": partial(is_none_or, is_text),
}

SHAPES: dict[str, Shape] = {
    "opened": _opened,
    "job_opened": partial(is_record, _JOB),
    "bound": partial(is_record, _BOUND),
    "skipped": partial(is_record, {"step": _count, "until": _count}),
    "paid": partial(is_record, {"step": _count, "rules": partial(_map, _count)}),
    "program": partial(is_record, _PROGRAM),
    "approved": partial(is_record, {"note": is_text}),
    "classes": partial(is_record, {"classes": partial(is_list_of, _decision_class)}),
    "decisions": partial(is_record, {"decisions": partial(is_list_of, _decision)}),
    "examples": _examples,
    "step": step,
    "committed": committed,
    "refused": partial(is_record, _REFUSED),
    "contributed": partial(is_record, _CONTRIBUTED),
    "moved": partial(is_record, _MOVED),
    "starved": partial(is_record, _STARVED),
    "anchored": partial(is_record, _ANCHORED),
    "maintained": partial(is_record, _MAINTAINED),
    "halted": partial(is_record, {"step": _count, "rule": is_text, "steps": _count}),
    "expired": partial(is_record, {"step": _count, "rule": is_text, "count": _count}),
    "policy_changed": partial(is_record, {"policy": partial(is_record, _POLICY), "step": _count}),
    "tensors": partial(is_record, _TENSORS),
    "checkpoint": partial(is_record, _CHECKPOINT),
    "rewound": partial(is_record, _REWOUND),
    "resumed": partial(is_record, _RESUMED),
    "supplied": partial(is_record, {"note": is_text}),
    "derived": partial(
        is_record,
        {"origin": is_text, "size": _count, "root": is_digest, "weights": partial(is_none_or, is_digest)},
    ),
    "tallied": partial(is_record, {"examples": _count, "commitments": is_digest, "uses": is_digest}),
    "sealed": partial(is_record, dict.fromkeys(("steps", "committed", "refused", "examples"), _count)),
    "rotated": partial(is_record, {"note": is_text}),
    "revoked": partial(is_record, {"note": is_text}),
    "head": partial(is_record, {"note": is_text}),
}
"""Every kind of entry, and whether a body has its shape."""
