from __future__ import annotations

import json
from base64 import b64encode
from binascii import a2b_base64
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.ledger.entries import (
    CANONICAL,
    MAX_LINE,
    ZERO_HASH,
    MalformedLineError,
    compose,
    decode,
    encode_body,
    has_shape,
    schema,
)
from gradwarden.runtime.ledger.shapes import SHAPES
from gradwarden.runtime.ledger.usual import USUAL, is_usual_body

validator = jsonschema.Draft202012Validator(schema())

integers = st.integers(-(2**53) + 1, 2**53 - 1)
keys = st.text(st.characters(max_codepoint=127), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def line_of(kind: str, body: dict[str, Any], index: int = 7) -> bytes:
    return compose(kind, index, ZERO_HASH, orjson.dumps(body, option=CANONICAL))


@given(plain)
def test_bytes_are_those_of_rfc_8785(value: Any) -> None:
    assert orjson.dumps(value, option=CANONICAL) == rfc8785.dumps(value)


def test_published_canonical_forms(vectors: Path) -> None:
    """Those of the six documents that lie within the ledger's subset; the oracle gives all six."""
    ours = 0
    for file in sorted((vectors / "jcs" / "input").glob("*.json")):
        value = json.loads(file.read_text())
        expected = bytes.fromhex((vectors / "jcs" / "outhex" / f"{file.stem}.txt").read_text())
        assert rfc8785.dumps(value) == expected
        if _in_subset(value):
            ours += 1
            assert orjson.dumps(value, option=CANONICAL) == expected
    assert ours >= 2


def _in_subset(value: Any) -> bool:
    if isinstance(value, dict):
        return all(key.isascii() and _in_subset(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_in_subset, value))
    return not isinstance(value, float)


def test_entries_of_every_kind_are_read_back(cases: Any) -> None:
    own = {"opened", "job_opened", "resumed", "sealed", "rotated", "revoked", "head"}
    assert own | cases.every_kind().keys() == SHAPES.keys()
    for kind, bodies in cases.every_kind().items():
        for body in bodies:
            line = compose(kind, 7, ZERO_HASH, encode_body(kind, body))
            assert decode(line) == (7, kind, ZERO_HASH, body)
            assert line == rfc8785.dumps({"body": body, "index": 7, "kind": kind, "prev": ZERO_HASH})
            validator.validate(json.loads(line))


@given(st.data())
def test_shapes_and_schema_agree(cases: Any, data: st.DataObject) -> None:
    """A body that is changed somewhere is accepted by both or refused by both."""
    kind = data.draw(st.sampled_from(sorted(cases.every_kind())))
    body = json.loads(json.dumps(data.draw(st.sampled_from(cases.every_kind()[kind]))))
    for _ in range(data.draw(st.integers(1, 2))):
        _change(body, data)
    entry = {"body": body, "index": 7, "kind": kind, "prev": ZERO_HASH}
    shaped = SHAPES[kind](body)
    if shaped:
        assert validator.is_valid(entry)
    elif validator.is_valid(entry):
        # the schema cannot say that a step's lists fit each other, or that base64 packs whole commitments
        assert kind in ("step", "examples")


def _change(body: dict[str, Any], data: st.DataObject) -> None:
    """Replace, remove or add one value somewhere inside."""
    inner: Any = body
    while True:
        places = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not places:
            return
        place = data.draw(st.sampled_from(places))
        if isinstance(inner[place], dict | list) and inner[place] and data.draw(st.booleans()):
            inner = inner[place]
            continue
        break
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            other = st.sampled_from(
                [None, True, -1, 0, 3, "", "x", "é", "0" * 64, [], [1], ["a"], {}, {"a": 1}]
            )
            inner[place] = data.draw(other)
        case "remove":
            del inner[place]
        case "add" if isinstance(inner, dict):
            inner[data.draw(st.sampled_from(["extra", "é"]))] = data.draw(st.sampled_from(["x", None, 1]))
        case _:
            inner.append(data.draw(st.sampled_from([None, 1, "x"])))


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("not_canonical", lambda line: line.replace(b'"index":7', b'"index": 7')),
        ("not_an_entry", lambda line: line.replace(b'"index":7', b'"index":7.0')),
        ("not_canonical", lambda line: line.replace(b'"index":7', b'"index":7,"index":7')),
        ("not_canonical", lambda line: line.replace(b'"index":7', b'"index":-0')),
        ("not_canonical", lambda line: line.replace(b'"index":7', b'"index":9007199254740993')),
        ("not_canonical", lambda line: line.replace(b"trial", b"tri\\u0061l")),
        ("not_canonical", lambda line: b" " + line),
        ("not_canonical", lambda line: line + b"\r"),
        ("wrong_shape", lambda line: line.replace(b'"count":3', b'"count":3.5')),
        ("wrong_shape", lambda line: line.replace(b'"count":3', b'"count":true')),
        ("wrong_shape", lambda line: line.replace(b'"count":3', b'"count":"3"')),
        ("wrong_shape", lambda line: line.replace(b'"count":3,', b'"also":1,"count":3,')),
        ("unknown_kind", lambda line: line.replace(b"expired", b"expiree")),
        ("not_an_entry", lambda line: line.replace(b'"index"', b'"indey"')),
        ("not_an_entry", lambda line: b"[]"),
        ("not_an_entry", lambda line: b"7"),
        ("not_an_entry", lambda line: line.replace(b'"index":7', b'"index":"7"')),
        ("not_json", lambda line: b""),
        ("not_json", lambda line: line[:-1]),
        ("not_json", lambda line: line.replace(b"trial", b"\xff\xfe")),
        ("not_json", lambda line: line.replace(b"trial", b"\\ud800")),
        ("not_json", lambda line: b"[" * MAX_LINE),
        ("not_canonical", lambda line: b"[" * 500 + b"]" * 500),
        ("too_long", lambda line: b"1" * (MAX_LINE + 1)),
    ],
)
def test_other_forms_are_refused(problem: str, change: Any) -> None:
    line = line_of("expired", {"step": 1, "rule": "trial", "count": 3})
    assert decode(line)[0] == 7
    with pytest.raises(MalformedLineError) as caught:
        decode(change(line))
    assert caught.value.problem == problem


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_break_the_reader(data: bytes) -> None:
    with pytest.raises(MalformedLineError):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("unheard", {}, "`unheard` is not a kind of entry"),
        ("expired", {"step": 1, "rule": "trial"}, "'count' is a required property"),
        ("expired", {"step": 1, "rule": "trial", "count": -1}, "`count`: -1 is less than the minimum of 0"),
        ("expired", {"step": 1.0, "rule": "trial", "count": 1}, "plain integers"),
        ("expired", {"step": 2**60, "rule": "trial", "count": 1}, "53-bit"),
        ("expired", {"step": 1, "rule": "\ud800", "count": 1}, "surrogate"),
        ("program", {"digest": "0" * 64, "part": 0, "parts": 1, "text": "x" * MAX_LINE}, "is too long"),
    ],
)
def test_bodies_that_cannot_be_written_are_refused(kind: str, body: dict[str, Any], says: str) -> None:
    with pytest.raises(EntryInvalid) as caught:
        encode_body(kind, body)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [0]},
        {"decision": [0]},
        {"decision": [0, -1]},
        {"exposures": [1]},
        {"signals": {"loss_ratio": [1]}},
        {"commitments": "AAAA"},
        {"commitments": "!" * 88},
        {"slots": {"é": [1, 2]}},
        {"slots": {"a": [1, 2.5]}},
    ],
)
def test_a_step_whose_lists_do_not_fit_is_refused(cases: Any, change: dict[str, Any]) -> None:
    encode_body("step", cases.step(1))
    with pytest.raises(EntryInvalid):
        encode_body("step", {**cases.step(1), **change})


def test_the_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@given(st.data())
def test_what_is_recognised_by_its_text_has_the_shape(cases: Any, data: st.DataObject) -> None:
    """A fast way to the same answer: of any body of these kinds, as the ledger would write it."""
    kind = data.draw(st.sampled_from(sorted(USUAL)))
    body = dict(data.draw(st.sampled_from(cases.every_kind()[kind])))
    field = data.draw(st.sampled_from(sorted(body)))
    body[field] = data.draw(st.one_of(plain, st.just(body[field]), _columns))
    line = line_of(kind, body)
    usual = USUAL[kind](line, body)
    assert is_usual_body(kind, orjson.dumps(body, option=CANONICAL), body) is usual
    if usual:
        assert SHAPES[kind](body)


def test_shares_are_recorded_only_beside_the_batch_of_all_ranks() -> None:
    body = {"step": 1, "active": [], "norms": {}, "loss": None, "privacy": {}, "batch": 3, "shares": [3, 3]}
    assert decode(line_of("committed", body))[3] == body
    del body["batch"]
    with pytest.raises(MalformedLineError) as caught:
        decode(line_of("committed", body))
    assert caught.value.problem == "wrong_shape"
    with pytest.raises(EntryInvalid, match="batch"):
        encode_body("committed", body)


_columns = st.one_of(
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(keys, st.lists(st.none() | st.booleans() | st.integers(-9, 9), max_size=3), max_size=2),
    st.binary(max_size=130).map(lambda packed: b64encode(packed).decode()),
    st.text("A=+/_", max_size=88),
)


@pytest.mark.parametrize("kind", sorted(USUAL))
def test_what_is_no_body_at_all_is_refused(cases: Any, kind: str) -> None:
    body = cases.every_kind()[kind][0]
    others: list[Any] = [
        {},
        None,
        [],
        3,
        "",
        list(body),
        {"step": 1},
        body | {"step": None},
        body | {"more": 1},
    ]
    for other in others:
        with pytest.raises(EntryInvalid):
            encode_body(kind, other)


def test_usual_lines_are_recognised(cases: Any) -> None:
    for kind, recognise in USUAL.items():
        for body in cases.every_kind()[kind]:
            line = line_of(kind, body)
            assert recognise(line, body)


@given(st.text("AB+/=_ é", max_size=90) | st.binary(max_size=100).map(lambda b: b64encode(b).decode()))
def test_commitments_are_strict_base64_of_whole_ones(cases: Any, text: str) -> None:
    """Held to the decoder of the standard library, for every number of examples that could be meant."""
    try:
        size = len(a2b_base64(text, strict_mode=True)) if text else 0
    except ValueError:
        size = -1
    for count in range(4):
        body = cases.step(0, count) | {"commitments": text}
        line = line_of("step", body)
        whole = size in (32 * count, 0)
        assert has_shape(line, "step", body) is whole
