from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.errors import LedgerDamaged, LedgerError
from gradwarden.runtime.ledger import blocks
from gradwarden.runtime.ledger.chain import ChainReport, verify_chain
from gradwarden.runtime.ledger.entries import CANONICAL, compose, decode, encode_body
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash, tree_root
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.ledger.turns import Turns


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def write(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def relinked(lines: list[bytes], start: int = 0) -> list[bytes]:
    """Number and chain the lines anew, as a forger without the key would."""
    prev, out = "0" * 64, []
    for index, line in enumerate(lines):
        _, kind, _, body = decode(line)
        if index >= start:
            line = compose(kind, index, prev, encode_body(kind, body))
        prev = leaf_hash(line).hex()
        out.append(line)
    return out


def resigned(lines: list[bytes], signer: Signer, origin: str) -> list[bytes]:
    """Number, chain and sign the lines anew, as a forger with some key would."""
    prev, tree, out = "0" * 64, Tree(), []
    for index, line in enumerate(lines):
        _, kind, _, body = decode(line)
        if kind == "head":
            body = {"note": sign_note(Checkpoint(origin, index, tree.root()).text(), [signer])}
        line = compose(kind, index, prev, encode_body(kind, body))
        prev = leaf_hash(line).hex()
        tree.append(bytes.fromhex(prev))
        out.append(line)
    return out


def read_until(path: Path) -> int:
    """Return how many entries can be read before the first that is damaged."""
    count = 0
    with suppress(LedgerDamaged):
        for _ in read_entries(path):
            count += 1
    return count


@pytest.fixture
def copy(sealed: Path, path: Path) -> Path:
    """A copy of the small sealed ledger, without its sidecar."""
    shutil.copy(sealed, path)
    return path


def check(path: Path, signer: Signer) -> ChainReport:
    return verify_chain(path, [signer.public])


def test_a_sealed_ledger_holds(sealed: Path, signer: Signer) -> None:
    seen: list[Any] = []
    progress: list[tuple[int, int]] = []
    report = verify_chain(
        sealed, [signer.public], lambda: seen.append, lambda done, total: progress.append((done, total))
    )
    lines = lines_of(sealed)
    assert (report.status, report.findings, report.first_bad, report.sealed) == ("OK", (), None, True)
    assert report.size == len(lines) == 9
    assert report.signed_size == len(lines) - 1
    assert report.root == tree_root(map(leaf_hash, lines)).hex()
    assert report.keys_used == (signer.public.vkey,)
    told = [
        part.entries() if isinstance(part, Turns) else [(part.index, part.kind, part.body)] for part in seen
    ]
    assert list(chain.from_iterable(told)) == [
        (index, kind, body) for index, kind, _, body in map(decode, lines)
    ]
    assert progress[-1] == (sealed.stat().st_size, sealed.stat().st_size)


def test_a_ledger_in_use_is_incomplete_not_tampered(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    ledger.flush()
    assert check(path, signer).status == "UNTRUSTED"  # nothing is signed yet
    ledger.close()
    report = check(path, signer)
    assert (report.status, report.sealed, report.first_bad) == ("INCOMPLETE", False, None)
    assert [finding.code for finding in report.findings] == ["not_sealed"]


@pytest.mark.parametrize("keys", ["none", "other"])
def test_without_the_right_key_nothing_is_trusted(sealed: Path, other: Signer, keys: str) -> None:
    report = verify_chain(sealed, [other.public] if keys == "other" else [])
    assert (report.status, report.first_bad, report.signed_size) == ("UNTRUSTED", 8, 0)
    assert report.findings[0].code == "unknown_key"


def test_a_ledger_signed_anew_with_another_key_is_untrusted(
    copy: Path, signer: Signer, other: Signer
) -> None:
    origin = verify_chain(copy, []).origin or ""
    write(copy, resigned(lines_of(copy), other, origin))
    assert check(copy, signer).status == "UNTRUSTED"
    # even a key that is trusted elsewhere may not sign for a ledger that does not name it
    report = verify_chain(copy, [signer.public, other.public])
    assert (report.status, report.first_bad) == ("TAMPERED", 8)
    assert report.findings[0].code == "undeclared_key"


def test_a_tail_signed_anew_is_located(path: Path, cases: Any, signer: Signer, other: Signer) -> None:
    cases.build(path, signer, seal=False)
    Ledger.open(path, signer).close(cases.seal)
    Path(f"{path}.head").unlink()
    lines = lines_of(path)
    origin = verify_chain(path, []).origin or ""
    last = len(lines) - 1
    head = Checkpoint(origin, last, tree_root(map(leaf_hash, lines[:-1])))
    note = encode_body("head", {"note": sign_note(head.text(), [other])})
    write(path, [*lines[:-1], compose("head", last, leaf_hash(lines[-2]).hex(), note)])
    report = check(path, signer)
    assert (report.status, report.first_bad) == ("TAMPERED", last)
    assert report.findings[0].code == "unknown_key"


def test_an_altered_entry_is_located(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    for index in range(1, 8):
        _, kind, prev, body = decode(lines[index])
        changed = {**body, "steps" if kind == "sealed" else "step": 77}
        write(
            copy,
            [*lines[:index], compose(kind, index, prev, encode_body(kind, changed)), *lines[index + 1 :]],
        )
        report = check(copy, signer)
        assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", index, "altered")


def test_an_altered_and_relinked_entry_breaks_the_signed_head(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    _, kind, prev, body = decode(lines[2])
    lines[2] = compose(kind, 2, prev, encode_body(kind, {**body, "loss": "1.0"}))
    report = check(write(copy, relinked(lines)), signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", 8, "wrong_root")


def test_a_broken_link_is_blamed_on_its_own_entry(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    for index in range(1, 9):
        _, kind, prev, body = decode(lines[index])
        other = "f" * 64 if prev[0] != "f" else "0" * 64
        write(
            copy, [*lines[:index], compose(kind, index, other, encode_body(kind, body)), *lines[index + 1 :]]
        )
        report = check(copy, signer)
        assert (report.first_bad, report.findings[0].code) == (index, "wrong_link")


def test_a_broken_link_behind_the_last_head_is_found_between_blocks_too(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = cases.begin(path, signer)
    for step in range(8):
        ledger.append("committed", cases.committed(step))
    ledger.flush()
    lines = lines_of(path)
    ledger.close()
    Path(f"{path}.head").unlink()
    monkeypatch.setattr(blocks, "BLOCK", 700)
    for index in range(1, len(lines)):
        _, kind, _, body = decode(lines[index])
        broken = compose(kind, index, "f" * 64, encode_body(kind, body))
        write(path, relinked([*lines[:index], broken, *lines[index + 1 :]], index + 1))
        report = check(path, signer)
        assert (report.status, report.first_bad) == ("TAMPERED", index - 1)


def test_where_two_entries_were_changed_the_first_is_named(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    for index in range(1, 7):
        changed = list(lines)
        for place in (index, index + 1):
            _, kind, prev, body = decode(lines[place])
            name = "steps" if kind == "sealed" else "step"
            changed[place] = compose(kind, place, prev, encode_body(kind, {**body, name: 77}))
        for cut in (len(lines), index + 2):  # whether or not an entry follows
            report = check(write(copy, changed[:cut]), signer)
            assert (report.status, report.first_bad, report.findings[0].code) == (
                "TAMPERED",
                index,
                "altered",
            )


@pytest.mark.parametrize("number", [0, 1])
def test_a_head_by_a_stranger_is_named_where_more_is_wrong_behind_it(
    path: Path, cases: Any, signer: Signer, other: Signer, number: int
) -> None:
    cases.build(path, signer, steps=1, seal=False)
    Ledger.open(path, signer).close()
    Ledger.open(path, signer).close(cases.seal)
    Path(f"{path}.head").unlink()
    lines = lines_of(path)
    at = [index for index, line in enumerate(lines) if decode(line)[1] == "head"][number]
    head = Checkpoint(check(path, signer).origin or "", at, tree_root(map(leaf_hash, lines[:at])))
    note = encode_body("head", {"note": sign_note(head.text(), [other])})
    lines[at] = compose("head", at, leaf_hash(lines[at - 1]).hex(), note)
    report = check(write(path, relinked(lines, at + 1)), signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", at, "unknown_key")


def test_missing_added_and_swapped_lines_are_located(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    for index in range(1, 8):
        report = check(write(copy, lines[:index] + lines[index + 1 :]), signer)
        assert (report.status, report.first_bad, report.findings[0].code) == (
            "TAMPERED",
            index,
            "wrong_index",
        )
        report = check(write(copy, [*lines[:index], lines[index], *lines[index:]]), signer)
        assert (report.status, report.first_bad) == ("TAMPERED", index + 1)
        swapped = [*lines[:index], lines[index + 1], lines[index], *lines[index + 2 :]]
        report = check(write(copy, swapped), signer)
        assert (report.status, report.first_bad) == ("TAMPERED", index)


def test_relinking_does_not_hide_a_removed_or_added_entry(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    report = check(write(copy, relinked(lines[:3] + lines[4:])), signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", 7, "wrong_size")
    report = check(write(copy, relinked([*lines[:3], lines[2], *lines[3:]])), signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", 9, "wrong_size")


def test_two_genuine_ledgers_do_not_splice(copy: Path, tmp_path: Path, cases: Any, signer: Signer) -> None:
    lines = lines_of(copy)
    second = lines_of(cases.build(tmp_path / "second.ledger", signer))
    for at in range(1, 9):
        report = check(write(copy, lines[:at] + second[at:]), signer)
        assert report.status == "TAMPERED"
        assert report.first_bad in (at - 1, at)
    report = check(write(copy, relinked(lines[:3] + second[3:])), signer)
    assert (report.first_bad, report.findings[0].code) == (8, "wrong_origin")


@pytest.mark.parametrize("kind", ["opened", "step", "head", "sealed"])
def test_nothing_may_follow_the_seal(copy: Path, signer: Signer, kind: str) -> None:
    lines = lines_of(copy)
    extra = next(line for line in lines if decode(line)[1] == kind)
    report = check(write(copy, relinked([*lines, extra], start=9)), signer)
    assert (report.status, report.first_bad) == ("TAMPERED", 9)
    copy.write_bytes(b"".join(line + b"\n" for line in lines) + b"{")
    report = check(copy, signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", 9, "after_seal")


@pytest.mark.parametrize(
    ("change", "code"), [({"from_size": 1}, "wrong_size"), ({"root": "0" * 64}, "wrong_root")]
)
def test_a_ledger_resumes_from_the_entries_that_it_has(
    path: Path, cases: Any, signer: Signer, change: dict[str, Any], code: str
) -> None:
    ledger = Ledger.open(cases.build(path, signer, seal=False), signer)
    ledger.close({"steps": 3, "committed": 3, "refused": 0, "examples": 6})
    assert check(path, signer).status == "OK"
    lines = lines_of(path)
    place = next(i for i, line in enumerate(lines) if decode(line)[1] == "resumed")
    index, kind, prev, body = decode(lines[place])
    lines[place] = compose(kind, index, prev, encode_body(kind, {**body, **change}))
    write(path, resigned(lines, signer, ledger.origin))
    report = check(path, signer)
    assert (report.status, report.first_bad) == ("TAMPERED", place)
    assert next(finding.code for finding in report.findings if finding.severity == "error") == code


def test_a_ledger_begins_with_its_opening_and_has_one(copy: Path, signer: Signer) -> None:
    lines = lines_of(copy)
    report = check(write(copy, relinked(lines[1:])), signer)
    assert (report.first_bad, report.findings[0].code) == (0, "no_opening")
    report = check(write(copy, relinked([*lines[:2], lines[0], *lines[2:]])), signer)
    assert (report.first_bad, report.findings[0].code) == (2, "second_opening")


def test_a_ledger_cut_short_is_noticed(copy: Path, sealed: Path, signer: Signer) -> None:
    whole = copy.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    sizes = sorted({*range(0, len(whole), 9), *ends, *(end + 1 for end in ends[:-1])})
    for size in sizes:
        copy.write_bytes(whole[:size])
        report = check(copy, signer)
        assert report.status in ("INCOMPLETE", "UNTRUSTED")  # all that one file alone can show
        assert report.findings[-1].index == whole[:size].count(b"\n")
    shutil.copy(f"{sealed}.head", f"{copy}.head")
    for size in sizes:
        copy.write_bytes(whole[:size])
        report = check(copy, signer)
        assert (report.status, report.first_bad) == ("TAMPERED", whole[:size].count(b"\n"))
        assert "truncated" in [finding.code for finding in report.findings]


@settings(max_examples=300)
@given(st.data())
def test_no_byte_can_be_changed(
    sealed: Path, signer: Signer, tmp_path_factory: Any, data: st.DataObject
) -> None:
    changed = bytearray(sealed.read_bytes())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.ledger"
    path.write_bytes(changed)
    report = check(path, signer)
    assert report.status != "OK"
    index = sealed.read_bytes()[:at].count(b"\n")
    assert {index, index + 1} & {finding.index for finding in report.findings}
    # a reader without keys notices too, but for the last entry, to which nothing links
    assert read_until(path) in ((index, index + 1) if index < 8 else (8, 9))


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from(["{", "}", "[", '"', "0", "\n", "\x00"])).map(
        lambda parts: "".join(parts).encode()
    )
)
def test_arbitrary_files_are_reported_not_raised(signer: Signer, tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.ledger"
    path.write_bytes(data)
    assert check(path, signer).status in ("TAMPERED", "UNTRUSTED")
    Path(f"{path}.head").write_bytes(data)
    assert check(path, signer).status in ("TAMPERED", "UNTRUSTED")
    Path(f"{path}.head").unlink()


def test_an_endless_line_is_refused_at_once(copy: Path, signer: Signer) -> None:
    start = copy.stat().st_size
    with copy.open("ab") as file:
        file.truncate(start + (1 << 32))  # sparse: 4 GiB without a newline
    report = check(copy, signer)
    assert (report.status, report.first_bad, report.findings[0].code) == ("TAMPERED", 9, "too_long")
    assert report.findings[0].offset == start


@pytest.mark.parametrize("held", [False, True])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(copy: Path, signer: Signer, held: bool) -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    head, listed, whole = (Path(f"{copy}{suffix}") for suffix in (".head", ".archived", ""))
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        for path, found in (
            (head, "sidecar_malformed"),
            (listed, "no list of archives"),
            (whole, "cannot read"),
        ):
            path.unlink(missing_ok=True)
            os.mkfifo(path)
            writer = os.open(path, os.O_RDWR) if held else None
            if path == head:
                assert [finding.code for finding in check(copy, signer).findings] == [found]
            else:
                with pytest.raises(LedgerError, match=found):
                    check(copy, signer)
            if writer is not None:
                os.close(writer)
            path.unlink()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, signer: Signer) -> None:
    with pytest.raises(LedgerError, match="cannot read"):
        check(tmp_path / "absent.ledger", signer)
    with pytest.raises(LedgerError, match="cannot read"):
        check(tmp_path, signer)


def test_the_sidecar_is_held_against_the_ledger(
    copy: Path, sealed: Path, tmp_path: Path, cases: Any, signer: Signer, other: Signer
) -> None:
    beside = Path(f"{copy}.head")
    second = cases.build(tmp_path / "second.ledger", signer)
    genuine = Path(f"{sealed}.head").read_bytes()
    stranger = cases.build(tmp_path / "stranger.ledger", other)
    lines = lines_of(copy)
    early = Checkpoint(check(copy, signer).origin or "", 4, tree_root(map(leaf_hash, lines[:4])))
    wrong = Checkpoint(early.origin, 4, bytes(32))
    expected = {
        genuine: [],
        Path(f"{second}.head").read_bytes(): ["sidecar_mismatch"],
        Path(f"{stranger}.head").read_bytes(): ["sidecar_signature"],
        genuine[:-10]: ["sidecar_malformed"],
        genuine.replace(b"\n8\n", b"\n7\n"): ["sidecar_signature"],
        sign_note(early.text(), [signer]).encode(): ["stale_sidecar"],
        sign_note(wrong.text(), [signer]).encode(): ["sidecar_mismatch"],
    }
    for content, codes in expected.items():
        beside.write_bytes(content)
        report = check(copy, signer)
        assert [finding.code for finding in report.findings] == codes
        assert report.status == ("OK" if codes in ([], ["stale_sidecar"]) else "TAMPERED")


@pytest.mark.parametrize("size", [1, 2, 7, 8, 10])
@pytest.mark.parametrize("other", [False, True])
def test_a_head_of_any_size_beside_the_ledger_is_held_against_it(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch, size: int, other: bool
) -> None:
    lines = lines_of(cases.build(path, signer, steps=4))
    root = bytes(32) if other else tree_root(map(leaf_hash, lines[:size]))
    head = Checkpoint(check(path, signer).origin or "", size, root)
    Path(f"{path}.head").write_bytes(sign_note(head.text(), [signer]).encode())
    monkeypatch.setattr(blocks, "BLOCK", 999)
    report = check(path, signer)
    codes = [finding.code for finding in report.findings]
    assert codes == ["sidecar_mismatch"] if other else codes in ([], ["stale_sidecar"])
    monkeypatch.setattr(blocks, "BLOCK", 1 << 20)
    assert check(path, signer) == report


@pytest.mark.parametrize("kind", ["step", "committed", "sealed"])
def test_a_body_of_the_wrong_shape_is_found(path: Path, cases: Any, signer: Signer, kind: str) -> None:
    lines = lines_of(cases.build(path, signer, steps=4))
    origin = check(path, signer).origin or ""
    prev, tree, out = "0" * 64, Tree(), []
    for index, line in enumerate(lines):
        _, found, _, body = decode(line)
        body = {**body, "stray": 0} if found == kind else body
        if found == "head":
            body = {"note": sign_note(Checkpoint(origin, index, tree.root()).text(), [signer])}
        out.append(compose(found, index, prev, orjson.dumps(body, option=CANONICAL)))
        prev = leaf_hash(out[-1]).hex()
        tree.append(leaf_hash(out[-1]))
    Path(f"{path}.head").unlink()
    write(path, out)
    report = check(path, signer)
    assert "wrong_shape" in [finding.code for finding in report.findings]
