"""Steps that are judged together get the report that one at a time gives, whatever is wrong with them."""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.ledger import blocks, chain, numbering, sharing
from gradwarden.runtime.ledger.chain import ChainReport
from gradwarden.runtime.ledger.entries import ZERO_HASH, Entry, OddBlockError, compose, encode_body
from gradwarden.runtime.ledger.frames import Frames, find_frames
from gradwarden.runtime.ledger.lines import Recogniser
from gradwarden.runtime.ledger.merkle import leaf_hash, leaf_hashes
from gradwarden.runtime.ledger.numbering import Numbering
from gradwarden.runtime.ledger.turns import Turns
from gradwarden.runtime.verification.example_audit import ExampleAudit
from gradwarden.runtime.verification.run_replay import RunReplay
from gradwarden.runtime.verification.verify import VerifyReport
from gradwarden.runtime.verification.violation import ViolationError
from tests.runtime.test_verify import FORGERIES, RULES, recorded

__all__ = ["recorded"]  # a fixture

STEPS = 12
PLAIN = (
    "signals { loss_ratio : number 0..10 default 1 }\nretain often { when kind == a  at most 6 exposures }\n"
)


@pytest.fixture(scope="module")
def plain(laboratory: Any, tmp_path_factory: pytest.TempPathFactory, run_signer: Any) -> Any:
    """A sealed run without budgets: its steps follow each other with nothing in between."""
    lab = laboratory(tmp_path_factory.mktemp("plain"), run_signer)
    governor = lab.governor(lab.policy + PLAIN + "gradient { shallow at most 0.5 }\n")
    for step in range(STEPS):
        lab.step(governor, lab.batch("abdaC"[step % 2 :], "vwxyz"[step % 2 :]))
    governor.close()
    assert lab.verify().ok
    return lab


@pytest.fixture(scope="module")
def plain_entries(plain: Any) -> list[Any]:
    return [(entry.kind, entry.body) for entry in plain.entries() if entry.kind != "head"]


@pytest.fixture(scope="module")
def run(laboratory: Any, tmp_path_factory: pytest.TempPathFactory, run_signer: Any) -> Any:
    """A sealed run as that of `test_verify`."""
    lab = laboratory(tmp_path_factory.mktemp("run"), run_signer)
    governor = lab.governor(lab.policy + RULES)
    for kinds in ("aab", "bb", "cC", "aBd"):
        lab.step(governor, lab.batch(kinds, kinds))
    governor.checkpoint(lab.folder / "model.safetensors")
    lab.step(governor, lab.batch("aab", "aab"))
    governor.close()
    return lab


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ledgers read in many blocks, so that steps are parted from their outcomes, too."""
    monkeypatch.setattr(blocks, "BLOCK", 3_000)


def slowly(lab: Any, name: str) -> VerifyReport:
    """Verify a ledger line by line."""

    def odd(*_: object, **__: object) -> Any:
        raise OddBlockError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "check_blocks", odd)
        report: VerifyReport = lab.verify(name)
    return report


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("change", [c for c, _, _ in FORGERIES], ids=[c.__name__ for c, _, _ in FORGERIES])
def test_a_forged_entry_is_reported_alike(run: Any, change: Any) -> None:
    name = change.__qualname__.replace("<locals>", "") + str(id(change))
    assert run.forge(change, target=name) == slowly(run, name)


def test_a_sound_ledger_is_gone_through_once(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slowly(plain, "run")
    monkeypatch.setattr(chain, "run_links", None)
    assert plain.verify() == expected
    assert expected.ok


@pytest.mark.parametrize("spoil", ["nothing", "a byte", "an exposure"])
def test_two_processes_do_the_same(plain: Any, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    def change(entries: Any) -> None:
        if spoil == "an exposure":
            next(body for kind, body in reversed(entries) if kind == "step")["exposures"][0] += 1

    plain.forge(change, target=spoil)
    path = plain.path(spoil)
    if spoil == "a byte":
        path.write_bytes(path.read_bytes().replace(b'"loss":"', b'"loss":"1', 1))
    expected = slowly(plain, spoil)
    monkeypatch.setattr(sharing, "SMALLEST", 1)
    monkeypatch.setattr(sharing.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sharing.Shares, "claim", lambda _: None)
    assert plain.verify(spoil) == expected
    assert expected.ok is (spoil == "nothing")


# --- any field of any entry ---------------------------------------------------------------------------------

_values = st.sampled_from(
    [None, True, 0, 1, 2, 99, "", "x", "-1", "nan", "0.4", "9", "admit", "refuse", [], {}]
)


def _mutate(value: Any, data: st.DataObject) -> Any:
    """Return a body with one spot replaced, dropped, doubled or moved."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _mutate(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        place = data.draw(st.integers(0, len(value) - 1))
        how = data.draw(st.sampled_from(("change", "change", "drop", "double", "turn")))
        match how:
            case "drop":
                return value[:place] + value[place + 1 :]
            case "double":
                return [*value[:place], value[place], *value[place:]]
            case "turn":
                return value[::-1]
        return [*value[:place], _mutate(value[place], data), *value[place + 1 :]]
    if type(value) is int and data.draw(st.booleans()):
        return value + 1
    return data.draw(_values)


def _tampered(entries: list[Any], data: st.DataObject) -> list[Any]:
    """Return entries with some of them changed; those that no ledger can hold are left as they were."""
    entries = copy.deepcopy(entries)
    for _ in range(data.draw(st.integers(1, 2))):
        if len(entries) < 2:
            break
        place = data.draw(st.integers(1, len(entries) - 1))
        how = data.draw(st.sampled_from(("mutate", "mutate", "mutate", "mutate", "drop", "swap", "double")))
        kind, body = entries[place]
        if how == "drop":
            entries.pop(place)
        elif how == "swap":
            entries.insert(data.draw(st.integers(1, len(entries) - 1)), entries.pop(place))
        elif how == "double":
            entries.insert(place, (kind, body))
        else:
            changed = _mutate(body, data)
            try:
                encode_body(kind, changed)
            except EntryInvalid:
                continue
            entries[place] = (kind, changed)
    return entries


def _outcome(replay: RunReplay, size: int) -> Any:
    found = list(replay.findings(ChainReport("OK", size, "", None, (), True, size, (), None)))
    return found, replay.facts()


def _one_by_one(entries: list[Any]) -> Any:
    """Return what a replay makes of entries that are told one after the other."""
    replay = RunReplay(())
    for index, (kind, body) in enumerate(entries):
        replay.accept(Entry(index, kind, body, b""))
    return _outcome(replay, len(entries))


def _linked(entries: Iterable[tuple[str, Any]]) -> list[bytes]:
    """Return the lines of entries."""
    lines: list[bytes] = []
    for index, (kind, body) in enumerate(entries):
        prev = leaf_hash(lines[-1]).hex() if lines else ZERO_HASH
        lines.append(compose(kind, index, prev, encode_body(kind, body)))
    return lines


def _framed(lines: Sequence[bytes]) -> Frames:
    return find_frames(b"".join(line + b"\n" for line in lines), lines, leaf_hashes(lines))


def _together(entries: list[Any], at_once: int) -> Any:
    """Return what a replay makes of entries that two readers read and tell in turn, so many at a time."""
    replay, readers = RunReplay(()), (Recogniser(), Recogniser())
    lines = _linked(entries)
    for start in range(0, len(lines), at_once):
        piece = range(start, min(start + at_once, len(lines)))
        turn = start // at_once % 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numbering, "MOST", 2)
            patch.setattr(numbering.os, "getpid", lambda turn=turn: turn)
            try:
                parts = readers[turn].read(_framed([lines[index] for index in piece]))
            except OddBlockError:
                parts = [Entry(index, *entries[index], b"") for index in piece]
        for part in parts:
            replay.accept(part)
    return _outcome(replay, len(entries))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_steps_judged_together_are_judged_as_one_by_one(
    plain_entries: list[Any], data: st.DataObject
) -> None:
    entries = _tampered(plain_entries, data)
    at_once = data.draw(st.sampled_from((len(entries), 9, 16)))
    assert _together(entries, at_once) == _one_by_one(entries)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_steps_of_any_run_are_judged_alike(recorded: list[Any], data: st.DataObject) -> None:
    """With slots, signals, budgets and a resumption."""
    entries = _tampered(recorded, data) if data.draw(st.booleans()) else recorded
    assert _together(entries, 16) == _one_by_one(entries)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("small_blocks")
def test_a_ledger_tampered_with_anywhere_is_reported_alike(plain: Any, data: st.DataObject) -> None:
    target = "tampered"
    for stale in plain.folder.glob(f"{plain.path(target).name}*"):
        stale.unlink()
    report = plain.forge(lambda entries: _tampered(entries, data), target=target)
    assert report == slowly(plain, target)


def _last(entries: list[Any], kind: str) -> dict[str, Any]:
    body: dict[str, Any] = next(body for found, body in reversed(entries) if found == kind)
    return body


_LATE = {
    "verdict": ("step", lambda body: body.update(verdict="admit")),
    "other step": ("step", lambda body: body.update(step=body["step"] + 1)),
    "unknown class": ("step", lambda body: body["classes"].__setitem__(0, 99)),
    "other class": ("step", lambda body: body["classes"].reverse()),
    "unknown decision": ("step", lambda body: body["decision"].__setitem__(0, 99)),
    "other decision": ("step", lambda body: body["decision"].reverse()),
    "spent": ("step", lambda body: body.update(spent=["p"])),
    "no exposures": ("step", lambda body: body.update(exposures=None)),
    "exposures": ("step", lambda body: body.update(exposures=[99] * body["count"])),
    "stray signal": ("step", lambda body: body["signals"].update(calm=[0] * body["count"])),
    "other outcome": ("committed", lambda body: body.update(step=body["step"] - 1)),
    "less active": ("committed", lambda body: body.update(active=["shallow"])),
    "nothing active": ("committed", lambda body: body.update(active=[])),
    "above cap": ("committed", lambda body: body["norms"].update(shallow="0.51")),
    "below zero": ("committed", lambda body: body["norms"].update(deep="-1e-9")),
    "no number": ("committed", lambda body: body["norms"].update(deep="nan")),
    "too large": ("committed", lambda body: body["norms"].update(deep="1e999")),
    "left out": ("committed", lambda body: body["norms"].pop("deep")),
    "another band": ("committed", lambda body: body["norms"].update(middle=None)),
    "loss": ("committed", lambda body: body.update(loss="small")),
    "charge": ("committed", lambda body: body.update(privacy={"p": {"steps": 1, "epsilon": "0.1"}})),
}


@pytest.mark.parametrize("what", _LATE)
def test_what_is_wrong_late_in_a_stretch_is_found(plain_entries: list[Any], what: str) -> None:
    entries = copy.deepcopy(plain_entries)
    kind, change = _LATE[what]
    change(_last(entries, kind))
    found, facts = _together(entries, len(entries))
    assert [finding.index for finding in found] == [entries.index((kind, _last(entries, kind)))]
    assert (found, facts) == _one_by_one(entries)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("clip", "norm", "codes"),
    [
        ("1e+200", "0.3", []),
        ("1e+200", "1e+199", []),
        ("1e+200", "2e+200", ["wrong_outcome"]),
        ("1", "1e+200", ["wrong_outcome"]),
    ],
)
def test_norms_of_any_size_are_held_to_the_bound(
    plain_entries: list[Any], clip: str, norm: str, codes: list[str]
) -> None:
    """Squares of such numbers are too great for a number."""
    entries = copy.deepcopy(plain_entries)
    entries[0][1]["clip_norm"] = clip
    _last(entries, "committed")["norms"]["deep"] = norm
    found, facts = _together(entries, len(entries))
    assert [finding.code for finding in found] == codes
    assert (found, facts) == _one_by_one(entries)


@pytest.mark.parametrize(
    ("clip", "norm", "codes"),
    [
        ("2e-162", "1.5e-162", ["wrong_outcome"]),
        ("2e-162", "1.4e-162", []),
        ("3e-320", "2e-320", []),
        ("2e-320", "2e-320", ["wrong_outcome"]),
        ("1e+200", "1e-170", []),
    ],
)
def test_norms_of_which_no_square_is_a_number_are_held_to_the_bound(
    plain_entries: list[Any], clip: str, norm: str, codes: list[str]
) -> None:
    """Both bands have such a norm in every step, so that the whole has 1.414 times as much."""
    entries = copy.deepcopy(plain_entries)
    entries[0][1]["clip_norm"] = clip
    for kind, body in entries:
        if kind == "committed":
            body["norms"] = {band: None if old is None else norm for band, old in body["norms"].items()}
    found, facts = _together(entries, len(entries))
    assert [finding.code for finding in found] == codes
    assert (found, facts) == _one_by_one(entries)


def test_a_gradient_where_nothing_reaches_is_found(plain_entries: list[Any]) -> None:
    """Examples of kind `d` reach `deep` alone: in a stretch of such steps `shallow` has no gradient."""
    entries = copy.deepcopy(plain_entries)
    last, outcome = _last(entries, "step"), _last(entries, "committed")
    every = [decision for kind, body in entries if kind == "decisions" for decision in body["decisions"]]
    number = next(decision["id"] for decision in every if decision["weights"] == [0, 250_000])
    place = last["decision"].index(number)
    for name in ("classes", "decision", "exposures"):
        last[name] = [last[name][place]]
    last["signals"] = {name: [values[place]] for name, values in last["signals"].items()}
    commitment = b64decode(last["commitments"])[32 * place : 32 * place + 32]
    last.update(count=1, verdict="limit", commitments=b64encode(commitment).decode())
    outcome["active"] = ["deep"]
    assert "gradient in `shallow`" in _together(entries, len(entries))[0][0].message
    outcome["norms"]["shallow"] = None
    found, _ = _together(entries[:-1], len(entries))
    assert [finding.code for finding in found] == []


def test_a_step_that_a_crash_left_without_an_outcome_counts_as_exposure(recorded: list[Any]) -> None:
    """As the run that goes on counts it: with its outcome gone, all later exposures are as they were."""
    resumed = [kind for kind, _ in recorded].index("resumed")
    lost = max(place for place in range(resumed) if recorded[place][0] == "committed")
    entries = recorded[:lost] + recorded[lost + 1 :]
    (finding,), _ = _one_by_one(entries)
    assert finding.code == "wrong_totals"
    assert _together(entries, 16) == _one_by_one(entries)


def test_most_steps_of_a_plain_run_are_judged_together(
    plain_entries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tests above would compare one way with itself."""
    single: list[str] = []
    accept = RunReplay._accept

    def counted(self: RunReplay, index: int, kind: str, body: Any) -> None:
        single.append(kind)
        accept(self, index, kind, body)

    monkeypatch.setattr(RunReplay, "_accept", counted)
    found, facts = _together(plain_entries, len(plain_entries))
    assert (found, facts["steps"]) == ([], STEPS)
    assert single.count("step") < STEPS / 2


def _audit(steps: list[dict[str, Any]]) -> tuple[ExampleAudit, Turns]:
    """Return an audit that knows two classes and two decisions, and steps of two examples each."""
    audit = ExampleAudit()
    audit.accept("classes", {"classes": [{"id": 0, "bits": "0"}, {"id": 1, "bits": "1"}]})
    audit.accept("decisions", {"decisions": [{"weights": [0]}, {"weights": [1]}]})
    entries: list[tuple[str, dict[str, Any]]] = []
    for number, step in enumerate(steps):
        commitments = b64encode(b"".join(bytes([name]) * 32 for name in step["examples"])).decode()
        body = {"step": number, "epoch": 0, "today": None, "count": 2, "commitments": commitments}
        body |= {"signals": {}, "slots": {}, "spent": [], "verdict": "admit"}
        body |= {name: step[name] for name in ("classes", "exposures", "decision")}
        outcome = {"step": number, "active": ["a"], "norms": {"a": "1"}, "loss": None, "privacy": {}}
        entries += [("step", body), ("committed", outcome)]
    (turns,) = Recogniser().read(_framed(_linked(entries)))
    assert isinstance(turns, Turns)
    return audit, turns


_ONCE = {"examples": [1, 2], "classes": [0, 0], "exposures": [0, 0], "decision": [1, 0]}
_AGAIN = {"examples": [2, 1], "classes": [0, 0], "exposures": [0, 1], "decision": [1, 1]}
_TWICE = {"examples": [1, 1], "classes": [0, 0], "exposures": [0, 1], "decision": [0, 0]}


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ([_ONCE, _AGAIN], None),
        ([_ONCE, _AGAIN | {"exposures": [0, 0]}], 2),
        ([_ONCE, _AGAIN | {"exposures": [1, 1]}], 2),
        ([_ONCE, _AGAIN | {"classes": [0, 1]}], 2),
        ([_ONCE, _AGAIN, _AGAIN | {"exposures": [1, 2], "classes": [1, 0]}], 4),
        ([_TWICE], None),
        ([_TWICE | {"exposures": [0, 0]}], 0),
        ([_TWICE | {"classes": [0, 1]}], 0),
    ],
)
def test_examples_of_many_steps_are_held_to_each_other(
    steps: list[dict[str, Any]], fault: int | None
) -> None:
    """Together and one by one; what was not taken together leaves no trace."""
    audit, turns = _audit(steps)
    taken = audit.accept_turns(turns, audit.number(turns.examples))
    assert not taken or fault is None
    assert taken or fault is not None or steps == [_TWICE]
    found = None
    for index, kind, body in () if taken else turns.entries():
        try:
            audit.accept(kind, body)
        except ViolationError:
            found = index
            break
    assert found == fault
    if fault is None:
        assert audit._exposures.array[: len(steps)].tolist() == ([2, 1] if len(steps) == 2 else [0])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 9), min_size=1, max_size=6)), max_size=9)
)
def test_an_example_has_one_row_whoever_numbers_it(runs: list[tuple[int, list[int]]]) -> None:
    readers, audit, rows = (Numbering(), Numbering()), ExampleAudit(), dict[int, int]()
    for reader, names in runs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numbering, "MOST", 4)
            patch.setattr(numbering.os, "getpid", lambda reader=reader: reader)
            numbered = readers[reader].number([b64encode(bytes([name]) * 32) for name in names])
        found = audit.number(numbered).tolist()
        assert found == [rows.setdefault(name, row) for name, row in zip(names, found, strict=True)]
    assert len(set(rows.values())) == len(rows)
