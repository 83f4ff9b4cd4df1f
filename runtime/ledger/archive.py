"""Archives of a ledger: its older entries, compressed, in files beside it.

    run.ledger               the entries from a signed head on
    run.ledger.archive-0.zst the entries before it, in files one after the other
    run.ledger.archived      which they are, and what is kept of them

An archive is a sequence of zstd frames (RFC 8878), each of whole lines that have FRAME bytes or little more.
Whoever decompresses all files in order and appends the ledger has the ledger as it was written, byte by
byte. `open_whole` gives a file that reads so; every reader of ledgers goes through it.

`run.ledger.archived` is canonical JSON and a newline: {"format": "gradwarden/archive/1", "segments", "kept"}.

- segments: [{"file", "first", "end", "size", "digest", "frames"}]: entries [first, end) in `size` bytes of
  lines; `digest` is the SHA-256 of the file; `frames` lists [compressed, size] bytes of each frame.
- kept: {"size", "prev", "peaks", "lines"}: what is known of the first `size` entries without the archives.
  prev: the leaf hash of the last; peaks: the roots of the complete subtrees, the greatest first; lines:
  [{"index", "line", "path"}]: the entries that say who may sign, each with its inclusion proof.

Nothing of this is believed. What archives hold is checked as the rest of a ledger is; what is kept must give
the root that the signed heads after it were signed over. A crash in the midst of archiving may leave a ledger
that still has entries which an archive has, too: a ledger says itself with which entry it begins, and
archives from there on count for nothing.
"""

from __future__ import annotations

import io
import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import ArchiveMissing, LedgerDamaged, LedgerError
from gradwarden.runtime.ledger.merkle import HASH_SIZE, Tree
from gradwarden.runtime.ledger.unwaiting import without_waiting
from gradwarden.runtime.ledger.zstd import FrameError, decompress

FORMAT = "gradwarden/archive/1"

SUFFIX = ".archived"

FRAME = 2 << 20
"""Bytes of lines in a frame, but for a last line that goes beyond."""

MAX_FRAME = FRAME + (1 << 16)

MAX_LIST = 64 << 20
"""The largest `.archived` file that is read, in bytes."""

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^/\\\0]{1,255}")
_INDEX = re.compile(rb'"index":([0-9]{1,16}),"kind":"[a-z_]+","prev":"[0-9a-f]{64}"\}\n')


@frozen
class Segment:
    """One archive, see the module. frames: (compressed, size) in bytes."""

    file: str
    first: int
    end: int
    size: int
    digest: str
    frames: tuple[tuple[int, int], ...]


@frozen
class KeptLine:
    """An entry that is kept beside its archive, and its inclusion proof among the first `Kept.size`."""

    index: int
    line: bytes
    path: tuple[bytes, ...]


@frozen
class Kept:
    """What is kept of archived entries, see the module."""

    size: int
    prev: str
    peaks: tuple[bytes, ...]
    lines: tuple[KeptLine, ...]

    def tree(self) -> Tree:
        return Tree.of(self.size, self.peaks)


@frozen
class Archives:
    """The archives of one ledger that lie before its first entry, and where they lie."""

    folder: Path
    segments: tuple[Segment, ...]
    kept: Kept

    @property
    def size(self) -> int:
        """The bytes of all lines."""
        return sum(segment.size for segment in self.segments)

    @property
    def end(self) -> int:
        """How many entries there are."""
        return self.segments[-1].end if self.segments else 0

    def missing(self) -> tuple[Segment, ...]:
        """Return the archives whose files are not there."""
        return tuple(segment for segment in self.segments if not (self.folder / segment.file).exists())


def list_path(ledger: str | os.PathLike[str]) -> str:
    return os.fspath(ledger) + SUFFIX


def find_archives(ledger: str | os.PathLike[str], live: BinaryIO) -> Archives | None:
    """Return the archives that lie before the first entry of a ledger, None where it has none.

    live: the ledger's file, open. Raises LedgerError for a list that cannot be read, LedgerDamaged where it
    does not fit the ledger.
    """
    listed = _read_list(ledger)
    if listed is None:
        return None
    first = _first_index(live)
    if first is None:
        first = listed.end
    before = tuple(segment for segment in listed.segments if segment.end <= first)
    if (before[-1].end if before else 0) != first:
        raise LedgerDamaged(
            f"the ledger begins with entry {first:,}, and the archives beside it end with entry "
            f"{listed.end - 1:,}",
            index=first,
            offset=0,
            problem="wrong_index",
            help="restore the archives, and their list, that belong to this file",
        )
    return Archives(listed.folder, before, listed.kept) if before else None


def _first_index(live: BinaryIO) -> int | None:
    """Return the index of the first entry in a file, None where its first line is none."""
    live.seek(0)
    data = live.read(1 << 16)
    live.seek(0)
    found = _INDEX.search(data[: data.find(b"\n") + 1])
    return None if found is None else int(found[1])


def _read_list(ledger: str | os.PathLike[str]) -> Archives | None:
    path = Path(list_path(ledger))
    try:
        with open(path, "rb", opener=without_waiting) as file:
            data = file.read(MAX_LIST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"cannot read `{path}`: {error.strerror}") from error
    try:
        archives = _parse(orjson.loads(data), path.parent)
        if len(data) <= MAX_LIST and encode(archives) == data:
            return archives
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise LedgerError(f"`{path}` is no list of archives", help="restore it from where the archives are kept")


def encode(archives: Archives) -> bytes:
    """Return the content of an `.archived` file."""
    kept = archives.kept
    told = {
        "format": FORMAT,
        "segments": [
            {
                "file": one.file,
                "first": one.first,
                "end": one.end,
                "size": one.size,
                "digest": one.digest,
                "frames": [list(frame) for frame in one.frames],
            }
            for one in archives.segments
        ],
        "kept": {
            "size": kept.size,
            "prev": kept.prev,
            "peaks": [peak.hex() for peak in kept.peaks],
            "lines": [
                {"index": one.index, "line": one.line.decode(), "path": [node.hex() for node in one.path]}
                for one in kept.lines
            ],
        },
    }
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS) + b"\n"


def _parse(told: Mapping[str, Any], folder: Path) -> Archives:
    """Read a list whose printing gives its bytes again; that is seen afterwards. Raises ValueError."""
    segments = tuple(
        Segment(
            one["file"], one["first"], one["end"], one["size"], one["digest"],
            tuple((compressed, size) for compressed, size in one["frames"]),
        )
        for one in told["segments"]
    )  # fmt: skip
    kept = told["kept"]
    lines = tuple(
        KeptLine(one["index"], one["line"].encode(), tuple(map(_hash, one["path"]))) for one in kept["lines"]
    )
    archives = Archives(
        folder,
        segments,
        Kept(kept["size"], kept["prev"], tuple(map(_hash, kept["peaks"])), lines),
    )
    _check(archives)
    if told["format"] != FORMAT:
        raise ValueError
    return archives


def _hash(text: str) -> bytes:
    if not _HEX.fullmatch(text):
        raise ValueError
    return bytes.fromhex(text)


def _check(archives: Archives) -> None:
    """Raise ValueError unless the parts of a list fit each other."""
    end = 0
    for one in archives.segments:
        sound = (
            all(type(number) is int and number >= 0 for frame in one.frames for number in frame)
            and type(one.end) is int
            and one.first == end < one.end
            and sum(size for _, size in one.frames) == one.size
            and all(size <= MAX_FRAME and compressed <= 2 * MAX_FRAME for compressed, size in one.frames)
            and _NAME.fullmatch(one.file)
            and one.file not in (".", "..")
            and _HEX.fullmatch(one.digest)
        )
        if not sound:
            raise ValueError
        end = one.end
    kept = archives.kept
    if not end or kept.size != end or len(kept.peaks) != end.bit_count() or not _HEX.fullmatch(kept.prev):
        raise ValueError
    places = [one.index for one in kept.lines]
    if places != sorted(set(places)) or not places or places[0] != 0 or places[-1] >= end:
        raise ValueError
    if any(len(node) != HASH_SIZE for node in kept.peaks):
        raise ValueError


class WholeFile(io.RawIOBase):
    """A ledger as it was written: its archives decompressed, and the file that goes on from them.

    archives: those that are part of it. start: the byte at which reading can begin, beyond 0 where archives
    are missing. Reading before it raises ArchiveMissing, a damaged archive LedgerDamaged.
    """

    def __init__(self, live: BinaryIO, archives: Archives) -> None:
        self._live = live
        self.archives = archives
        self._base = archives.size
        self._place = 0
        missing = archives.missing()
        self.start = self._base if missing else 0
        self._frames: list[tuple[int, int, int, int]] = []
        """Of each frame: where its lines begin, which archive it is of, where it begins there, its number."""
        self._starts: list[int] = []
        at = 0
        for number, segment in enumerate(archives.segments):
            within = 0
            for place, (compressed, size) in enumerate(segment.frames):
                self._frames.append((at, number, within, place))
                self._starts.append(at)
                at, within = at + size, within + compressed
        self._open: dict[int, BinaryIO] = {}
        self._recent: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return that of the file that goes on."""
        return self._live.fileno()

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place}.get(whence)
        if base is None:
            base = self._base + os.fstat(self._live.fileno()).st_size
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or what there is."""
        parts: list[bytes] = []
        left = size if size >= 0 else 1 << 62
        while left and self._place < self._base:
            part = self._within(left)
            parts.append(part)
            left -= len(part)
            self._place += len(part)
        if left:
            self._live.seek(self._place - self._base)
            while left and (part := self._live.read(min(left, 1 << 24))):
                parts.append(part)
                left -= len(part)
                self._place += len(part)
        return b"".join(parts)

    def _within(self, most: int) -> bytes:
        """Return bytes from where reading stands, up to the end of a frame."""
        number = bisect_right(self._starts, self._place) - 1
        begin = self._place - self._starts[number]
        return self._frame(number)[begin : begin + most]

    def _frame(self, number: int) -> bytes:
        if number not in self._recent:
            while len(self._recent) > 1:
                self._recent.pop(next(iter(self._recent)))
            self._recent[number] = self._load(number)
        return self._recent[number]

    def _load(self, number: int) -> bytes:
        at, which, within, place = self._frames[number]
        segment = self.archives.segments[which]
        if self.start:
            raise missing_error(self.archives)
        compressed, size = segment.frames[place]
        path = self.archives.folder / segment.file
        try:
            if which not in self._open:
                self._open[which] = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - closed with this
            self._open[which].seek(within)
            return decompress(self._open[which].read(compressed), size)
        except OSError as error:
            raise LedgerError(f"cannot read the archive `{path}`: {error.strerror}") from error
        except FrameError as error:
            raise LedgerDamaged(
                f"the archive `{path}` of entries {segment.first:,} to {segment.end - 1:,} is damaged: "
                f"{error}",
                index=segment.first,
                offset=at,
                problem="archive_damaged",
                help="restore the archive from a copy",
            ) from error

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._live.close()
        super().close()


def missing_error(archives: Archives) -> ArchiveMissing:
    names = ", ".join(f"`{one.file}`" for one in archives.missing())
    return ArchiveMissing(
        f"entries 0 to {archives.end - 1:,} are archived, and {names} is missing",
        help="put the archive back beside the ledger; `gradwarden verify` checks what can be checked without",
    )
