"""What is verified from where an earlier verification left off gets the verdict of a whole one."""

from __future__ import annotations

import copy
from collections import deque
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.policy.program import Program
from gradwarden.runtime.errors import MemoryFileError
from gradwarden.runtime.ledger.chain import ChainReport
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.program_signature import NOBODY
from gradwarden.runtime.verification.memory import FORMAT, STATE, Memory, write_memory
from gradwarden.runtime.verification.plain_data import PlainData
from gradwarden.runtime.verification.run_replay import RunReplay
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger
from tests.campaign.genuine import NEXT, RUN, WRITERS, genuine, joined, rewritten
from tests.runtime.test_verify import recorded
from tests.runtime.test_verify_together import _tampered

__all__ = ["recorded"]  # a fixture

KEYS = [RUN.public]


def entries_of(name: str) -> list[Any]:
    return genuine(name).entries()


@pytest.fixture(scope="module")
def maintained(laboratory: Any, tmp_path_factory: pytest.TempPathFactory, run_signer: Any) -> list[Any]:
    """The entries of a run with a maintained band, a checkpoint and a change of policy."""
    lab = laboratory(tmp_path_factory.mktemp("maintained"), run_signer)
    model = lab.model()
    rule = "maintain base { within deep  strength 2  drift at most 90% }\ngradient { record 1 in 2 steps }\n"
    governor = lab.governor(lab.policy + rule, model=model)
    lab.step(governor, lab.batch("ab"))
    governor.checkpoint(lab.folder / "model.safetensors")
    changed = lab.policy.replace("reach shallow at 0.5", "reach deep") + rule
    governor.change_policy(lab.program(changed, model))
    for _ in range(2):
        lab.step(governor, lab.batch("abC"))
    governor.close()
    assert lab.verify().ok
    return [(entry.kind, entry.body) for entry in lab.entries() if entry.kind != "head"]


# --- of a replay --------------------------------------------------------------------------------------------


def outcome(replay: RunReplay, size: int) -> Any:
    found = list(replay.findings(ChainReport("OK", size, "", None, (), True, size, (), None)))
    return found, replay.facts(), replay.checkpoint, replay.anchored, replay.tallies


def again(replay: RunReplay) -> RunReplay:
    """Return a replay that goes on from what is remembered of one, as a file holds it."""
    found: RunReplay = STATE.read(orjson.loads(orjson.dumps(STATE.write(replay))))
    found.go_on((), NOBODY)
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_replay_goes_on_as_if_it_had_not_been_left(
    recorded: list[Any], maintained: list[Any], data: st.DataObject
) -> None:
    """Left anywhere, once or twice, whatever is tampered with afterwards."""
    runs = (recorded, maintained, entries_of("changed"), entries_of("private"))
    entries = data.draw(st.sampled_from(runs))
    splits = data.draw(st.sets(st.integers(1, len(entries) - 1), min_size=1, max_size=2))
    if data.draw(st.booleans()):
        entries = later_tampered(entries, max(splits), data)
    whole, parted = RunReplay(()), RunReplay(())
    for index, (kind, body) in enumerate(entries):
        if index in splits and parted.settled:
            parted = again(parted)
        for replay in (whole, parted):
            replay.accept(Entry(index, kind, body, b""))
    assert outcome(parted, len(entries)) == outcome(whole, len(entries))


def later_tampered(entries: list[Any], start: int, data: st.DataObject) -> list[Any]:
    """Return entries of which some are changed from a place on."""
    return entries[:start] + _tampered([entries[0], *entries[start:]], data)[1:]


UNKEPT = ("_in_force", "_judge", "_numbered", "_plan", "_terms", "_array")
"""What is worked out again."""


def state(value: Any) -> Any:
    """Return all that an object is made of, by name, down to plain values."""
    if isinstance(value, (str, bytes, int, float, type(None), Program, PublicKey)):
        return value
    if isinstance(value, dict):
        return {key: state(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(state, value))
    if isinstance(value, (list, tuple, deque)):
        return list(map(state, value))
    if isinstance(value, np.ndarray):
        return value.tolist()
    names = [field.name for field in fields(value)] if is_dataclass(value) else vars(value)
    return {name: state(getattr(value, name)) for name in names if name not in UNKEPT}


@pytest.mark.parametrize("name", ["changed", "private", "recorded", "maintained"])
def test_nothing_that_a_replay_knows_is_forgotten(name: str, recorded: Any, maintained: Any) -> None:
    entries = {"recorded": recorded, "maintained": maintained}.get(name) or entries_of(name)
    replay, compared = RunReplay(()), 0
    for index, (kind, body) in enumerate(entries):
        replay.accept(Entry(index, kind, body, b""))
        if replay.settled and (index % 5 == 0 or kind not in ("step", "committed")):
            assert state(again(replay)) == state(replay)
            compared += 1
    assert compared > len(entries) / 6


def test_what_is_of_no_known_kind_is_not_left_out() -> None:
    with pytest.raises(TypeError, match="Entry"):
        STATE.write([Entry(0, "step", {}, b"")])


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.sampled_from(["=", "of"]), inner, max_size=3)
        | st.dictionaries(st.integers() | st.binary(max_size=2), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(_plain)
def test_plain_data_is_read_as_it_was_written(value: Any) -> None:
    data = PlainData({})
    read = data.read(orjson.loads(orjson.dumps(data.write(value))))
    assert (read, repr(read)) == (value, repr(value)) or read == value


@pytest.mark.parametrize("kind", ["08", "|O", "<i8,<i8", "(2,)i8", "i8", ""])
def test_arrays_are_of_plain_numbers(kind: str) -> None:
    with pytest.raises(ValueError, match="no type of numbers"):
        PlainData({}).read({"=": "array", "of": [kind, "AAAAAAAAAAA="]})


# --- of a ledger --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def placed(folder: Path, lines: list[bytes], name: str = "run.ledger", rest: bytes = b"") -> Path:
    """Write a ledger without a head beside it."""
    path = folder / name
    path.write_bytes(joined(lines) + rest)
    path.with_name(f"{name}.head").unlink(missing_ok=True)
    return path


def kept(folder: Path, lines: list[bytes], **options: Any) -> Path | None:
    """Verify the first lines of a ledger, and keep what is remembered of them, where that is anything."""
    memory = verify_ledger(placed(folder, lines), KEYS, remember=True, **options).memory
    if memory is None:
        return None
    memory.write(folder / "memory")
    return folder / "memory"


def alike(path: Path, memory: Path, **options: Any) -> VerifyReport:
    """Verify a ledger as a whole, and what is new of it; return the report that both give."""
    whole = verify_ledger(path, KEYS, **options)
    new = verify_ledger(path, KEYS, since=memory, **options)
    assert replace(new, facts={**new.facts, "since": None}) == whole
    return new


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_new_gets_the_verdict_that_the_whole_gets(folder: Path, data: st.DataObject) -> None:
    """Wherever it was split, and whatever was done to what is new; entries by the true key, too."""
    of = genuine(data.draw(st.sampled_from(sorted({*WRITERS} - {"sibling", "stranger"}))))
    only = data.draw(st.sampled_from([None, "chain", "entries"]))
    split = data.draw(st.integers(1, len(of.lines)))
    memory = kept(folder, of.lines[:split], only=only)
    if memory is None:
        return
    new = list(of.lines[split:])
    how = data.draw(st.sampled_from(["nothing", "byte", "cut", "drop", "swap", "double", "rewrite", "tail"]))
    rest = b""
    if how == "rewrite" and of.name == "plain":
        first = sum(b'"kind":"head"' not in line for line in of.lines[:split])
        if first < len(of.entries()):
            new = rewritten(later_tampered(of.entries(), first, data), RUN, of.origin)[split:]
    elif how == "tail":
        rest = data.draw(st.sampled_from([b"x", b"\n", b'{"body"', b"\0" * 70_000]))
    elif new and how != "nothing":
        place = data.draw(st.integers(0, len(new) - 1))
        if how == "byte":
            changed = bytearray(new[place])
            changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
            new[place] = bytes(changed)
        elif how == "cut":
            del new[place:]
        elif how == "drop":
            del new[place]
        elif how == "swap":
            new.insert(data.draw(st.integers(0, len(new) - 1)), new.pop(place))
        elif how == "double":
            new.insert(place, new[place])
    path = placed(folder, [*of.lines[:split], *new], rest=rest)
    if data.draw(st.booleans()):
        path.with_name("run.ledger.head").write_bytes(of.sidecar)
    alike(path, memory, only=only)


def test_only_what_is_new_is_read(folder: Path) -> None:
    """All but the last of the lines that are remembered are wiped out: on trust they are what they were."""
    lines = genuine("plain").lines
    split = len(lines) // 2
    memory = kept(folder, lines[:split])
    assert memory is not None
    report = alike(placed(folder, lines), memory)
    assert report.ok
    assert report.facts["since"]["entries"] == split
    wiped = [b" " * len(line) for line in lines[: split - 1]]
    path = placed(folder, [*wiped, *lines[split - 1 :]])
    assert verify_ledger(path, KEYS, since=memory) == report
    assert verify_ledger(path, KEYS).status == "TAMPERED"


def test_what_was_remembered_can_be_remembered_again(folder: Path) -> None:
    """From one entry to the next, over changes of policy and of keys, to the seal."""
    lines = genuine("changed").lines
    memory: Path | None = None
    found = None
    for end in range(1, len(lines) + 1):
        path = placed(folder, lines[:end])
        found = verify_ledger(path, KEYS, since=memory, remember=True)
        if found.memory is not None:
            found.memory.write(folder / "memory")
            memory = folder / "memory"
    assert found is not None
    assert found.ok
    assert NEXT.public.vkey in found.facts["keys_used"]
    assert {**found.facts, "since": None} == verify_ledger(path, KEYS).facts


def test_another_history_of_what_was_signed_is_a_fork(folder: Path) -> None:
    of, sibling = genuine("plain"), genuine("sibling")
    memory = kept(folder, of.lines)
    assert memory is not None
    report = verify_ledger(placed(folder, sibling.lines), KEYS, since=memory)
    assert (report.status, report.findings[-1].code) == ("FORK", "forked")
    assert report.facts["since"] is None


def test_a_ledger_that_lacks_what_was_signed_is_rolled_back(folder: Path) -> None:
    lines = genuine("plain").lines
    memory = kept(folder, lines)
    assert memory is not None
    heads = sorted(genuine("plain").heads)
    report = verify_ledger(placed(folder, lines[: heads[0] + 1]), KEYS, since=memory, remember=True)
    assert (report.status, report.memory) == ("ROLLBACK", None)
    assert "rolled_back" in [finding.code for finding in report.findings]


def test_what_no_head_covered_may_be_lost_to_a_crash(folder: Path) -> None:
    lines = genuine("plain").lines
    head = sorted(genuine("plain").heads)[1]
    memory = kept(folder, lines[: head + 4])
    assert memory is not None
    report = verify_ledger(placed(folder, lines[: head + 2]), KEYS, since=memory)
    assert report.status == "INCOMPLETE"
    assert [(f.code, f.severity) for f in report.findings][:1] == [("unsigned_lost", "warning")]


def test_nothing_is_remembered_of_what_does_not_hold(folder: Path) -> None:
    of = genuine("plain")
    assert kept(folder, [*of.lines[:-1], of.lines[-1].replace(b"note", b"nota")]) is None
    assert verify_ledger(placed(folder, of.lines), [NEXT.public], remember=True).memory is None
    assert kept(folder, of.lines) is not None


def test_a_memory_is_of_what_was_asked_for(folder: Path) -> None:
    lines = genuine("plain").lines
    memory = kept(folder, lines[:30])
    assert memory is not None
    path = placed(folder, lines)
    for keys, options in (([RUN.public, NEXT.public], {}), (KEYS, {"only": "chain"})):
        with pytest.raises(MemoryFileError, match="asked for something else"):
            verify_ledger(path, keys, since=memory, **options)


def test_a_memory_that_is_damaged_is_not_gone_on_with(folder: Path) -> None:
    lines = genuine("plain").lines
    memory = kept(folder, lines[:30])
    assert memory is not None
    whole = memory.read_bytes()
    path = placed(folder, lines)
    for content in (b"", b"x", whole[:-10], whole.replace(b'"steps":', b'"stops":', 1), path.read_bytes()):
        memory.write_bytes(content)
        with pytest.raises(MemoryFileError):
            verify_ledger(path, KEYS, since=memory)
    with pytest.raises(MemoryFileError, match="cannot read"):
        verify_ledger(path, KEYS, since=folder / "absent")


@pytest.mark.parametrize(
    ("name", "value"),
    [("offset", 2**64 - 1), ("offset", 0), ("line_before", 2**61), ("signed_size", "x"), ("size", -1)],
)
def test_a_memory_of_what_no_ledger_has_is_told(folder: Path, name: str, value: object) -> None:
    lines = genuine("plain").lines
    memory = kept(folder, lines[:30])
    assert memory is not None
    fields = orjson.loads(memory.read_bytes().partition(b"\n")[2])
    fields["links"][name] = value
    write_memory(memory, FORMAT, fields)
    with pytest.raises(MemoryFileError, match="another make"):
        verify_ledger(placed(folder, lines), KEYS, since=memory)


def test_a_file_that_is_no_memory_is_not_read_to_its_end(folder: Path) -> None:
    with pytest.raises(MemoryFileError, match="no memory"):
        verify_ledger(placed(folder, genuine("plain").lines), KEYS, since=Path("/dev/zero"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_memory_of_another_make_is_told(folder: Path, data: st.DataObject) -> None:
    """Though it is believed: what is no memory must not end in anything but a message."""
    lines = genuine("plain").lines
    found = verify_ledger(placed(folder, lines[:30]), KEYS, remember=True).memory
    assert found is not None
    part = data.draw(st.sampled_from(["links", "replay"]))
    value = copy.deepcopy(getattr(found, part))
    inner = value if part == "links" else value["of"]
    name = data.draw(st.sampled_from(sorted(inner)))
    if data.draw(st.booleans()):
        del inner[name]
    else:
        inner[name] = data.draw(st.sampled_from([None, 3, "x", [], {}, {"=": "Counter", "of": 1}]))
    fields = {name: getattr(found, name) for name in ("terms", "at", "by", "root", "steps", "decisions")}
    Memory(**fields, **{"links": found.links, "replay": found.replay, part: value}).write(folder / "memory")
    with suppress(MemoryFileError):
        verify_ledger(placed(folder, lines), KEYS, since=folder / "memory")
