"""Writes a ledger as a tiled transparency log, in the layout of C2SP tlog-tiles (https://c2sp.org/tlog-tiles).

    checkpoint                    the signed head
    tile/<L>/<N>[.p/<W>]          hashes of level L, 256 to a tile
    tile/entries/<N>[.p/<W>]      entries, 256 to a bundle: a length in 16 bits, big-endian, and the line

Section "Merkle Tree": the n-th tile of level l holds the hashes MTH(D[(256n + i) · 256^l : (256n + i + 1) ·
256^l]) for i from 0 to 255. N is written in groups of three digits, all but the last after an `x`: 1234067 is
`x001/x234/067`. Section "Partial Tiles": the last tile of a level has `floor(s / 256^l) mod 256` hashes, and
W says how many; it is not hashed into the level above, and there are no empty ones. Section "Log entries": an
entry of a bundle hashes to its place in level 0.

Served by any web server, the directory is a log that monitors and witnesses can read. It can be written again
as the ledger grows. Tiles never change, so a file that is there already must be what would be written, and an
older checkpoint must be of the same history.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError, HeadMismatch, LedgerError
from gradwarden.runtime.evidence.prover import SignedHead, prove_consistency, read_head, stored_lines
from gradwarden.runtime.ledger.durable import replace_durably
from gradwarden.runtime.ledger.entries import MAX_LINE
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT, HASH_SIZE, Tree, leaf_hashes
from gradwarden.runtime.ledger.note import MAX_NOTE, Checkpoint

WIDTH = 256
"""Hashes in a full tile, and entries in a full bundle."""

ENTRIES = "entries"
"""What stands in the place of a level in the paths of entry bundles."""


@frozen
class Exported:
    """What was exported: entries, tiles and bundles in all, and the files that were not there before."""

    size: int
    tiles: int
    bundles: int
    written: int


def tile_path(level: int | str, index: int, width: int = WIDTH) -> str:
    """Return the path of a tile, or of a bundle (`ENTRIES`), with `/` between its parts."""
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03}")
    partial = f".p/{width}" if width < WIDTH else ""
    return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"


def export_tiles(ledger: str | os.PathLike[str], directory: Path, head: SignedHead) -> Exported:
    """Write what a head covers as a tiled log; its checkpoint last.

    Raises HeadMismatch where the head is not of the ledger, or the directory holds another log or history;
    LedgerError where it cannot be read or written.
    """
    before = _published(directory)
    if before is not None and before.size > head.checkpoint.size:
        raise HeadMismatch(
            f"`{directory}` has {before.size:,} entries, the head covers fewer: {head.checkpoint.size:,}",
            help="a log that was published is never cut",
        )
    # Nothing is written unless the head fits the ledger, and continues what is published.
    prove_consistency(ledger, before or Checkpoint(head.checkpoint.origin, 0, EMPTY_ROOT), head)
    writer = _Writer(directory)
    try:
        tiles, bundles = _write_tiles(ledger, head.checkpoint, writer)
        replace_durably(os.fspath(directory / "checkpoint"), head.note)
    except OSError as error:
        raise LedgerError(f"cannot write to `{directory}`: {error.strerror}") from error
    return Exported(head.checkpoint.size, tiles, bundles, writer.written)


def _published(directory: Path) -> Checkpoint | None:
    try:
        with (directory / "checkpoint").open("rb") as file:
            note = file.read(MAX_NOTE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"cannot read `{directory / 'checkpoint'}`: {error.strerror}") from error
    return read_head(note).checkpoint


def _write_tiles(ledger: str | os.PathLike[str], checkpoint: Checkpoint, writer: _Writer) -> tuple[int, int]:
    """Write tiles and bundles; return how many of each. Raises HeadMismatch where the ledger has changed."""
    levels = _Levels(writer)
    number = 0
    for number, lines in enumerate(_bundles(ledger, checkpoint.size), 1):
        if max(map(len, lines)) > MAX_LINE:
            raise EvidenceError("an entry is longer than a bundle can hold")
        bundle = b"".join([len(line).to_bytes(2, "big") + line for line in lines])
        writer.write(tile_path(ENTRIES, number - 1, len(lines)), bundle)
        levels.add_leaves(leaf_hashes(lines))
    if levels.root() != checkpoint.root:
        raise HeadMismatch("the ledger was changed while it was exported")
    return levels.finish(), number


def _bundles(ledger: str | os.PathLike[str], size: int) -> Iterator[list[bytes]]:
    """Yield the first `size` lines, 256 at a time."""
    with closing(stored_lines(ledger)) as parts:
        lines = islice(chain.from_iterable(parts), size)
        while bundle := list(islice(lines, WIDTH)):
            yield bundle


class _Levels:
    """The tiles of every level that are being filled.

    A full tile stands for a subtree of its own, and the last one for what remains, so that the root is that
    of a tree whose leaves are the roots of the tiles of level 0.
    """

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer
        self._filling: list[bytearray] = []
        self._full: list[int] = []
        self._tree = Tree()

    def root(self) -> bytes:
        return self._tree.root()

    def add_leaves(self, leaves: bytes) -> None:
        """Add leaf hashes, joined: a whole tile of level 0, or the last ones."""
        self._tree.append(_root(leaves))
        self._add(leaves, 0)

    def _add(self, nodes: bytes, level: int) -> None:
        """Add hashes to a tile that has room; where they fill it, it is written and hashed upwards."""
        if level == len(self._filling):
            self._filling.append(bytearray())
            self._full.append(0)
        tile = self._filling[level]
        tile += nodes
        if len(tile) < WIDTH * HASH_SIZE:
            return
        self._writer.write(tile_path(level, self._full[level]), bytes(tile))
        self._full[level] += 1
        self._add(_root(bytes(tile)), level + 1)
        tile.clear()

    def finish(self) -> int:
        """Write the partial tiles; return how many tiles there are in all."""
        partial = 0
        for level, (tile, full) in enumerate(zip(self._filling, self._full, strict=True)):
            if tile:
                self._writer.write(tile_path(level, full, len(tile) // HASH_SIZE), bytes(tile))
                partial += 1
        return sum(self._full) + partial


def _root(nodes: bytes) -> bytes:
    """Return the root over hashes that are joined."""
    tree = Tree()
    tree.extend(nodes)
    return tree.root()


class _Writer:
    """Writes files that never change under a directory, and counts those that were not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.written = 0

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all. Raises HeadMismatch where it is there with other content."""
        path = self._directory / name
        try:
            with path.open("rb") as file:
                found = file.read(len(content) + 1)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_bytes(content)
            draft.replace(path)
            self.written += 1
            return
        if found != content:
            raise HeadMismatch(
                f"`{path}` is there with other content",
                help="export to another directory; tiles never change",
            )
