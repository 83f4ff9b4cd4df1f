from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.errors import EntryInvalid, LedgerBusy, LedgerDamaged, LedgerError, LedgerRollback
from gradwarden.runtime.ledger import recovery
from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.ledger.storage import LedgerFile


@pytest.mark.parametrize("durability", ["every", "group", "os"])
def test_what_is_appended_is_read_back(path: Path, cases: Any, signer: Signer, durability: str) -> None:
    ledger = cases.begin(path, signer, durability=durability)
    bodies = [(kind, body) for kind, several in cases.every_kind().items() for body in several]
    indexes = [ledger.append(kind, body) for kind, body in bodies]
    ledger.wait(indexes[-1])
    written = list(read_entries(path))
    assert [(entry.index, entry.kind, entry.body) for entry in written[1:]] == [
        (index, *body) for index, body in zip(indexes, bodies, strict=True)
    ]
    ledger.close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_threads_share_a_ledger(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    taken: dict[int, int] = {}

    def work(first: int) -> None:
        for step in range(first, first + 200):
            taken[ledger.append("committed", cases.committed(step))] = step

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close(cases.seal)
    committed = {e.index: e.body["step"] for e in read_entries(path) if e.kind == "committed"}
    assert committed == taken
    assert len(committed) == 800
    assert verify_chain(path, [signer.public]).status == "OK"


def test_heads_come_with_enough_entries(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer, durability="os")
    for step in range(2500):
        ledger.append("committed", cases.committed(step))
    ledger.flush()
    assert [entry.index for entry in read_entries(path) if entry.kind == "head"] == [1024, 2049]
    head = ledger.head()
    assert head is not None
    assert (head.size, head.origin) == (2049, ledger.origin)
    ledger.close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_head_comes_with_time(path: Path, cases: Any, signer: Signer, monkeypatch: Any) -> None:
    monkeypatch.setattr(writer_module, "HEAD_SECONDS", 0.05)
    ledger = cases.begin(path, signer)
    seen = threading.Event()
    for _ in range(200):
        if ledger.head() is not None:
            break
        seen.wait(0.05)
    head = ledger.head()
    assert head is not None
    assert head.size == 1
    seen.wait(0.2)
    assert len(ledger) == 2  # and none is signed while nothing happens
    ledger.close()


def test_opening_again_goes_on_and_says_so(path: Path, cases: Any, signer: Signer) -> None:
    cases.build(path, signer, seal=False)
    before = verify_chain(path, [signer.public])
    ledger = Ledger.open(path, signer)
    assert (ledger.entries_on_open, ledger.cut_on_open, ledger.origin) == (before.size, 0, before.origin)
    ledger.append("committed", cases.committed(9))
    ledger.close(cases.seal)
    entries = list(read_entries(path))
    resumed = entries[before.size]
    assert (resumed.kind, resumed.body) == (
        "resumed",
        {"from_size": before.size, "root": before.root, "cut": 0, "broken": None},
    )
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_sealed_ledger_is_not_opened_again(sealed: Path, signer: Signer) -> None:
    before = sealed.read_bytes()
    with pytest.raises(LedgerError, match="is sealed"):
        Ledger.open(sealed, signer)
    assert sealed.read_bytes() == before


def test_only_one_writer(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    with pytest.raises(LedgerBusy):
        Ledger.open(path, signer)
    ledger.append("committed", cases.committed(1))
    ledger.close()
    Ledger.open(path, signer).close()
    assert verify_chain(path, [signer.public]).status == "INCOMPLETE"


def test_another_key_or_origin_does_not_continue(
    path: Path, cases: Any, signer: Signer, other: Signer
) -> None:
    cases.build(path, signer, seal=False, origin="lab/run-7")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another key"):
        Ledger.open(path, other)
    with pytest.raises(LedgerError, match="`lab/run-7`, not `lab/run-8`"):
        Ledger.open(path, signer, origin="lab/run-8")
    assert path.read_bytes() == before
    Ledger.open(path, signer, origin="lab/run-7").close()


@pytest.mark.parametrize("origin", ["", "a\nb"])
def test_an_origin_is_one_line(path: Path, signer: Signer, origin: str) -> None:
    with pytest.raises(LedgerError, match="cannot name a ledger"):
        Ledger.open(path, signer, origin=origin)


def test_an_unknown_durability_is_refused(path: Path, signer: Signer) -> None:
    with pytest.raises(LedgerError, match="`never` is not a durability"):
        Ledger.open(path, signer, durability="never")  # type: ignore[arg-type]  # what a user may type
    Ledger.open(path, signer).close()


def test_the_first_entry_is_the_opening_and_names_the_ledger(
    path: Path, cases: Any, signer: Signer, other: Signer
) -> None:
    ledger = Ledger.open(path, signer)
    with pytest.raises(EntryInvalid, match="begins with"):
        ledger.append("committed", cases.committed(1))
    for wrong in ({"origin": "another"}, {"keys": [other.public.vkey]}):
        with pytest.raises(EntryInvalid, match="own origin and key"):
            ledger.append("opened", {**cases.opened(ledger), **wrong})
    assert ledger.append("opened", cases.opened(ledger)) == 0
    with pytest.raises(EntryInvalid, match="opened already"):
        ledger.append("opened", cases.opened(ledger))
    with pytest.raises(EntryInvalid, match="itself"):
        ledger.append("head", {"note": "forged"})
    ledger.close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_refused_body_leaves_no_gap(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    with pytest.raises(EntryInvalid):
        ledger.append("committed", {**cases.committed(1), "loss": 0.5})
    assert ledger.append("committed", cases.committed(1)) == 1
    ledger.close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_closing_twice_is_safe_and_ends_it(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    ledger.close(cases.seal)
    ledger.close(cases.seal)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("committed", cases.committed(1))
    with pytest.raises(LedgerError, match="closed"):
        ledger.wait(0)
    assert path.read_bytes() == before


def test_an_unfinished_seal_is_finished_on_opening(path: Path, cases: Any, signer: Signer) -> None:
    cases.build(path, signer)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:-2]) + b"\n")  # the crash came between `sealed` and its head
    Path(f"{path}.head").unlink()
    assert verify_chain(path, [signer.public]).status != "OK"
    with pytest.raises(LedgerError, match="is sealed"):
        Ledger.open(path, signer)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_program_that_forgets_to_close_loses_nothing(path: Path, tmp_path: Path, signer: Signer) -> None:
    signer.save(tmp_path / "run.key")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from conftest import Cases\n"
        "from gradwarden.runtime import Signer\n"
        "ledger = Cases().begin(sys.argv[2], Signer.load(sys.argv[3]))\n"
        "[ledger.append('committed', Cases().committed(step)) for step in range(50)]\n"
    )
    arguments = [str(Path(__file__).parent), str(path), str(tmp_path / "run.key")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    report = verify_chain(path, [signer.public])
    assert (report.status, report.signed_size) == ("INCOMPLETE", 51)


def test_a_forked_process_may_not_append(path: Path, cases: Any, signer: Signer) -> None:
    ledger = cases.begin(path, signer)
    ledger.flush()
    child = os.fork()
    if child == 0:
        try:
            ledger.append("committed", cases.committed(1))
        except LedgerError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ledger.close()


class Faulty:
    """Makes a ledger's file fail: writes after `room` bytes (the last one torn), or every sync."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, room: int | None = None, code: int = errno.ENOSPC
    ) -> None:
        self.room = room
        genuine = LedgerFile.write

        def write(file: LedgerFile, data: bytes) -> None:
            assert self.room is not None
            genuine(file, data[: self.room])
            self.room -= len(data)
            if self.room < 0:
                raise OSError(code, os.strerror(code))

        def sync(file: LedgerFile) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(LedgerFile, *(("sync", sync) if room is None else ("write", write)))


def append_many(ledger: Ledger, cases: Any, *, wait: bool) -> None:
    for step in range(1_000):
        index = ledger.append("committed", cases.committed(step))
        if wait:
            ledger.wait(index)


@pytest.mark.parametrize("room", [0, 1, 400, 2000])
def test_a_full_disk_poisons_the_ledger_and_is_repaired(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    ledger = cases.begin(path, signer)
    ledger.flush()
    with monkeypatch.context() as patch:
        Faulty(patch, room)
        with pytest.raises(LedgerError, match="No space left on device"):
            append_many(ledger, cases, wait=True)
        with pytest.raises(LedgerError, match="can no longer be written"):
            ledger.append("committed", cases.committed(1))
        with pytest.raises(LedgerError, match="can no longer be written"):
            ledger.close(cases.seal)
        ledger.close()
    again = Ledger.open(path, signer)
    again.close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_failed_sync_is_never_retried(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = cases.begin(path, signer)
    ledger.flush()
    with monkeypatch.context() as patch:
        Faulty(patch)
        index = ledger.append("committed", cases.committed(1))
        with pytest.raises(LedgerError, match="Input/output error"):
            ledger.wait(index)
    with pytest.raises(LedgerError, match="Input/output error"):
        ledger.append("committed", cases.committed(2))
    with pytest.raises(LedgerError):
        ledger.close()


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["cut", "set aside"])
def test_a_disk_that_fails_in_the_repair_is_told_in_words(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cases.build(path, signer, seal=False)
    with path.open("ab") as file:
        file.write(b'{"body":')
    with monkeypatch.context() as patch:
        patch.setattr(*((LedgerFile, "cut") if call == "cut" else (recovery, "_set_aside")), refuse)
        with pytest.raises(LedgerError, match=r"cannot repair the ledger .*: No space left on device"):
            Ledger.open(path, signer)
    Ledger.open(path, signer).close(cases.seal)
    assert verify_chain(path, [signer.public]).status == "OK"


def test_a_file_that_cannot_be_closed_is_told_in_words(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = cases.begin(path, signer)
    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, "close", refuse)
        with pytest.raises(LedgerError, match="could not be closed: No space left on device"):
            ledger.close(cases.seal)
    assert verify_chain(path, [signer.public]).findings == ()


def test_a_blocked_caller_is_told_of_the_failure(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_QUEUE", 4)
    ledger = cases.begin(path, signer)
    ledger.flush()
    with monkeypatch.context() as patch:
        Faulty(patch, 1000)
        with pytest.raises(LedgerError, match="No space"):
            append_many(ledger, cases, wait=False)
    with pytest.raises(LedgerError):
        ledger.close()


def test_a_read_only_place_is_a_clear_error(path: Path, signer: Signer, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LedgerError, match="Read-only file system"):
        Ledger.open(path, signer)


def test_a_missing_folder_is_a_clear_error(tmp_path: Path, signer: Signer) -> None:
    with pytest.raises(LedgerError, match="No such file or directory"):
        Ledger.open(tmp_path / "absent" / "run.ledger", signer)


def cut_after(path: Path, entries: int) -> bytes:
    return b"".join(line + b"\n" for line in path.read_bytes().split(b"\n")[:entries])


def test_a_torn_tail_is_set_aside_at_every_byte(path: Path, cases: Any, signer: Signer) -> None:
    cases.build(path, signer, steps=1, seal=False)
    whole, head = path.read_bytes(), Path(f"{path}.head")
    signed = head.read_bytes()
    floor = len(cut_after(path, 4))  # opened, step, committed, head
    assert floor == len(whole)
    ledger = Ledger.open(path, signer)
    ledger.wait(ledger.append("step", cases.step(1)))
    longer = path.read_bytes()
    ledger.close()
    for size in range(floor, len(longer), 13):
        path.write_bytes(longer[:size])
        head.write_bytes(signed)
        for old in path.parent.glob("*.broken-*"):
            old.unlink()
        kept = longer[:size].rfind(b"\n") + 1
        reopened = Ledger.open(path, signer)
        assert reopened.cut_on_open == size - kept
        reopened.close()
        saved = list(path.parent.glob("*.broken-*"))
        assert [file.read_bytes() for file in saved] == ([longer[kept:size]] if size > kept else [])
        resumed = next(
            e for e in read_entries(path) if e.kind == "resumed" and e.index >= kept_lines(longer, kept)
        )
        assert resumed.body["broken"] == (saved[0].name if saved else None)
        assert verify_chain(path, [signer.public]).status == "INCOMPLETE"


def kept_lines(data: bytes, size: int) -> int:
    return data[:size].count(b"\n")


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 5000, b"\x00" * 100 + b"\n" + b"\xff" * 70_000, b'{"body":{}\n\n\n']
)
def test_garbage_after_the_end_is_set_aside(path: Path, cases: Any, signer: Signer, garbage: bytes) -> None:
    cases.build(path, signer, seal=False)
    Path(f"{path}.broken-1").write_bytes(b"of an earlier crash")
    with path.open("ab") as file:
        file.write(garbage)
    ledger = Ledger.open(path, signer)
    ledger.close(cases.seal)
    assert ledger.cut_on_open == len(garbage)
    assert Path(f"{path}.broken-1").read_bytes() == b"of an earlier crash"
    assert Path(f"{path}.broken-2").read_bytes() == garbage
    assert verify_chain(path, [signer.public]).status == "OK"


def unsigned_tail(path: Path, cases: Any, signer: Signer) -> bytes:
    """Write a ledger whose last 20 entries no head covers, and return its content."""
    cases.build(path, signer, seal=False)
    ledger = Ledger.open(path, signer)
    for step in range(3, 23):
        ledger.append("committed", cases.committed(step))
    ledger.flush()
    content = path.read_bytes()
    ledger.close()
    path.write_bytes(content)
    Path(f"{path}.head").unlink()
    return content


def with_hole(content: bytes, start: int, end: int) -> bytes:
    return content[:start] + bytes(end - start) + content[end:]


@pytest.mark.parametrize("blocks", [(1, 2), (2, 5), (1, 6)])
@pytest.mark.parametrize("tail", [b"", b"\0" * 700, b'{"body":'])
def test_blocks_that_did_not_reach_the_disk_are_set_aside_with_what_follows(
    path: Path, cases: Any, signer: Signer, blocks: tuple[int, int], tail: bytes
) -> None:
    content = unsigned_tail(path, cases, signer)
    first = -(-(content.rfind(b'"resumed"') + 200) // 512)
    start, end = 512 * (first + blocks[0]), 512 * (first + blocks[1])
    spoilt = with_hole(content, start, end) + tail
    path.write_bytes(spoilt)
    kept = content.rfind(b"\n", 0, start) + 1
    ledger = Ledger.open(path, signer)
    ledger.close(cases.seal)
    assert ledger.entries_on_open == content[:kept].count(b"\n")
    assert Path(f"{path}.broken-1").read_bytes() == spoilt[kept:]
    assert verify_chain(path, [signer.public]).status == "OK"


def test_what_no_lost_block_explains_is_not_set_aside(path: Path, cases: Any, signer: Signer) -> None:
    content = unsigned_tail(path, cases, signer)
    at = -(-(content.rfind(b'"resumed"') + 200) // 512) * 512
    head = content.index(b'"kind":"head"')
    garbled = bytearray(with_hole(content, at, at + 512))
    garbled[content.index(b'"loss"', at + 1_024)] = 0x7F
    spoilt = {
        "no block": with_hole(content, at + 3, at + 512),
        "no whole block": with_hole(content, at, at + 500),
        "other bytes": content[:at] + b"x" * 512 + content[at + 512 :],
        "before a head": with_hole(content, 512, head // 512 * 512),
        "garbage behind": bytes(garbled),
    }
    for name, changed in spoilt.items():
        path.write_bytes(changed)
        with pytest.raises(LedgerDamaged):
            Ledger.open(path, signer)
        assert path.read_bytes() == changed, name


def test_what_was_signed_is_never_cut(path: Path, cases: Any, signer: Signer) -> None:
    cases.build(path, signer, seal=False)
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerRollback):
            Ledger.open(path, signer)
        assert path.read_bytes() == whole[:size]
    path.unlink()
    with pytest.raises(LedgerRollback):
        Ledger.open(path, signer)


def test_damage_before_the_end_is_never_cut(path: Path, cases: Any, signer: Signer) -> None:
    cases.build(path, signer, seal=False)
    lines = path.read_bytes().split(b"\n")
    spoilt = {
        1: b"garbage",
        2: lines[2].replace(b"2.5", b"1.5"),
        3: lines[4],
    }
    for index, line in spoilt.items():
        changed = b"\n".join([*lines[:index], line, *lines[index + 1 :]])
        path.write_bytes(changed)
        with pytest.raises(LedgerDamaged) as caught:
            Ledger.open(path, signer)
        assert caught.value.index == index
        assert path.read_bytes() == changed
    assert list(path.parent.glob("*.broken-*")) == []


def test_an_entry_that_was_changed_behind_the_last_head_is_no_crash(
    path: Path, cases: Any, signer: Signer
) -> None:
    content = unsigned_tail(path, cases, signer)
    changed = content.replace(b'"step":10}', b'"step":77}')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(LedgerDamaged):
        Ledger.open(path, signer)
    assert path.read_bytes() == changed


def test_a_ledger_that_differs_from_its_signed_head_is_refused(
    path: Path, tmp_path: Path, cases: Any, signer: Signer
) -> None:
    cases.build(path, signer, seal=False)
    second = cases.build(tmp_path / "second.ledger", signer, seal=False)
    Path(f"{path}.head").write_bytes(Path(f"{second}.head").read_bytes())
    with pytest.raises(LedgerRollback, match="differs"):
        Ledger.open(path, signer)


def test_the_ledger_needs_no_torch() -> None:
    modules = "ledger, chain, reader, keys, note, merkle, blocks, sharing, recovery"
    program = f"import sys; from gradwarden.runtime.ledger import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("durability", ["every", "group", "os"])
def test_only_durable_entries_are_signed(
    path: Path, cases: Any, signer: Signer, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    """Before a head is written, all that it covers has been synced; before the sidecar, the head has."""
    unsynced: list[bytes] = []
    heads = []
    write, sync, beside = LedgerFile.write, LedgerFile.sync, writer_module.write_sidecar

    def watched_write(file: LedgerFile, data: bytes) -> None:
        for line in data.split(b"\n")[:-1]:
            if b'"kind":"head"' in line:
                assert unsynced == []
                heads.append(line)
            unsynced.append(line)
        write(file, data)

    def watched_sync(file: LedgerFile) -> None:
        sync(file)
        unsynced.clear()

    def watched_sidecar(path: str, note: str) -> None:
        assert unsynced == []
        beside(path, note)

    monkeypatch.setattr(LedgerFile, "write", watched_write)
    monkeypatch.setattr(LedgerFile, "sync", watched_sync)
    monkeypatch.setattr(writer_module, "write_sidecar", watched_sidecar)
    ledger = cases.begin(path, signer, durability=durability)
    for step in range(1500):
        ledger.append("committed", cases.committed(step))
    ledger.close(cases.seal)
    assert len(heads) == 2
    assert verify_chain(path, [signer.public]).status == "OK"
