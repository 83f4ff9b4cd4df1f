"""What is read block by block, by one process or two, is what is read line by line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.runtime import Signer
from gradwarden.runtime.ledger import blocks, chain, frames, lines, sharing
from gradwarden.runtime.ledger.blocks import READINGS, BlockReader, Reading
from gradwarden.runtime.ledger.chain import ChainReport, verify_chain
from gradwarden.runtime.ledger.entries import (
    Entry,
    MalformedLineError,
    OddBlockError,
    compose,
    decode,
    encode_body,
)
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from gradwarden.runtime.ledger.shapes import SHAPES
from gradwarden.runtime.ledger.steps import check_steps_of_form
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.ledger.usual import (
    OUTCOME_APART,
    STEP_APART,
    Form,
    StepForm,
    outcome_form,
    step_form,
)

Raw = list[tuple[str, bytes]]
"""Kinds of entries, and the text of their bodies."""


class Listeners:
    """Hands out listeners and keeps what each was told, entry by entry."""

    def __init__(self) -> None:
        self.told: list[list[tuple[int, str, Any]]] = []

    def __call__(self) -> Callable[[Turns | Entry], None]:
        told: list[tuple[int, str, Any]] = []
        self.told.append(told)
        return lambda part: told.extend(
            [(part.index, part.kind, part.body)] if isinstance(part, Entry) else part.entries()
        )


def slowly(path: Path, signer: Signer) -> tuple[ChainReport, list[Any]]:
    """Verify a ledger line by line."""

    def odd(*_: object, **__: object) -> Any:
        raise OddBlockError

    listeners = Listeners()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "check_blocks", odd)
        report = verify_chain(path, [signer.public], listeners)
    return report, listeners.told[-1]


def quickly(path: Path, signer: Signer) -> tuple[ChainReport, list[Any]]:
    """Verify a ledger block by block, without and with telling what it says."""
    listeners = Listeners()
    report = verify_chain(path, [signer.public], listeners)
    assert verify_chain(path, [signer.public]) == report
    return report, listeners.told[-1]


def step(cases: Any, number: int) -> dict[str, Any]:
    """A body of a step; some have other numbers of examples, and some the form of another program."""
    count = 2 if number % 5 else number % 7
    body: dict[str, Any] = cases.step(number, count)
    if 20 <= number < 30:
        body |= {"exposures": None, "signals": {}, "slots": {}, "today": None}
    return body | {"classes": [number * 3**place for place in range(count)]}


@pytest.fixture(scope="module")
def content(cases: Any) -> Raw:
    """The entries of a run of many forms, without its opening and heads."""
    refused = {"gate": "admission", "reason": "nothing_admitted", "detail": "no"}
    every = cases.every_kind()
    entries = [(kind, encode_body(kind, body)) for kind, bodies in every.items() for body in bodies]
    for number in range(40):
        if number in (7, 20, 21, 30):
            entries.append(("starved", encode_body("starved", every["starved"][0])))
        entries.append(("step", encode_body("step", step(cases, number))))
        if number % 4 == 3:
            entries.append(("refused", encode_body("refused", {**refused, "step": number})))
        else:
            entries.append(("committed", encode_body("committed", cases.committed(number))))
    return entries


def written(path: Path, content: Raw, cases: Any, signer: Signer) -> Path:
    """Write a sealed ledger of any texts, canonical or not, as a dishonest writer with a key could."""
    opened = cases.opened(type("L", (), {"origin": "gradwarden/forged", "vkey": signer.public.vkey}))
    seal = encode_body("sealed", cases.seal)
    prev, tree, out = "0" * 64, Tree(), []
    for kind, body in [("opened", encode_body("opened", opened)), *content, ("sealed", seal), ("head", b"")]:
        if kind == "head":
            note = Checkpoint("gradwarden/forged", len(out), tree.root()).text()
            body = encode_body("head", {"note": sign_note(note, [signer])})
        out.append(compose(kind, len(out), prev, body))
        prev = leaf_hash(out[-1]).hex()
        tree.append(leaf_hash(out[-1]))
    path.write_bytes(b"".join(line + b"\n" for line in out))
    return path


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small ledgers read in many blocks, and lines expected to have the form of the last."""
    monkeypatch.setattr(blocks, "BLOCK", 4_000)
    monkeypatch.setattr(lines, "USED_TO", 1)


def entries_in(data: bytes, size: int) -> list[Any]:
    reader = BlockReader(io.BytesIO(data), len(data), reading="columns", size=size)
    found = [reader.read(number) for number in range(reader.count)]
    assert sum(block.size for block in found) == len(data)
    parts = [part for block in found for part in block.parts]
    told = Listeners()
    listener = told()
    for part in parts:
        listener(part)
    return told.told[0]


def test_kinds_are_told_apart_by_what_is_looked_at() -> None:
    assert set(frames._KINDS.values()) == SHAPES.keys()


@pytest.mark.parametrize("size", [1, 100, 999, 20_000, 1 << 20])
def test_blocks_of_any_size_say_what_the_lines_say(
    path: Path, content: Raw, cases: Any, signer: Signer, size: int
) -> None:
    data = written(path, content, cases, signer).read_bytes()
    decoded = [decode(line) for line in data.split(b"\n")[:-1]]
    assert entries_in(data, size) == [(index, kind, body) for index, kind, _, body in decoded]


def test_most_lines_are_read_many_at_a_time(path: Path, content: Raw, cases: Any, signer: Signer) -> None:
    """Or the other tests would compare the slow way with itself."""
    data = written(path, content, cases, signer).read_bytes()
    block = BlockReader(io.BytesIO(data), len(data), reading="columns").read(0)
    turns = [part for part in block.parts if isinstance(part, Turns)]
    assert sum(len(part.numbers) for part in turns) > 30
    report, _ = quickly(path, signer)
    assert report.status == "OK"


@pytest.mark.usefixtures("many_blocks")
def test_a_sound_ledger_is_gone_through_once(
    path: Path, content: Raw, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path, content, cases, signer)
    expected = slowly(path, signer)
    monkeypatch.setattr(chain, "run_links", None)
    assert quickly(path, signer) == expected
    assert expected[0].status == "OK"


_TOKENS = rb"""0 00 -0 - , ,, 1 -1 1.0 1e5 9007199254740991
    9007199254740992 123456789012345678901234567890 null true nul
    [ ] [] " "a" \ \u0041 = == A { } {} : "x":"""
_tokens = st.sampled_from([*_TOKENS.split(), b"", b" ", b"\x7f", b"\xc3\xa9"])


OF_FORM = {"not_json", "not_canonical", "not_an_entry", "unknown_kind", "wrong_shape", "wrong_index"}
"""What may be wrong with a line that was signed as it is; its frame need not show it."""


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("many_blocks")
def test_any_text_of_a_line_is_judged_alike(
    path: Path, content: Raw, cases: Any, signer: Signer, data: st.DataObject
) -> None:
    """Of lines that link and are signed, so that nothing but their form tells them from sound ones."""
    spoilt = list(content)
    place = data.draw(st.integers(0, len(spoilt) - 1))
    kind, body = spoilt[place]
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, min(len(body), start + 3)))
    spoilt[place] = (kind, body[:start] + data.draw(_tokens) + body[stop:])
    if b"\n" not in spoilt[place][1]:
        written(path, spoilt, cases, signer)
        report, told = quickly(path, signer)
        assert (report, told) == slowly(path, signer)
        framed = verify_chain(path, [signer.public], frames=True)
        assert framed == report or (framed.status == "OK" and report.findings[0].code in OF_FORM)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("many_blocks")
def test_any_byte_that_is_changed_is_reported_alike(
    path: Path, content: Raw, cases: Any, signer: Signer, data: st.DataObject
) -> None:
    changed = bytearray(written(path, content, cases, signer).read_bytes())
    at = data.draw(st.integers(0, len(changed) - 1))
    how = data.draw(st.sampled_from(["change", "change", "cut", "drop", "double"]))
    if how == "change":
        changed[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del changed[at:]
    else:
        changed[at : at + 1] = changed[at : at + 1] * (2 if how == "double" else 0)
    path.write_bytes(changed)
    report, told = quickly(path, signer)
    assert (report, told) == slowly(path, signer)
    assert report.status != "OK"
    assert verify_chain(path, [signer.public], frames=True) == report


LONGEST_FRAME = 120
"""Bytes at the end of a line that are seen to otherwise."""


def of_form(form: StepForm | Form, line: bytes) -> bool:
    """Whether a line has a form, and is an entry where its frame is one."""
    head = line[: line.rindex(b',"index":')]
    if isinstance(form, Form):
        return form.fit([head]) == [True]
    taken = form.take([head])
    return taken != [None] and check_steps_of_form(form, [step for step in taken if step]) is not None


@given(data=st.data())
def test_what_has_an_expected_form_is_a_canonical_entry(cases: Any, data: st.DataObject) -> None:
    zero = "0" * 64
    form: StepForm | Form | None
    if data.draw(st.booleans()):
        body = step(cases, data.draw(st.integers(0, 60))) | {"spent": ["p", "q"]}
        line = compose("step", 5, zero, encode_body("step", body))
        found = STEP_APART.match(line)
        form = None if found is None else step_form(found)
        assert (form is None) is (body["count"] == 0)
    else:
        line = compose("committed", 5, zero, encode_body("committed", cases.committed(7)))
        found = OUTCOME_APART.match(line)
        form = None if found is None else outcome_form(found)
        assert form is not None
    if form is None:
        return
    assert of_form(form, line)
    start = data.draw(st.integers(0, len(line) - LONGEST_FRAME))
    stop = data.draw(st.integers(start, min(len(line), start + 2)))
    spoilt = line[:start] + data.draw(_tokens) + line[stop:]
    if of_form(form, spoilt):
        decode(spoilt)


def test_a_form_stands_for_nothing_that_is_not_canonical(cases: Any) -> None:
    """Two signals out of order, and one given twice."""
    line = compose("step", 5, "0" * 64, encode_body("step", cases.step(1)))
    for names in (b'"b":[1,2],"a":[1,2]', b'"a":[1,2],"a":[1,2]'):
        spoilt = line.replace(b'"loss_ratio":[-5,-5]', names)
        with pytest.raises(MalformedLineError):
            decode(spoilt)
        found = STEP_APART.match(spoilt)
        assert found is not None
        assert step_form(found) is None


# --- two processes ------------------------------------------------------------------------------------------


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SMALLEST", 1)
    monkeypatch.setattr(sharing, "SHARE", 2)
    monkeypatch.setattr(sharing, "MOST_WAITING", 2)
    monkeypatch.setattr(blocks, "BLOCK", 4_000)
    monkeypatch.setattr(sharing.os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("idle", [False, True], ids=["both", "the other alone"])
@pytest.mark.parametrize("reading", READINGS)
def test_two_processes_find_what_one_finds(
    path: Path,
    content: Raw,
    cases: Any,
    signer: Signer,
    monkeypatch: pytest.MonkeyPatch,
    idle: bool,
    reading: Reading,
) -> None:
    written(path, content, cases, signer)
    expected, entries = slowly(path, signer)
    if idle:
        monkeypatch.setattr(sharing.Shares, "claim", lambda _: None)
    monkeypatch.setattr(chain, "run_links", None)
    listeners, progress = Listeners(), []
    listen = listeners if reading == "columns" else None
    report = verify_chain(
        path, [signer.public], listen, lambda *done: progress.append(done), frames=reading == "frames"
    )
    assert report == expected
    assert listeners.told == ([entries] if listen else [])
    assert progress == sorted(progress)
    assert progress[-1] == (path.stat().st_size,) * 2


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("spoil", ["a byte", "the end", "no process", "another size"])
def test_where_the_other_process_fails_one_goes_through_all(
    path: Path, content: Raw, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    data = written(path, content, cases, signer).read_bytes()
    if spoil == "a byte":
        path.write_bytes(data[:9_000] + b"?" + data[9_001:])
    elif spoil == "the end":
        path.write_bytes(data[:-700])
    elif spoil == "no process":
        monkeypatch.setattr(sharing, "CHECKER", "gradwarden.absent")
    expected = slowly(path, signer)
    monkeypatch.setattr(sharing.Shares, "claim", lambda _: None)
    if spoil == "another size":
        monkeypatch.setattr(sharing.BlockReader, "read", lambda *_: pytest.fail("claimed without asking"))
    assert quickly(path, signer) == expected


@pytest.mark.usefixtures("two_processes")
def test_no_module_is_loaded_from_the_folder_one_is_in(
    path: Path, content: Raw, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hands a folder over to be checked may have laid modules in it under names that are imported."""
    folder = path.parent / "handed over"
    folder.mkdir()
    (folder / "orjson.py").write_text("open('loaded', 'w').close()")
    monkeypatch.chdir(folder)
    written(path, content, cases, signer)
    expected = slowly(path, signer)
    monkeypatch.setattr(sharing.Shares, "claim", lambda _: None)
    monkeypatch.setattr(chain, "run_links", None)
    assert quickly(path, signer) == expected
    assert not (folder / "loaded").exists()


@given(st.lists(st.booleans(), max_size=30))
def test_each_share_is_claimed_once(tmp_path_factory: pytest.TempPathFactory, turns: list[bool]) -> None:
    reader = BlockReader(io.BytesIO(bytes(90)), 90, reading="lines", size=10)
    folder = tmp_path_factory.mktemp("shares")
    one, other = (sharing.Shares(folder, reader, 2) for _ in range(2))
    one.begin()
    claimed = [(one if turn else other).claim() for turn in turns]
    claimed += [one.claim() for _ in range(6)]
    assert [number for number in claimed if number is not None] == [0, 1, 2, 3, 4]


# --- one fault each -----------------------------------------------------------------------------------------

_STEP = {"classes": [3, 40], "decision": [0, 7], "exposures": [10, 2], "signals": {"a": [-50, 60]}}
_OTHER_NUMBERS = [
    *[(b"40", b"040"), (b"7", b"07"), (b"10", b"010"), (b"-50", b"-050"), (b"-50", b"-0"), (b"60", b"00")],
    *[(b"40", b"9007199254740993"), (b":5,", b":05,"), (b"9,", b"09,"), (b"20484", b"-0")],
]


@pytest.mark.parametrize(("number", "other"), _OTHER_NUMBERS)
@pytest.mark.parametrize("expected", [False, True], ids=["taken apart", "of the expected form"])
def test_a_number_that_is_not_canonical_is_found(
    cases: Any, monkeypatch: pytest.MonkeyPatch, number: bytes, other: bytes, expected: bool
) -> None:
    monkeypatch.setattr(lines, "USED_TO", 1 if expected else 99)
    first = compose("step", 0, "0" * 64, encode_body("step", cases.step(1) | _STEP))
    body = encode_body("step", cases.step(5) | _STEP | {"epoch": 9})
    spoilt = body.replace(number, other, 1)
    assert spoilt != body
    for text, sound in ((body, True), (spoilt, False)):
        second = compose("step", 1, leaf_hash(first).hex(), text)
        data = first + b"\n" + second + b"\n"
        for reading in READINGS[1:]:
            reader = BlockReader(io.BytesIO(data), len(data), reading=reading, size=len(first) + 1)
            reader.read(0)  # what it holds is expected from then on
            if sound:
                assert reader.read(1).first == 1
            else:
                with pytest.raises(OddBlockError):
                    reader.read(1)


@pytest.mark.parametrize(
    ("spoil", "reading"),
    [
        *[(spoil, reading) for spoil in ("index", "link") for reading in READINGS],
        *[(f"one {what} more", reading) for what in ("signal", "exposure") for reading in READINGS[1:]],
    ],
)
def test_a_line_in_the_wrong_place_is_found(cases: Any, reading: Reading, spoil: str) -> None:
    prev, out = "0" * 64, []
    for index in range(80):
        kind, made = ("committed", cases.committed) if index % 2 else ("step", cases.step)
        body = encode_body(kind, made(index // 2))
        if index == 70:
            body = body.replace(b"[-5,-5]", b"[-5,-5,-5]") if spoil == "one signal more" else body
            body = body.replace(b"[1,1]", b"[1,1,1]") if spoil == "one exposure more" else body
        shown = index + (spoil == "index" and index == 70)
        link = prev if spoil != "link" or index != 70 else "0" * 64
        out.append(compose(kind, shown, link, body))
        prev = leaf_hash(out[-1]).hex()
    data = b"".join(line + b"\n" for line in out)
    with pytest.raises(OddBlockError):
        BlockReader(io.BytesIO(data), len(data), reading=reading).read(0)


# --- where lines begin and end ------------------------------------------------------------------------------


def refusals(first: int, details: list[str], shown: dict[int, int] | None = None) -> bytes:
    """Return lines from an index on, each linked to the one before. shown: other indices, by number."""
    out, prev = [], "0" * 64
    for number, detail in enumerate(details):
        body = {"step": number, "gate": "admission", "reason": "nothing_admitted", "detail": detail}
        index = (shown or {}).get(number, first + number)
        text = encode_body("refused", body | {"detail": ""}).replace(b'""', b'"%b"' % detail.encode())
        out.append(compose("refused", index, prev, text))
        prev = leaf_hash(out[-1]).hex()
    return b"".join(line + b"\n" for line in out)


@pytest.mark.parametrize("first", [0, 5, 95, 995, 9_995, 99_995, 1_999_995, 10**12 - 5])
@pytest.mark.parametrize("reading", READINGS)
def test_indices_of_any_length_are_read(first: int, reading: Reading) -> None:
    data = refusals(first, ["no"] * 10)
    block = BlockReader(io.BytesIO(data), len(data), reading=reading).read(0)
    assert (block.first, len(block.leaves)) == (first, 10 * 32)
    for shown in (first + 6, first + 8, first + 7 + 10 ** len(str(first)), (first + 7) * 10):
        data = refusals(first, ["no"] * 10, {7: shown})
        with pytest.raises(OddBlockError):
            BlockReader(io.BytesIO(data), len(data), reading=reading).read(0)


@given(
    st.lists(st.sampled_from([0, 3, 4_090, 5_000, 30_000, 65_000]), min_size=1, max_size=6),
    st.sampled_from([997, 5_000, 70_000, 1 << 20]),
    st.integers(0, 300),
)
@settings(deadline=None, max_examples=40)
def test_lines_of_any_length_are_read(lengths: list[int], size: int, cut: int) -> None:
    data = refusals(0, ["x" * length for length in lengths])
    whole = data[: len(data) - cut]
    reader = BlockReader(io.BytesIO(whole), len(whole), reading="frames", size=size)
    blocks = [reader.read(number) for number in range(reader.count)]
    leaves = b"".join(block.leaves for block in blocks)
    lines, tail = whole.split(b"\n")[:-1], whole[whole.rfind(b"\n") + 1 :]
    assert leaves == b"".join(map(leaf_hash, lines))
    assert [block.tail for block in blocks if block.tail] == ([tail] if tail else [])
    assert sum(block.size for block in blocks) == len(whole) - len(tail)


@pytest.mark.parametrize("behind", [1, 2, 5_000, 1 << 20])
def test_a_line_that_is_too_long_is_odd(behind: int) -> None:
    """Wherever in or behind it the next block begins."""
    frame = len(refusals(0, [""])) - 1
    for length, sound in ((65_535, True), (65_536, False)):
        data = refusals(0, ["", "x" * (length - frame), "no"])
        reader = BlockReader(io.BytesIO(data), len(data), reading="frames", size=frame + behind)
        if sound:
            assert sum(len(reader.read(number).leaves) for number in range(reader.count)) == 3 * 32
        else:
            with pytest.raises(OddBlockError):
                list(map(reader.read, range(reader.count)))
