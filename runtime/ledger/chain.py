"""Verifies a ledger's chain: every line, every link, the tree and every signed head; no decision is replayed.

What is found, each at the index of an entry (`Finding.code`):

- a line that is no canonical entry: `too_long`, `not_json`, `not_canonical`, `not_an_entry`, `unknown_kind`,
  `wrong_shape`
- lines removed, inserted or reordered: `wrong_index`
- an altered line: `altered` (its successor links to another) or `wrong_link` (it links to another than its
  predecessor)
- a head that does not fit: `malformed_note`, `bad_signature`, `wrong_size`, `wrong_root`, `wrong_origin`,
  `undeclared_key` (a known key, but not one that the opening names), `retired_key` (one that was handed over
  or revoked before), `unknown_key`, `untrusted_key` (a key of this ledger that was not given)
- a change of keys that may not be made: `undeclared_key`, `retired_key`, `reused_key`, `unproved_key` (a key
  that must sign it has not), `too_many_changes`, and the faults of heads
- an order that no writer produces: `no_opening`, `second_opening`, `after_seal`
- against the sidecar `<ledger>.head`: `truncated`, `sidecar_mismatch`, `sidecar_malformed`,
  `sidecar_signature`, and the warning `stale_sidecar`
- archives (`archive`): `archive_damaged`, `archive_mismatch` (what is kept of missing ones does not hold),
  and the warning `archive_missing`
- `torn_tail`: an unfinished last line, as a crash leaves it; `unsigned`: no head by a known key

What lies after the last head is protected by links alone: whoever can write the file can cut it off, and the
status is INCOMPLETE, not TAMPERED. A ledger rewritten from the start by a holder of its key cannot be told
from a genuine one without a head kept elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, TypeAlias

from gradwarden.runtime.errors import LedgerDamaged, LedgerError
from gradwarden.runtime.ledger.archive import Archives, WholeFile
from gradwarden.runtime.ledger.authority import Change
from gradwarden.runtime.ledger.blocks import Reading
from gradwarden.runtime.ledger.entries import ZERO_HASH, Entry, OddBlockError
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.links import Fault, Links, Stage
from gradwarden.runtime.ledger.reader import absent, open_ledger, pieces, readable_from, size_of
from gradwarden.runtime.ledger.sharing import check_blocks
from gradwarden.runtime.ledger.sidecar import Sidecar, read_sidecar

Status = Literal["OK", "INCOMPLETE", "UNTRUSTED", "TAMPERED"]

Listener: TypeAlias = Callable[[Part], None]
"""Told of entries in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. A warning does not change the status."""

    code: str
    index: int
    message: str
    severity: Literal["error", "warning"] = "error"
    offset: int | None = None

    def damage(self, what: str, help: str) -> LedgerDamaged:
        """Return the error of whoever cannot use the ledger for this. what: is not done, in words."""
        return LedgerDamaged(
            f"{what}: {self.message}",
            index=self.index,
            offset=self.offset or 0,
            problem=self.code,
            help=help,
        )


def first_error(findings: Iterable[Finding]) -> Finding | None:
    """Return the first finding that is no warning."""
    return next((found for found in findings if found.severity == "error"), None)


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a ledger's chain proves.

    status: OK (sealed, intact, signed by a given key), INCOMPLETE (intact as far as it goes, but not sealed),
    UNTRUSTED (intact, but no given key has signed it), TAMPERED. size, root: entries whose links hold, and
    the tree's root (hex) over them. first_bad: the index of the first entry at fault. signed_size: entries
    covered by the last verified head. keys_used: vkeys of the given keys, and of those that they handed over
    to, whose signatures were found. changes: of keys, in order. end: the byte after those entries. tip: the
    leaf hash (hex) of the last of them; zeros where there is none. archived: the first so many entries lie in
    archives that are missing: nobody was told of any entry. links: what the entries come to.
    """

    status: Status
    size: int
    root: str
    first_bad: int | None
    findings: tuple[Finding, ...]
    sealed: bool
    signed_size: int
    keys_used: tuple[str, ...]
    origin: str | None
    changes: tuple[Change, ...] = ()
    end: int = 0
    tip: str = ZERO_HASH
    archived: int = 0
    links: Links | None = field(default=None, compare=False, repr=False)


def verify_chain(
    path: str | os.PathLike[str],
    keys: Sequence[PublicKey],
    listen: Callable[[], Listener] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    frames: bool = False,
    since: Mapping[str, Any] | None = None,
) -> ChainReport:
    """Verify a ledger up to its first fault, in memory that its length does not change.

    listen: gives who is told of each entry whose link holds, in order, before it is known whether a head
    covers it. It is asked again, and the ledger told anew, where a fault shows. progress: called with (bytes
    done, bytes in all). frames: where nobody listens, whether to leave open what most lines say, and whether
    they are entries; order, links, tree and signatures are checked all the same. since: what was
    remembered (`Links.remember`) of the entries before the first that is to be read. Raises LedgerError only
    where the file cannot be read.
    """
    reading: Reading = "columns" if listen is not None else "frames" if frames else "lines"
    sidecar = read_sidecar(path)
    watch = sidecar.size if sidecar else None
    missing = absent(path)

    def begin() -> Links:
        return Links(keys, watch) if since is None else Links.recalled(since, keys, watch)

    links = begin()
    tail: bytes | None
    if missing is not None:
        tail = run_links(links, path, None, progress)
    else:
        tail = _run_blocks(links, path, reading, listen, progress)
    if tail is None:
        links = begin()
        tail = run_links(links, path, None if listen is None else listen(), progress)
    findings = [*_chain_findings(links, tail), *_sidecar_findings(links, sidecar)]
    if missing is not None:
        findings.append(_missing(missing))
    errors = [finding for finding in findings if finding.severity == "error"]
    if links.last_head is None and not links.signed_size and not errors:
        errors = [Finding("unsigned", 0, "no entry of the ledger is signed")]
        findings += errors
    return ChainReport(
        status=_status(links, errors, whole=missing is None),
        size=links.size,
        root=links.tree.root().hex(),
        first_bad=min((finding.index for finding in errors), default=None),
        findings=tuple(sorted(findings, key=lambda finding: finding.index)),
        sealed=links.stage is Stage.CLOSED,
        signed_size=links.signed_size,
        keys_used=tuple(links.keys_used),
        changes=tuple(links.authority.changes),
        origin=links.origin,
        end=links.offset,
        tip=links.prev,
        archived=0 if missing is None else missing.end,
        links=links,
    )


def _run_blocks(
    links: Links,
    path: str | os.PathLike[str],
    reading: Reading,
    listen: Callable[[], Listener] | None,
    progress: Callable[[int, int], None] | None,
) -> bytes | None:
    """Feed a sound file to `links` block by block; None where that cannot be done and `links` is spoilt."""
    tail = b""
    with (
        suppress(OddBlockError, OSError, LedgerDamaged),
        open_ledger(path) as file,
        check_blocks(path, reading=reading, start=links.offset) as blocks,
    ):
        total = size_of(file)
        listener = None if listen is None else listen()
        for block in blocks:
            if not links.absorb(block):
                return None
            if listener is not None:
                for part in block.parts:
                    listener(part)
            tail += block.tail
            if progress is not None:
                progress(min(links.offset + len(tail), total), total)
        return tail
    return None


def run_links(
    links: Links,
    path: str | os.PathLike[str],
    listener: Listener | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Feed a file to `links` until its end or a fault. Return the unfinished last line (empty if none)."""
    tail = bytearray()
    with open_ledger(path) as file:
        try:
            start = links.offset or readable_from(file)
            if (
                start > links.offset
                and isinstance(file, WholeFile)
                and not links.go_on(file.archives.kept, start)
            ):
                return b""
            lines = _lines(file, tail, progress, start)
            for line in lines:
                accepted = links.accept(line)
                if accepted is None:
                    links.settle(next(lines, None))
                    return b""
                if listener is not None:
                    listener(Entry(links.size - 1, *accepted, line))
        except LedgerDamaged as damage:
            links.fault = Fault(damage.problem, links.size, links.offset, damage.message)
            return b""
        except OSError as error:
            raise LedgerError(f"cannot read the ledger `{os.fspath(path)}`: {error.strerror}") from error
    return bytes(tail)


def _lines(
    file: BinaryIO, tail: bytearray, progress: Callable[[int, int], None] | None, start: int
) -> Iterator[bytes]:
    total = size_of(file)
    for piece in pieces(file, start):
        yield from piece.lines
        tail += piece.rest or b""
        if progress is not None:
            progress(min(piece.offset, total), total)


def _chain_findings(links: Links, tail: bytes) -> Iterator[Finding]:
    if links.unknown_head is not None:
        yield _finding(links.unknown_head)
    if links.fault is not None:
        yield _finding(links.fault)
        return
    if tail and links.stage is Stage.CLOSED:
        yield Finding(
            "after_seal", links.size, "bytes follow the end of a sealed ledger", offset=links.offset
        )
    elif tail:
        message = "the last line is unfinished, as a crash leaves it"
        yield Finding("torn_tail", links.size, message, "warning", links.offset)
    if links.stage is not Stage.CLOSED:
        message = "the ledger is not sealed; entries after this one may be missing"
        yield Finding("not_sealed", links.size, message, "warning", links.offset)


def _missing(archives: Archives) -> Finding:
    names = ", ".join(f"`{one.file}`" for one in archives.missing())
    message = (
        f"entries 0 to {archives.end - 1:,} are archived, and {names} is missing: that they are those under "
        "the heads after them was checked, by their roots; what they say was not"
    )
    return Finding("archive_missing", 0, message, "warning")


def _finding(fault: Fault) -> Finding:
    return Finding(fault.code, fault.index, fault.message, offset=fault.offset)


def _sidecar_findings(links: Links, sidecar: Sidecar | None) -> Iterator[Finding]:
    """Compare the ledger with the head kept beside it, as far as the chain itself holds."""
    if sidecar is None:
        return
    head = sidecar.checkpoint
    if head is not None and head.size < links.begun:
        return
    if head is None:
        yield Finding("sidecar_malformed", links.size, "the file beside the ledger is not a signed head")
        return
    trust = sidecar.trust(links.authority.signers_of(head.size))
    stranger = trust == "unknown_key" and links.signed_size and not links.authority.signs(sidecar.note)
    if trust == "bad_signature" or stranger:
        message = "the head beside the ledger is not signed by its key"
        yield Finding("sidecar_signature", min(head.size, links.size), message)
    elif links.size <= head.size:
        if links.fault is None:
            message = f"the ledger ends after {links.size} entries; a signed head speaks of {head.size}"
            yield Finding("truncated", links.size, message, offset=links.offset)
    elif head.origin != links.origin or head.root != links.watched:
        message = "the head beside the ledger was signed over other entries than these"
        yield Finding("sidecar_mismatch", head.size, message)
    elif links.stage is Stage.CLOSED and head.size != links.last_head:
        message = "the head beside the ledger is not the last; a crash at the end of the run leaves it so"
        yield Finding("stale_sidecar", head.size, message, "warning")


_UNTRUSTED = {"unsigned", "unknown_key", "untrusted_key"}
"""Faults of which the keys that were given may be the reason."""


def _status(links: Links, errors: Sequence[Finding], *, whole: bool) -> Status:
    codes = {error.code for error in errors}
    if codes - _UNTRUSTED or ("unknown_key" in codes and links.signed_size):
        return "TAMPERED"
    if errors:
        return "UNTRUSTED"
    return "OK" if links.stage is Stage.CLOSED and whole else "INCOMPLETE"
