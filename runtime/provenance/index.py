"""An index beside a ledger: made from it, compared with it before each use, and never believed beyond that.

    run.ledger.trace/
      index.json           what it was made from, and the SHA-256 of every file
      uses/block=0/…       the tables (`tables`)

`index.json` names the head that the index was made under: how many entries, their root, the leaf hash of
the last one (`tip`) and the byte after it. An index fits a ledger if the ledger's entry there has that hash:
every entry holds the hash of the one before, so a ledger whose chain holds and that has this entry has
exactly those before it. Whether the chain holds is for `verify`; it held when the index was made. Whoever can
write the folder can write another index with other digests: `check_index` makes it again and compares.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.ledger.chain import ChainReport, Listener, first_error, verify_chain
from gradwarden.runtime.ledger.entries import MAX_LINE
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import leaf_hash
from gradwarden.runtime.ledger.reader import open_ledger, size_of
from gradwarden.runtime.provenance.collect import Collector
from gradwarden.runtime.provenance.tables import TABLES, Made, Tables, arrow

FORMAT = "gradwarden/trace/1"
MANIFEST = "index.json"
MAX_MANIFEST = 64 << 20

_NUMBERS = ("size", "end", "steps", "uses", "examples")
_TEXTS = ("origin", "run", "root", "tip")


@frozen
class IndexFile:
    """A file of an index, and what it must be."""

    path: str
    rows: int
    sha256: str


@frozen
class Index:
    """An index that was made from the ledger in hand.

    size, root: the entries that it covers. end: the byte after them; tip: the leaf hash of the last (hex).
    bands: of the first program. steps, uses, examples: how many it holds.
    """

    ledger: Path
    folder: Path
    origin: str
    run: str
    size: int
    root: str
    end: int
    tip: str
    bands: tuple[str, ...]
    steps: int
    uses: int
    examples: int
    files: tuple[IndexFile, ...]

    @property
    def behind(self) -> int:
        """Bytes that the ledger has grown since."""
        with open_ledger(self.ledger) as file:
            return size_of(file) - self.end

    def paths(self, table: str, blocks: range | None = None) -> list[str]:
        """Return the files of a table; of one that is partitioned, of some blocks only."""
        return [
            str(self.folder / file.path)
            for file in self.files
            if file.path.startswith(f"{table}/") and (blocks is None or _block(file.path) in blocks)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_TEXTS, *_NUMBERS)},
            "bands": list(self.bands),
            "files": {file.path: {"rows": file.rows, "sha256": file.sha256} for file in self.files},
        }


def index_folder(ledger: Path) -> Path:
    """Return where the index of a ledger lies."""
    return ledger.with_name(f"{ledger.name}.trace")


def build_index(
    ledger: Path, keys: Sequence[PublicKey] = (), progress: Callable[[int, int], None] | None = None
) -> Index:
    """Make the index of a ledger anew, in the place of an earlier one.

    keys: one of which must have signed the ledger; none: signatures are not looked at. progress: called with
    (bytes done, bytes in all). Raises LedgerDamaged where the chain does not hold, TraceError where no index
    can be made.
    """
    folder = index_folder(ledger)
    if folder.exists() and not _is_index(folder):
        raise TraceError(f"`{folder}` is there and is no index", help="move it away")
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        index = _make(ledger, making, keys, progress)
        (making / MANIFEST).write_text(json.dumps(index.to_json(), indent=1) + "\n", "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Index(**{**_fields(index), "folder": folder})


def open_index(ledger: Path) -> Index:
    """Open the index of a ledger. Raises TraceError unless it is the ledger's and its files are whole."""
    index = _read_manifest(ledger)
    if not _has_tip(index):
        raise TraceError(
            f"the index beside `{ledger}` was made from another ledger: entry {index.size - 1:,} differs",
            help="`gradwarden trace index` makes it anew; `gradwarden verify` tells whether the ledger holds",
        )
    for file in index.files:
        path = index.folder / file.path
        try:
            with path.open("rb") as content:
                digest = file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise _spoilt(f"`{path}` cannot be read: {error.strerror}") from None
        if digest != file.sha256:
            raise _spoilt(f"`{path}` is not the file that was made")
    return index


def check_index(ledger: Path, progress: Callable[[int, int], None] | None = None) -> Index:
    """Make the index of a ledger again, beside it, and compare every row.

    Raises TraceError where they differ. An index of a ledger that has grown since is not checked but refused.
    """
    _, parquet = arrow()
    index = open_index(ledger)
    making = index.folder.with_name(f"{index.folder.name}.{os.getpid()}")
    try:
        again = _make(ledger, making, (), progress)
        if again.size != index.size:
            raise TraceError(
                f"the index covers {index.size:,} entries, the ledger has {again.size:,}",
                help="`gradwarden trace index` makes it anew",
            )
        told, found = ({**one.to_json(), "files": [f.path for f in one.files]} for one in (index, again))
        if told != found:
            raise _spoilt("it says something else of itself than the ledger gives")
        for file in again.files:
            one, other = (parquet.ParquetFile(where / file.path) for where in (index.folder, making))
            groups = one.num_row_groups
            if groups != other.num_row_groups or not all(
                one.read_row_group(group).equals(other.read_row_group(group)) for group in range(groups)
            ):
                raise _spoilt(f"`{file.path}` has other rows than the ledger gives")
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return index


def _make(
    ledger: Path, folder: Path, keys: Sequence[PublicKey], progress: Callable[[int, int], None] | None
) -> Index:
    """Write the tables of a ledger into a folder."""
    tables: Tables | None = None
    collector: Collector | None = None

    def listen() -> Listener:
        nonlocal tables, collector
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tables = Tables(folder)
        collector = Collector(tables)
        return collector.accept

    chain = verify_chain(ledger, keys, listen, progress)
    _check_chain(ledger, chain, signed=bool(keys))
    assert collector is not None, "verify_chain has asked for a listener"
    assert tables is not None, "as above"
    collector.finish()
    return Index(
        ledger=ledger,
        folder=folder,
        origin=collector.opened["origin"],
        run=collector.opened["run"],
        size=chain.size,
        root=chain.root,
        end=chain.end,
        tip=chain.tip,
        bands=tuple(collector.opened["bands"]),
        steps=collector.steps,
        uses=collector.uses,
        examples=len(collector.examples.commitments()),
        files=tuple(_digested(folder, tables.close())),
    )


def _check_chain(ledger: Path, chain: ChainReport, *, signed: bool) -> None:
    """Raise where a ledger is no ground to stand on. Without keys UNTRUSTED is what all soundness gives."""
    if chain.status == "TAMPERED":
        bad = first_error(chain.findings)
        assert bad is not None
        raise bad.damage(f"no index is made of `{ledger}`", help="`gradwarden verify` says more")
    if chain.status == "UNTRUSTED" and signed:
        raise TraceError(f"no index is made of `{ledger}`: no given key has signed it")
    if not chain.size:
        raise TraceError(f"`{ledger}` has no entries")


def _digested(folder: Path, files: Iterator[Made]) -> Iterator[IndexFile]:
    for file in files:
        with (folder / file.path).open("rb") as content:
            yield IndexFile(file.path, file.rows, file_digest(content, "sha256").hexdigest())


def _has_tip(index: Index) -> bool:
    """Whether the ledger has the last entry that an index covers, where it was."""
    start = max(0, index.end - MAX_LINE - 2)
    with open_ledger(index.ledger) as file:
        file.seek(start)
        read = file.read(index.end - start)
    lines = read.split(b"\n")
    return len(read) == index.end - start and len(lines) > 1 and leaf_hash(lines[-2]).hex() == index.tip


def _is_index(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_manifest(ledger: Path) -> Index:
    folder = index_folder(ledger)
    try:
        with (folder / MANIFEST).open("rb") as file:
            told = json.loads(file.read(MAX_MANIFEST))
        return _parse(ledger, folder, told)
    except FileNotFoundError:
        raise TraceError(
            f"`{ledger}` has no index", help="`gradwarden trace index` makes it: `run.ledger.trace` beside it"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _spoilt(f"`{folder / MANIFEST}` is malformed") from None


def _parse(ledger: Path, folder: Path, told: Any) -> Index:
    files = [IndexFile(path, file["rows"], file["sha256"]) for path, file in told["files"].items()]
    if (
        told["format"] != FORMAT
        or any(type(told[name]) is not int or told[name] < 0 for name in _NUMBERS)
        or any(type(told[name]) is not str for name in _TEXTS)
        or any(type(band) is not str for band in told["bands"])
        or any(not _within(file.path) or type(file.sha256) is not str for file in files)
        or {file.path.split("/")[0] for file in files} != TABLES.keys()
    ):
        raise ValueError
    values = {name: told[name] for name in (*_TEXTS, *_NUMBERS)}
    return Index(ledger=ledger, folder=folder, bands=tuple(told["bands"]), files=tuple(files), **values)


def _block(path: str) -> int:
    """Return the block of a file of a table that is partitioned."""
    return int(path.split("/")[1].removeprefix("block="))


def _within(path: str) -> bool:
    """Whether a path is one that an index has."""
    table, *block, name = path.split("/")
    return (
        table in TABLES
        and name == "part-0.parquet"
        and len(block) <= 1
        and all(part.startswith("block=") and part[6:].isdecimal() for part in block)
    )


def _fields(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.__match_args__}


def _spoilt(what: str) -> TraceError:
    return TraceError(
        f"the index is not to be believed: {what}", help="`gradwarden trace index` makes it anew"
    )
