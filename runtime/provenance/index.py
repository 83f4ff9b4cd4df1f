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
import re
import shutil
from collections.abc import Callable, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gradwarden.runtime.errors import LedgerError, TraceError
from gradwarden.runtime.ledger.entries import MAX_LINE
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.merkle import leaf_hash
from gradwarden.runtime.ledger.reader import open_ledger
from gradwarden.runtime.provenance.indexed import FORMAT, FORMATS, NUMBERS, TEXTS, Index, IndexFile, RankEnd
from gradwarden.runtime.provenance.making import make_index
from gradwarden.runtime.provenance.tables import TABLES, arrow

MANIFEST = "index.json"
MAX_MANIFEST = 64 << 20

_PATH = re.compile(r"[a-z_]+/(rank=[0-9]{1,9}/)?(block=[0-9]{1,15}/)?part-0\.parquet")


def index_folder(ledger: Path) -> Path:
    """Return where the index of a ledger lies."""
    return ledger.with_name(f"{ledger.name}.trace")


def build_index(
    ledger: Path, keys: Sequence[PublicKey] = (), progress: Callable[[int, int], None] | None = None
) -> Index:
    """Make the index of a ledger anew, in the place of an earlier one.

    keys: one of which must have signed the ledger; none: signatures are not looked at. progress: called with
    (bytes done, bytes in all). Raises LedgerDamaged where the chain does not hold, TraceError where no index
    can be made, LedgerError where the folder cannot be written.
    """
    folder = index_folder(ledger)
    if folder.exists() and not _is_index(folder):
        raise TraceError(f"`{folder}` is there and is no index", help="move it away")
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        making.mkdir(exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"no index can be made beside `{ledger}`: {(error.strerror or str(error)).lower()}",
            help="copy the ledger, or link to it, in a folder that you may write",
        ) from error
    try:
        index = make_index(ledger, making, keys, progress)
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
    if not _has_tips(index):
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
        again = make_index(ledger, making, (), progress)
        if (again.size, again.ranks) != (index.size, index.ranks):
            raise TraceError(
                f"the index covers {index.size:,} entries, the ledger has {again.size:,}",
                help="`gradwarden trace index` makes it anew",
            )
        told, found = (
            {**one.to_json(), "files": [(file.path, file.rows) for file in one.files]}
            for one in (index, again)
        )
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


def _has_tips(index: Index) -> bool:
    """Whether each ledger has the last entry that an index covers, where it was."""
    return all(_has_tip(*end) for end in index.ends)


def _has_tip(ledger: Path, end: int, tip: str) -> bool:
    start = max(0, end - MAX_LINE - 2)
    if not ledger.exists():
        return False
    with open_ledger(ledger) as file:
        file.seek(start)
        read = file.read(end - start)
    lines = read.split(b"\n")
    return len(read) == end - start and len(lines) > 1 and leaf_hash(lines[-2]).hex() == tip


def _is_index(folder: Path) -> bool:
    try:
        return FORMATS.fullmatch(json.loads((folder / MANIFEST).read_bytes())["format"]) is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_manifest(ledger: Path) -> Index:
    folder = index_folder(ledger)
    try:
        with (folder / MANIFEST).open("rb") as file:
            told = json.loads(file.read(MAX_MANIFEST))
        if told["format"] != FORMAT and FORMATS.fullmatch(told["format"]):
            raise TraceError(
                f"`{folder}` was made by another version of gradwarden",
                help="`gradwarden trace index` makes it anew",
            )
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
        or any(type(told[name]) is not int or told[name] < 0 for name in NUMBERS)
        or any(type(told[name]) is not str for name in TEXTS)
        or any(type(band) is not str for band in told["bands"])
        or any(not _within(file.path) or type(file.sha256) is not str for file in files)
        or any(type(file.rows) is not int for file in files)
        or {file.path.split("/")[0] for file in files} != TABLES.keys()
    ):
        raise ValueError
    values = {name: told[name] for name in (*TEXTS, *NUMBERS)}
    return Index(
        ledger=ledger,
        folder=folder,
        bands=tuple(told["bands"]),
        files=tuple(files),
        ranks=tuple(map(_rank_end, told.get("ranks", ()))),
        **values,
    )


def _rank_end(told: Any) -> RankEnd:
    numbers, texts = (
        [told[name] for name in ("rank", "size", "end")],
        [told[name] for name in ("root", "tip")],
    )
    if any(type(number) is not int or number < 0 for number in numbers) or any(
        type(text) is not str for text in texts
    ):
        raise ValueError
    return RankEnd(**told)


def _within(path: str) -> bool:
    """Whether a path is one that an index has."""
    return _PATH.fullmatch(path) is not None and path.split("/")[0] in TABLES


def _fields(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.__match_args__}


def _spoilt(what: str) -> TraceError:
    return TraceError(
        f"the index is not to be believed: {what}", help="`gradwarden trace index` makes it anew"
    )
