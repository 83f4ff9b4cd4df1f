"""An archived ledger reads as it did; without its archives it says what cannot be checked any more."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime import archiving
from gradwarden.runtime.archiving import archive_ledger
from gradwarden.runtime.errors import ArchiveMissing, LedgerBusy, LedgerDamaged, LedgerError
from gradwarden.runtime.evidence.prover import (
    last_head,
    prove_consistency,
    prove_inclusion,
    read_head,
    root_over,
)
from gradwarden.runtime.evidence.tiles import export_tiles
from gradwarden.runtime.ledger import archive, zstd
from gradwarden.runtime.ledger.archived_head import compare_head
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.merkle import verify_consistency
from gradwarden.runtime.ledger.reader import open_ledger, read_entries
from gradwarden.runtime.verification.verify import verify_ledger
from tests.campaign.genuine import RUN, WRITERS, Genuine, genuine, workplace

zstandard = pytest.importorskip("zstandard")


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "FRAME", 2_000)


def laid(folder: Path, base: Genuine) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "run.ledger"
    path.write_bytes(base.content)
    Path(f"{path}.head").write_bytes(base.sidecar)
    return path


def archived(folder: Path, name: str = "plain", *keep: int) -> tuple[Path, Genuine]:
    """Archive a ledger, several times where that is asked for."""
    base = genuine(name)
    path = laid(folder, base)
    for entries in keep or (0,):
        archive_ledger(path, base.keys, keep=entries)
    return path, base


def whole(path: Path) -> bytes:
    with open_ledger(path) as file:
        return file.read()


def told(path: Path, base: Genuine) -> Any:
    report = verify_ledger(path, base.keys)
    return report.status, [(one.code, one.index, one.offset) for one in report.findings], report.facts


# Budgets take seconds to reckon, and archives know nothing of them.
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "private"])
def test_every_reader_reads_what_was_written(tmp_path: Path, name: str) -> None:
    base = genuine(name)
    before = laid(tmp_path / "before", base)
    keep = (14, 0) if len(base.heads) > 3 else (0,)
    path, _ = archived(tmp_path / "after", name, *keep)
    assert path.stat().st_size < 0.7 * len(base.content)
    assert whole(path) == base.content
    assert [entry.line for entry in read_entries(path)] == base.lines
    assert told(path, base) == told(before, base)
    head = last_head(path)
    assert head == last_head(before)
    for index in range(0, head.checkpoint.size, 5):
        assert prove_inclusion(path, index, head) == prove_inclusion(before, index, head)
    written = [tmp_path / "tiles", tmp_path / "tiles-before"]
    for ledger, folder in zip((path, before), written, strict=True):
        folder.mkdir()
        export_tiles(ledger, folder, head)
    names = [sorted(one.relative_to(folder) for one in folder.rglob("*")) for folder in written]
    assert names[0] == names[1]
    assert all(
        (written[0] / one).read_bytes() == (written[1] / one).read_bytes()
        for one in names[0]
        if (written[0] / one).is_file()
    )


def test_an_index_of_an_archived_ledger_is_that_of_the_whole_one(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from gradwarden.runtime.provenance.index import build_index, check_index
    from gradwarden.runtime.provenance.queries import Queries

    path = laid(tmp_path, genuine("plain"))
    before = Queries(build_index(path)).band("deep")
    archive_ledger(path)
    index = check_index(path)
    assert index.behind == 0
    assert Queries(index).band("deep") == before


def test_other_programs_read_archives_too(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "plain", 14, 0)
    files = sorted(tmp_path.glob("run.ledger.archive-*.zst"))
    assert len(files) == 2
    joined = b"".join(file.read_bytes() for file in files)
    reader = zstandard.ZstdDecompressor().stream_reader(joined, read_across_frames=True)
    assert reader.read() + path.read_bytes() == base.content


def test_reads_anywhere_give_what_stands_there(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "changed", 14, 0)
    chance = Random(3)
    with open_ledger(path) as file:
        for _ in range(300):
            start, size = chance.randrange(len(base.content) + 9), chance.randrange(3_000)
            file.seek(start)
            assert file.read(size) == base.content[start : start + size]


def test_an_archived_ledger_goes_on(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "open")
    with Ledger.open(path, RUN) as ledger:
        assert ledger.entries_on_open == len(base.lines)
        ledger.append("starved", {"step": 5, "band": "deep", "steps": 3, "action": "report"})
    kinds = [entry.kind for entry in read_entries(path)]
    assert kinds[len(base.lines) :] == ["resumed", "starved", "head"]
    assert verify_ledger(path, base.keys).status == "INCOMPLETE"
    assert archive_ledger(path, base.keys).first > 0
    assert whole(path).startswith(base.content)


def test_a_torn_tail_behind_archives_is_set_aside(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "open")
    with path.open("ab") as file:
        file.write(b'{"body":{"cl')
    Ledger.open(path, RUN).close()
    assert Path(f"{path}.broken-1").read_bytes() == b'{"body":{"cl'
    assert whole(path).startswith(base.content)
    assert verify_ledger(path, base.keys).status == "INCOMPLETE"


CALLS = ("fsync", "replace", "chmod")


def test_a_crash_at_any_moment_leaves_a_ledger_that_reads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = genuine("changed")
    before = told(laid(tmp_path / "before", base), base)
    met = set()
    for number in range(40):
        path = laid(tmp_path / str(number), base)
        archive_ledger(path, base.keys, keep=14)
        seen = 0
        with monkeypatch.context() as patch:

            def failing(name: str, number: int = number) -> Callable[..., Any]:
                call = getattr(os, name)

                def fail(*arguments: Any) -> Any:
                    nonlocal seen
                    seen += 1
                    if seen > number:
                        met.add(name)
                        raise OSError(5, "the power is gone")
                    return call(*arguments)

                return fail

            for name in CALLS:
                patch.setattr(os, name, failing(name))
            with suppress(LedgerError):
                archive_ledger(path, base.keys)
        assert whole(path) == base.content
        if seen <= number:
            break
        with suppress(LedgerError):  # of the very last call all is done
            archive_ledger(path, base.keys)
        assert path.stat().st_size < len(base.content) / 2
        assert whole(path) == base.content
        assert told(path, base) == before
    assert met == set(CALLS)
    assert seen <= number


# --- without its archives -----------------------------------------------------------------------------------


def without_archives(folder: Path, name: str = "changed") -> tuple[Path, Genuine]:
    path, base = archived(folder, name, 14, 0)
    (folder / "run.ledger.archive-0.zst").unlink()
    return path, base


def test_what_cannot_be_checked_without_an_archive_is_told(tmp_path: Path) -> None:
    path, base = without_archives(tmp_path)
    report = verify_ledger(path, base.keys)
    assert report.status == "INCOMPLETE"
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("archive_missing", "warning")
    assert "run.ledger.archive-0.zst" in finding.message
    facts, before = report.facts, verify_ledger(laid(tmp_path / "before", base), base.keys).facts
    same = ("entries", "root", "origin", "sealed", "signed_entries")
    assert [facts[name] for name in same] == [before[name] for name in same]
    assert 0 < facts["archived"] < facts["entries"]
    assert "decisions_replayed" not in facts
    assert verify_ledger(path, ()).status == "UNTRUSTED"


def test_the_archived_head_is_still_proved_to_be_a_part_of_the_ledger(tmp_path: Path) -> None:
    path, base = without_archives(tmp_path)
    end = verify_ledger(path, base.keys).facts["archived"]
    head = last_head(path)
    for size, note in base.heads.items():
        old = read_head(note).checkpoint
        if size < end:
            with pytest.raises(ArchiveMissing):
                prove_consistency(path, old, head)
            continue
        proof = prove_consistency(path, old, head)
        assert verify_consistency(size, head.checkpoint.size, old.root, head.checkpoint.root, proof.path)
        assert root_over(path, size) == old.root
        assert compare_head(path, note, [*base.keys, base.signer.public], base.origin)[1] is None
    for index in range(end, head.checkpoint.size):
        prove_inclusion(path, index, head)
    for index in (0, end - 1):
        with pytest.raises(ArchiveMissing, match=r"archive-0\.zst"):
            prove_inclusion(path, index, head)


def test_nothing_goes_on_without_its_archives(tmp_path: Path) -> None:
    path, _ = without_archives(tmp_path, "open")
    before = path.read_bytes()
    for call in (
        lambda: Ledger.open(path, RUN),
        lambda: list(read_entries(path)),
        lambda: archive_ledger(path),
    ):
        with pytest.raises(ArchiveMissing):
            call()
    assert path.read_bytes() == before


def kept(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(Path(f"{path}.archived").read_bytes())
    return found


def rewrite(path: Path, listed: dict[str, Any]) -> None:
    text = orjson.dumps(listed, option=orjson.OPT_SORT_KEYS) + b"\n"
    Path(f"{path}.archived").write_bytes(text)


def test_what_is_kept_of_archived_entries_is_held_against_the_heads(tmp_path: Path) -> None:
    path, base = without_archives(tmp_path)

    def status(change: Callable[[dict[str, Any]], Any]) -> tuple[str, str]:
        listed = kept(path)
        untouched = kept(path)
        change(listed["kept"])
        rewrite(path, listed)
        report = verify_ledger(path, base.keys)
        rewrite(path, untouched)
        first = next(one for one in report.findings if one.severity == "error")
        return report.status, first.code

    peak = "00" * 32
    assert status(lambda own: own["peaks"].__setitem__(0, peak)) == ("TAMPERED", "archive_mismatch")
    assert status(lambda own: own.update(prev=peak)) == ("TAMPERED", "wrong_link")
    line = kept(path)["kept"]["lines"][0]
    other = line["line"].replace('"engine":"split"', '"engine":"fused"')
    assert other != line["line"]
    assert status(lambda own: own["lines"][0].update(line=other)) == ("TAMPERED", "archive_mismatch")
    assert verify_ledger(path, base.keys).status == "INCOMPLETE"


# --- what is damaged, or hostile ----------------------------------------------------------------------------


def test_a_damaged_archive_is_found_and_never_crashes(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "plain", 14, 0)
    target = tmp_path / "run.ledger.archive-0.zst"
    content, chance = target.read_bytes(), Random(5)
    places = [0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(40))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        target.write_bytes(changed)
        report = verify_ledger(path, base.keys)
        assert report.status == "TAMPERED"
        assert report.findings[0].code == "archive_damaged"
    target.write_bytes(content[:-1])
    assert verify_ledger(path, base.keys).status == "TAMPERED"
    with pytest.raises(LedgerDamaged, match="is damaged"):
        list(read_entries(path))
    target.write_bytes(content)
    assert verify_ledger(path, base.keys).ok


def test_an_archive_of_other_entries_is_found(tmp_path: Path) -> None:
    path, base = archived(tmp_path / "one", "plain")
    other, _ = archived(tmp_path / "other", "sibling")
    for name in ("run.ledger.archive-0.zst", "run.ledger.archived"):
        (path.parent / name).write_bytes((other.parent / name).read_bytes())
    assert verify_ledger(path, base.keys).status == "TAMPERED"


def test_a_frame_cannot_hold_more_than_it_should() -> None:
    bomb = zstd.compress(bytes(1 << 26), 3)
    assert len(bomb) < 1 << 14
    tracemalloc.start()
    with pytest.raises(zstd.FrameError, match="67108864 bytes instead of 100"):
        zstd.decompress(bomb, 100)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    endless = zstandard.ZstdCompressor().compressobj()
    unsized = endless.compress(bytes(1 << 20)) + endless.flush()
    with pytest.raises(zstd.FrameError):
        zstd.decompress(unsized, 100)
    with pytest.raises(zstd.FrameError):
        zstd.decompress(zstd.compress(b"one", 3) + zstd.compress(b"two", 3), 3)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a frame beyond the limit": lambda one: one["frames"].__setitem__(0, [10, archive.MAX_FRAME + 1]),
    "sizes that do not add up": lambda one: one.update(size=one["size"] + 1),
    "a file elsewhere": lambda one: one.update(file="../secret"),
    "a gap": lambda one: one.update(first=1),
    "a negative size": lambda one: one["frames"].__setitem__(0, [-1, 10]),
    "a field more": lambda one: one.update(more=1),
    "a field less": lambda one: one.pop("digest"),
    "another type": lambda one: one.update(frames="none"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_malformed_list_is_refused(tmp_path: Path, how: str) -> None:
    path, base = archived(tmp_path)
    listed = kept(path)
    HOSTILE[how](listed["segments"][0])
    rewrite(path, listed)
    with pytest.raises(LedgerError, match="no list of archives"):
        verify_ledger(path, base.keys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.text(max_size=9) | st.just("00" * 32),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_list_of_archives_raises_anything_but_a_ledger_error(data: st.DataObject) -> None:
    """Any part of a sound list may be anything at all."""
    with workplace() as folder:
        for name, content in files_of("plain").items():
            (folder / name).write_bytes(content)
        path, base = folder / "run.ledger", genuine("plain")
        listed: Any = kept(path)
        where: Any = listed
        while isinstance(where, dict | list) and where:
            keys = sorted(where) if isinstance(where, dict) else range(len(where))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
                where[key] = data.draw(JSON)
                break
            where = where[key]
        with suppress(TypeError):  # a number beyond what JSON holds here
            rewrite(path, listed)
        if data.draw(st.booleans()):
            (folder / "run.ledger.archive-0.zst").unlink()
        with suppress(LedgerError):
            report = verify_ledger(path, base.keys)
            assert not report.ok or (whole(path) == base.content and not report.facts["archived"])


@cache
def files_of(name: str) -> dict[str, bytes]:
    """Return the files of an archived ledger, by name."""
    with workplace() as folder:
        archived(folder, name, 14, 0)
        return {one.name: one.read_bytes() for one in folder.iterdir()}


def test_without_the_list_it_is_told_what_is_missing(tmp_path: Path) -> None:
    path, base = archived(tmp_path)
    Path(f"{path}.archived").unlink()
    report = verify_ledger(path, base.keys)
    assert report.status == "TAMPERED"
    assert "list of archives" in report.findings[0].message


def test_archives_that_do_not_reach_the_ledger_are_told(tmp_path: Path) -> None:
    path, base = archived(tmp_path, "plain", 14)
    early = Path(f"{path}.archived").read_bytes()
    archive_ledger(path, base.keys)
    Path(f"{path}.archived").write_bytes(early)
    with pytest.raises(LedgerDamaged, match="the ledger begins with entry"):
        verify_ledger(path, base.keys)


# --- what is not archived -----------------------------------------------------------------------------------


def test_what_cannot_be_archived_stays_as_it_is(tmp_path: Path) -> None:
    base = genuine("plain")
    path = laid(tmp_path, base)
    with pytest.raises(LedgerError, match="nothing to archive"):
        archive_ledger(path, base.keys, keep=len(base.lines))
    with pytest.raises(LedgerError, match="no given key"):
        archive_ledger(path, [genuine("changed").signer.public])
    with pytest.raises(LedgerError, match="no such file"):
        archive_ledger(tmp_path / "none")
    path.write_bytes(base.content.replace(b'"loss":"', b'"loss":"1', 1))
    with pytest.raises(LedgerDamaged, match="not archived"):
        archive_ledger(path, base.keys)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run.ledger", "run.ledger.head"]


def test_a_ledger_that_is_being_written_is_not_archived(tmp_path: Path) -> None:
    path = laid(tmp_path, genuine("open"))
    with Ledger.open(path, RUN), pytest.raises(LedgerBusy):
        archive_ledger(path)
