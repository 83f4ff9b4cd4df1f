"""Exported tiles are those of C2SP tlog-tiles: a reader written from that page finds everything in them."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from pathlib import Path

import pytest

from gradwarden.runtime.errors import HeadMismatch
from gradwarden.runtime.evidence.prover import SignedHead, last_head, read_head
from gradwarden.runtime.evidence.tiles import export_tiles, tile_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import leaf_hash, tree_root
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from tests.runtime.ledger.conftest import Cases


class Reader:
    """A client of a tiled log. It shares no code with what it reads."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        _, size, root, *_ = (prefix / "checkpoint").read_text("utf-8").split("\n")
        self.size, self.root = int(size), b64decode(root)

    def resource(self, kind: str, index: int, width: int) -> bytes:
        digits = str(index)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        parts = [f"x{part}" for part in parts[:-1]] + parts[-1:]
        name = "/".join(["tile", kind, *parts]) + ("" if width == 256 else f".p/{width}")
        return (self.prefix / name).read_bytes()

    def widths(self, level: int) -> list[int]:
        count = self.size // 256**level
        return [256] * (count // 256) + ([count % 256] if count % 256 else [])

    def tiles(self, level: int) -> list[list[bytes]]:
        found = []
        for index, width in enumerate(self.widths(level)):
            data = self.resource(str(level), index, width)
            assert len(data) == 32 * width
            found.append([data[at : at + 32] for at in range(0, len(data), 32)])
        return found

    def entries(self) -> list[bytes]:
        found = []
        for index, width in enumerate(self.widths(0)):
            data, count = self.resource("entries", index, width), 0
            while data:
                length = int.from_bytes(data[:2], "big")
                assert len(data) >= 2 + length
                found.append(data[2 : 2 + length])
                data, count = data[2 + length :], count + 1
            assert count == width
        return found

    def mth(self, level: int, nodes: list[bytes]) -> bytes:
        """RFC 6962 section 2.1, over nodes of one level of tiles in the place of leaves."""
        if len(nodes) == 1:
            return nodes[0]
        k = 1
        while k * 2 < len(nodes):
            k *= 2
        halves = self.mth(level, nodes[:k]), self.mth(level, nodes[k:])
        return hashlib.sha256(b"\x01" + halves[0] + halves[1]).digest()

    def derived_root(self) -> bytes:
        """The root from tiles alone, by their right edge: the full tiles above stand for those below."""
        top = max(level for level in range(8) if self.size >= 256**level)
        right: bytes | None = None
        for level in range(top + 1):
            tiles = self.tiles(level)
            if level < top:
                partial = tiles[-1] if len(tiles[-1]) < 256 else []
                nodes = [*partial, *([right] if right else [])]
                right = self.mth(level, nodes) if nodes else None
            else:
                nodes = [node for tile in tiles for node in tile] + ([right] if right else [])
                right = self.mth(level, nodes)
        assert right is not None
        return right

    def check(self) -> list[bytes]:
        """Check every hash of every tile, and the root; return the entries."""
        entries = self.entries()
        leaves = [hashlib.sha256(b"\x00" + entry).digest() for entry in entries]
        below = [node for tile in self.tiles(0) for node in tile]
        assert leaves == below
        level = 1
        while self.widths(level):
            above = [node for tile in self.tiles(level) for node in tile]
            full = [below[at : at + 256] for at in range(0, len(below) // 256 * 256, 256)]
            assert above == [self.mth(level, tile) for tile in full]
            below, level = above, level + 1
        return entries


def written(path: Path, count: int) -> list[bytes]:
    """Write a file of lines that stand for entries; their content does not matter to tiles."""
    lines = [b"entry %d" % number + b"." * (number % 5) for number in range(count)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return lines


def signed(lines: list[bytes], size: int, signer: Signer, origin: str = "example.com/log") -> SignedHead:
    root = tree_root([leaf_hash(line) for line in lines[:size]])
    return read_head(sign_note(Checkpoint(origin, size, root).text(), [signer]).encode())


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1_500])
def test_a_reader_finds_every_entry_and_the_root(
    path: Path, tmp_path: Path, signer: Signer, size: int
) -> None:
    lines = written(path, size + 3)
    export_tiles(path, tmp_path / "log", signed(lines, size, signer))
    reader = Reader(tmp_path / "log")
    assert reader.check() == lines[:size]
    assert (reader.size, reader.derived_root()) == (size, reader.root)


def test_the_example_of_the_specification(path: Path, tmp_path: Path, signer: Signer) -> None:
    """Section "Partial Tiles": what a tree of 70,000 entries is represented by."""
    lines = written(path, 70_000)
    exported = export_tiles(path, tmp_path / "log", signed(lines, 70_000, signer))
    reader = Reader(tmp_path / "log")
    assert (reader.check(), reader.derived_root()) == (lines, reader.root)
    names = files_under(tmp_path / "log" / "tile")
    level_0 = {f"0/{number:03}" for number in range(273)} | {"0/273.p/112"}
    level_1 = {"1/000", "1/001.p/17"}
    bundles = {name.replace("0/", "entries/", 1) for name in level_0}
    assert names == level_0 | level_1 | {"2/000.p/1"} | bundles
    assert (exported.tiles, exported.bundles, exported.written) == (277, 274, 551)


def test_paths() -> None:
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 999, 17) == "tile/entries/999.p/17"
    assert tile_path(3, 1000) == "tile/3/x001/000"


def test_a_real_ledger_is_exported(path: Path, tmp_path: Path, cases: Cases, signer: Signer) -> None:
    cases.build(path, signer)
    head = last_head(path)
    export_tiles(path, tmp_path / "log", head)
    assert (tmp_path / "log" / "checkpoint").read_bytes() == head.note
    assert Reader(tmp_path / "log").check() == path.read_bytes().splitlines()[: head.checkpoint.size]


def test_a_log_that_grew_is_exported_again(path: Path, tmp_path: Path, signer: Signer) -> None:
    lines = written(path, 600)
    export_tiles(path, tmp_path / "log", signed(lines, 300, signer))
    before = {name: (tmp_path / "log" / name).read_bytes() for name in files_under(tmp_path / "log")}
    exported = export_tiles(path, tmp_path / "log", signed(lines, 600, signer))
    assert Reader(tmp_path / "log").check() == lines
    after = {name: (tmp_path / "log" / name).read_bytes() for name in before}
    assert {name for name in before if before[name] != after[name]} == {"checkpoint"}
    assert exported.written == 2 + 2 + 1  # a full and a partial one of each kind, and one of level 1
    assert export_tiles(path, tmp_path / "log", signed(lines, 600, signer)).written == 0


def test_nothing_is_written_over_another_history(path: Path, tmp_path: Path, signer: Signer) -> None:
    lines = written(path, 600)
    export_tiles(path, tmp_path / "log", signed(lines, 300, signer))
    names = files_under(tmp_path / "log")
    with pytest.raises(HeadMismatch, match="fewer"):
        export_tiles(path, tmp_path / "log", signed(lines, 299, signer))
    with pytest.raises(HeadMismatch, match=r"example\.com/else"):
        export_tiles(path, tmp_path / "log", signed(lines, 600, signer, "example.com/else"))
    changed = [*lines[:299], b"changed", *lines[300:]]
    path.write_bytes(b"".join(line + b"\n" for line in changed))
    with pytest.raises(HeadMismatch, match="the first 300 entries"):
        export_tiles(path, tmp_path / "log", signed(changed, 600, signer))
    with pytest.raises(HeadMismatch, match="not those that the head covers"):
        export_tiles(path, tmp_path / "new", signed(lines, 600, signer))
    assert files_under(tmp_path / "log") == names
    assert not (tmp_path / "new").exists()


def test_a_tile_that_was_changed_is_told(path: Path, tmp_path: Path, signer: Signer) -> None:
    lines = written(path, 300)
    export_tiles(path, tmp_path / "log", signed(lines, 300, signer))
    tile = tmp_path / "log" / "tile" / "0" / "000"
    tile.write_bytes(tile.read_bytes()[:-1] + b"\x00")
    with pytest.raises(HeadMismatch, match="other content"):
        export_tiles(path, tmp_path / "log", signed(lines, 300, signer))
