"""The data set: Python source files of the packages installed in this environment, with their metadata.

Nothing is invented: licences come from the packages' own metadata (`licences.py`), and from the
`SPDX-License-Identifier` line of a file that has one, where it is stricter. The same environment and seed
give the same corpus. A cap on the total size is shared out so that small packages come whole and large ones
are sampled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from examples.code_licences.duplicates import near_duplicates
from examples.code_licences.licences import Family, Licence, declared_licence, family_of, normalise, strictest

DEFAULT_CAP = 24_000_000
"""Bytes of source in a corpus."""

MIN_BYTES, MAX_BYTES = 64, 1 << 20
"""Files outside these sizes are left out: nothing to learn from, or one file that outweighs a package."""

HELD_OUT = 0.04
"""Share of the files kept back to measure what was learned."""

LICENCES = (
    *("MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "LicenseRef-BSD", "0BSD", "ISC"),
    *("PSF-2.0", "Python-2.0", "Zlib", "CC0-1.0", "Unlicense", "BSL-1.0", "HPND"),
    *("MPL-1.1", "MPL-2.0", "LGPL-2.0-only", "LGPL-2.0-or-later", "LGPL-2.1-only", "LGPL-2.1-or-later"),
    *("LGPL-3.0-only", "LGPL-3.0-or-later", "LicenseRef-LGPL", "EPL-1.0", "EPL-2.0", "CDDL-1.0"),
    *("GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "LicenseRef-GPL"),
    *("AGPL-3.0-only", "AGPL-3.0-or-later"),
)
"""The SPDX ids a policy can name. Any other that is known is recorded as `other`, the rest as `unknown`."""

_VENDORED = re.compile(r"(^|/)(_?vendor|_?vendored|third_party|extern|externals)/")
_GENERATED = re.compile(
    rb"@generated|do not edit|auto(?:matically)?[ -]?generated|generated (?:by|from|with|using)",
    re.IGNORECASE,
)
_FILE_LICENCE = re.compile(rb"^#\s*SPDX-License-Identifier:\s*(.+?)\s*$", re.MULTILINE)
_HEAD_LINES = 10


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What is known of one file: exactly the record that a policy decides on. entropy: bits per byte."""

    id: str
    package: str
    license: str
    expression: str
    sha256: str
    lines: int
    bytes: int
    entropy: float
    vendored: bool
    generated: bool
    near_duplicate: bool
    duplicate_of: str | None
    held_out: bool

    @property
    def family(self) -> Family:
        """The family of the licence that governs; not part of the record, policies name licences."""
        return normalise(self.expression).family

    def record(self) -> dict[str, Any]:
        """Return the manifest record: `id` and metadata, without attributes that are absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_COLUMNS = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("id", "package", "license", "expression", "sha256")),
        *((name, pyarrow.int64()) for name in ("lines", "bytes")),
        ("entropy", pyarrow.float64()),
        *((name, pyarrow.bool_()) for name in ("vendored", "generated", "near_duplicate")),
        ("duplicate_of", pyarrow.string()),
        ("held_out", pyarrow.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files in the order of their ids, and the content of each."""

    files: tuple[SourceFile, ...]
    contents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    id: str
    package: str
    licence: Licence
    path: Path
    size: int


def collect(
    cap: int = DEFAULT_CAP,
    seed: int = 0,
    distributions: Iterable[metadata.Distribution] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Return the corpus of the installed packages (or of `distributions`), at most `cap` bytes.

    `progress` is called with the number of files described so far and their total.
    """
    found = _candidates(metadata.distributions() if distributions is None else distributions)
    chosen = sorted(_sample(found, cap, seed), key=lambda candidate: candidate.id)
    contents = [candidate.path.read_bytes() for candidate in chosen]
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, len(chosen))

    # A vendored copy is the duplicate of the original, never the other way round.
    by_precedence = sorted(range(len(chosen)), key=lambda i: (is_vendored(chosen[i].id), chosen[i].id))
    repeats = near_duplicates(((chosen[i].id, contents[i]) for i in by_precedence), advance)
    copied = set(repeats) | set(repeats.values())
    files = tuple(
        _describe(candidate, content, repeats.get(candidate.id), candidate.id in copied, seed)
        for candidate, content in zip(chosen, contents, strict=True)
    )
    return Corpus(files, tuple(contents))


def write_manifest(files: Iterable[SourceFile], folder: Path) -> Path:
    """Write `manifest.jsonl` and `manifest.parquet` into `folder`; return the path of the first."""
    files = tuple(files)
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(file.record(), sort_keys=True) + "\n" for file in files), "utf-8")
    table = pyarrow.Table.from_pylist([asdict(file) for file in files], schema=_COLUMNS)
    pyarrow.parquet.write_table(table, folder / "manifest.parquet")
    return path


def entropy(content: bytes) -> float:
    """Return the Shannon entropy of the distribution of byte values, in bits per byte (0 where empty)."""
    if not content:
        return 0.0
    counts = np.bincount(np.frombuffer(content, dtype=np.uint8))
    share = counts[counts > 0] / len(content)
    return abs(float(-(share * np.log2(share)).sum()))


def is_vendored(path: str) -> bool:
    """Tell whether a path lies in a folder for other people's code."""
    return _VENDORED.search(path) is not None


def is_generated(content: bytes) -> bool:
    """Tell whether the first lines say that a program wrote the file."""
    return _GENERATED.search(b"\n".join(content.split(b"\n", _HEAD_LINES)[:_HEAD_LINES])) is not None


def file_licence(content: bytes, declared: Licence) -> Licence:
    """Return the licence of a file in a package that declares `declared`: its own tag, where stricter."""
    tag = _FILE_LICENCE.search(b"\n".join(content.split(b"\n", _HEAD_LINES)[:_HEAD_LINES]))
    if tag is None:
        return declared
    return strictest(declared, normalise(tag[1].decode("ascii", "replace")))


def budgets(sizes: Mapping[str, int], cap: int) -> dict[str, int]:
    """Share `cap` bytes among packages: each gets the same, and what small ones leave goes to the rest."""
    shares: dict[str, int] = {}
    left = cap
    for remaining, (package, size) in zip(
        range(len(sizes), 0, -1), sorted(sizes.items(), key=lambda item: (item[1], item[0])), strict=True
    ):
        shares[package] = min(size, left // remaining)
        left -= shares[package]
    return shares


def _candidates(distributions: Iterable[metadata.Distribution]) -> Iterator[_Candidate]:
    # The same distribution may be found on two paths, and two may install one file: the first one counts.
    seen: set[str] = set()
    for distribution in distributions:
        package = distribution.metadata["Name"]
        if package in seen:
            continue
        seen.add(package)
        licence = declared_licence(distribution.metadata)
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if file.suffix != ".py" or ".." in file.parts or not path.is_file():
                continue
            if MIN_BYTES <= (size := path.stat().st_size) <= MAX_BYTES:
                yield _Candidate(f"{package}/{file.as_posix()}", package, licence, path, size)


def _sample(candidates: Iterable[_Candidate], cap: int, seed: int) -> Iterator[_Candidate]:
    packages: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        packages.setdefault(candidate.package, []).append(candidate)
    sizes = {package: sum(c.size for c in members) for package, members in packages.items()}
    shares = budgets(sizes, cap)
    for package, members in packages.items():
        left = shares[package]
        for candidate in sorted(members, key=lambda c: _chance(c.id, seed)):
            if candidate.size <= left:
                left -= candidate.size
                yield candidate


def _describe(
    candidate: _Candidate, content: bytes, duplicate_of: str | None, copied: bool, seed: int
) -> SourceFile:
    licence = file_licence(content, candidate.licence)
    governing = licence.governing
    if governing not in LICENCES and family_of(governing) != "unknown":
        governing = "other"
    return SourceFile(
        id=candidate.id,
        package=candidate.package,
        license=governing,
        expression=licence.expression,
        sha256=hashlib.sha256(content).hexdigest(),
        lines=content.count(b"\n") + (not content.endswith(b"\n")),
        bytes=len(content),
        entropy=round(entropy(content), 6),
        vendored=is_vendored(candidate.id),
        generated=is_generated(content),
        near_duplicate=duplicate_of is not None,
        duplicate_of=duplicate_of,
        # A file with a copy elsewhere measures nothing: the model may have read the copy.
        held_out=not copied and _chance(candidate.id, seed, "held out") < HELD_OUT,
    )


def _chance(name: str, seed: int, purpose: str = "sample") -> float:
    """Return a number in [0, 1) that is fixed by the name, the seed and the purpose."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
