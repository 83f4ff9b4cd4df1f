"""Moves the older entries of a ledger into an archive beside it (`ledger.archive`), safe against crashes.

The ledger is cut only after the archive was written, synced and read back, and the list of archives names it.
A crash at any moment leaves a ledger that reads as before: at most a file that nothing names, or entries that
are in an archive and in the ledger, too. While this goes on the ledger is held as by a writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.evidence.prover import entries_of, stored_lines
from gradwarden.runtime.ledger.archive import (
    FRAME,
    Archives,
    Kept,
    KeptLine,
    Segment,
    encode,
    list_path,
    missing_error,
)
from gradwarden.runtime.ledger.chain import ChainReport, first_error, verify_chain
from gradwarden.runtime.ledger.durable import drafted, replace_durably
from gradwarden.runtime.ledger.entries import HEAD, OPENINGS, REVOKED, ROTATED
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import (
    inclusion_ranges,
    leaf_hash,
    leaf_hashes,
    peak_ranges,
    range_roots,
)
from gradwarden.runtime.ledger.reader import archives_of, open_ledger, pieces
from gradwarden.runtime.ledger.storage import LedgerFile
from gradwarden.runtime.ledger.zstd import FrameError, compress, decompress

LEVEL = 9
"""How hard zstd tries; commitments are random and stay as long as they are."""


@frozen
class Archived:
    """What was archived. first, end: entries. size, compressed: bytes of their lines, and of the archive."""

    file: Path
    first: int
    end: int
    size: int
    compressed: int


def archive_ledger(
    path: str | os.PathLike[str], keys: Sequence[PublicKey] = (), *, keep: int = 0, level: int = LEVEL
) -> Archived:
    """Archive the entries before the last signed head, which becomes the first entry of the ledger.

    keys: where some are given, one of them must have signed that head. keep: entries at the end that stay at
    the least. Raises LedgerBusy where the ledger is being written, LedgerDamaged where it does not hold,
    ArchiveMissing without its earlier archives, LedgerError where nothing is to be archived or a file cannot
    be written; then the ledger reads as before.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise LedgerError(f"cannot read the ledger `{name}`: no such file")
    file = LedgerFile(name)
    try:
        before = archives_of(name)
        if before is not None and before.missing():
            raise missing_error(before)
        chain = verify_chain(name, keys)
        end = _border(name, chain, keys, keep, 0 if before is None else before.end)
        return _archive(name, before, end, level)
    except OSError as error:
        raise LedgerError(f"cannot archive the ledger `{name}`: {error.strerror}") from error
    finally:
        with suppress(OSError):
            file.close()


def _border(path: str, chain: ChainReport, keys: Sequence[PublicKey], keep: int, archived: int) -> int:
    """Return how many entries are archived when all is done: those before the last head that may go."""
    if chain.status == "TAMPERED":
        bad = first_error(chain.findings)
        assert bad is not None
        said = f"the ledger is not archived: entry {bad.index}"
        raise bad.damage(said, help="examine it with `gradwarden verify`")
    covered = chain.signed_size if keys else chain.size
    if keys and not covered:
        raise LedgerError("the ledger is not archived: no given key has signed it")
    # The seal stays, so that the ledger says by itself that it is one.
    latest = min(covered, chain.size - max(keep, 2 if chain.sealed else 1))
    with closing(entries_of(path, {HEAD})) as heads:
        end = max((index for index, *_ in heads if index <= latest), default=0)
    if end <= archived:
        raise LedgerError(
            "there is nothing to archive: no signed head stands behind entries that may go",
            help="a head is signed every 1,024 entries and when a ledger is closed",
        )
    return end


def _archive(path: str, before: Archives | None, end: int, level: int) -> Archived:
    done = () if before is None else before.segments
    target = Path(f"{path}.archive-{len(done)}.zst")
    first, start = (0, 0) if before is None else (before.end, before.size)
    segment = _write(path, target, (first, end), start, level)
    _read_back(target, segment)
    archives = Archives(target.parent, (*done, segment), _kept(path, end))
    replace_durably(list_path(path), encode(archives))
    _cut(path, segment.size + start)
    return Archived(target, first, end, segment.size, sum(compressed for compressed, _ in segment.frames))


def _write(path: str, target: Path, entries: tuple[int, int], start: int, level: int) -> Segment:
    """Write an archive durably. start: the byte of the ledger at which its entries begin."""
    draft = target.with_name(f"{target.name}.new")
    frames: list[tuple[int, int]] = []
    digest = sha256()
    with drafted(draft, target) as out:
        for lines in _frames(path, entries[1] - entries[0], start):
            frame = compress(lines, level)
            out.write(frame)
            digest.update(frame)
            frames.append((len(frame), len(lines)))
    size = sum(size for _, size in frames)
    return Segment(target.name, *entries, size, digest.hexdigest(), tuple(frames))


def _frames(path: str, count: int, start: int) -> Iterator[bytes]:
    """Yield so many lines from a byte on, some at a time, each with its newline."""
    waiting, size, left = [], 0, count
    with open_ledger(path) as file:
        for piece in pieces(file, start):
            for line in piece.lines[:left]:
                waiting.append(line)
                size += len(line) + 1
                if size >= FRAME:
                    yield b"\n".join([*waiting, b""])
                    waiting, size = [], 0
            left -= min(left, len(piece.lines))
            if not left:
                break
    if left:
        raise LedgerError("the ledger was changed while it was archived")
    if waiting:
        yield b"\n".join([*waiting, b""])


def _read_back(target: Path, segment: Segment) -> None:
    """Raise LedgerError unless an archive is on the disk as it was written, and can be decompressed."""
    digest = sha256()
    with target.open("rb") as file:
        for compressed, size in segment.frames:
            frame = file.read(compressed)
            digest.update(frame)
            try:
                decompress(frame, size)
            except FrameError as error:
                raise LedgerError(f"the archive `{target}` cannot be read back: {error}") from error
        if file.read(1) or digest.hexdigest() != segment.digest:
            raise LedgerError(f"the archive `{target}` cannot be read back: it holds something else")


def _kept(path: str, end: int) -> Kept:
    """Return what is kept of the first entries of a ledger."""
    with closing(entries_of(path, OPENINGS | {ROTATED, REVOKED})) as found:
        places = [index for index, *_ in found if index < end]
    paths = [inclusion_ranges(index, end) for index in places]
    lines: dict[int, bytes] = {}
    last = b""

    def leaves() -> Iterator[bytes]:
        nonlocal last
        count = 0
        with closing(stored_lines(path)) as parts:
            for part in parts:
                some = part[: end - count]
                lines.update({at: some[at - count] for at in places if 0 <= at - count < len(some)})
                last = some[-1] if some else last
                count += len(some)
                yield leaf_hashes(some)
                if count == end:
                    return

    peaks = peak_ranges(end)
    roots = range_roots(leaves(), [*peaks, *(one for ranges in paths for one in ranges)])
    borders = list(accumulate(map(len, paths), initial=len(peaks)))
    kept = tuple(
        KeptLine(index, lines[index], tuple(roots[borders[place] : borders[place + 1]]))
        for place, index in enumerate(places)
    )
    return Kept(end, leaf_hash(last).hex(), tuple(roots[: len(peaks)]), kept)


def _cut(path: str, start: int) -> None:
    """Leave of a ledger what comes from a byte on, as a whole and durably."""
    draft = Path(f"{path}.rest")
    with open_ledger(path) as file, drafted(draft, Path(path)) as out:
        os.chmod(draft, os.stat(path).st_mode & 0o777)
        file.seek(start)
        while part := file.read(1 << 24):
            out.write(part)
