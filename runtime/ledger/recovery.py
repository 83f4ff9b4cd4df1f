"""Reopens a ledger: verifies what stands, and sets a torn tail aside.

A crash leaves an unfinished or garbled end with nothing valid after it. Where the power failed, blocks that
were not synced may be missing in any order: they read as zeros, and valid entries may follow, but never a
signed head, which is written only when all before it stands. Such a tail is saved as `<ledger>.broken-N` and
cut off. Everything else is refused and left as it is: another broken entry with valid ones after it, a broken
link or signature, a ledger that ends before a head that was already signed, or a file that is no ledger.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gradwarden.runtime.errors import LedgerDamaged, LedgerError, LedgerRollback
from gradwarden.runtime.ledger.archive import missing_error
from gradwarden.runtime.ledger.chain import run_links
from gradwarden.runtime.ledger.durable import sync_directory
from gradwarden.runtime.ledger.entries import ENTRY_START, HEAD, MalformedLineError, decode
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.links import Fault, Links
from gradwarden.runtime.ledger.reader import archives_of
from gradwarden.runtime.ledger.sidecar import Sidecar, read_sidecar
from gradwarden.runtime.ledger.storage import LedgerFile

TORN = frozenset({"too_long", "not_json", "not_canonical", "not_an_entry", "unknown_kind", "wrong_shape"})
"""Faults of a line in itself, which a write that was cut short can leave."""

BLOCK = 512
"""Bytes that a disk writes as a whole, at the least."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A ledger that may be appended to: its state, and how many bytes were cut and saved where."""

    links: Links
    cut: int
    broken: str | None


def recover(file: LedgerFile, key: PublicKey, others: Sequence[PublicKey] = ()) -> Recovered:
    """Verify and repair a ledger that is held for writing.

    key: by which it will be continued. others: that may have signed what stands.

    Raises LedgerDamaged, LedgerRollback or LedgerError where it may not be continued; then nothing changes.
    """
    archives = archives_of(file.path)
    if archives is not None:
        if archives.missing():
            raise missing_error(archives)
        file.base = archives.size
    sidecar = read_sidecar(file.path)
    links = Links([key, *others], watch=sidecar.size if sidecar else None)
    tail = run_links(links, file.path)
    if links.fault is not None and not _is_torn(file, links.fault):
        raise _damaged(links.fault)
    _check_key(links, key)
    _check_rollback(links, sidecar, file.path)
    if links.fault is None and not tail:
        return Recovered(links, 0, None)
    cut = file.read(links.offset)
    if not links.size and not _may_be_torn(cut):
        raise LedgerError(
            f"`{file.path}` is no ledger, and is left as it is",
            help="name a new file, or the ledger of a run that is to go on",
        )
    broken = _set_aside(file.path, cut)
    file.cut(links.offset)
    links.fault = None
    return Recovered(links, len(cut), os.path.basename(broken))


def _is_torn(file: LedgerFile, fault: Fault) -> bool:
    """Return whether the fault is garbage with no valid entry anywhere after it, or a block that was lost."""
    if fault.code not in TORN or fault.offset < file.base:
        return False
    rest = file.read(fault.offset)
    kinds, broken = set(), []
    for line in rest.split(b"\n"):
        try:
            kinds.add(decode(line)[1])
        except MalformedLineError:
            broken.append(line)
    if not kinds:
        return True
    # The last is what follows the last newline.
    whole = broken[:-1] if not rest.endswith(b"\n") else [line for line in broken if line]
    return (
        HEAD not in kinds
        and all(b"\0" in line for line in whole)
        and _lost_blocks(rest, fault.offset - file.base)
    )


def _may_be_torn(content: bytes) -> bool:
    """Whether a file without a whole entry may be what a crash left of the first one."""
    return content[:1] == b"\0" or content.startswith(ENTRY_START) or ENTRY_START.startswith(content)


def _lost_blocks(rest: bytes, offset: int) -> bool:
    """Whether all zeros from an offset of a file on are blocks that did not reach the disk.

    They begin where a block does, or behind what was written earlier, which ends with a line.
    """
    return all(
        (rest[: hole.start()][-1:] in (b"", b"\n") or (offset + hole.start()) % BLOCK == 0)
        and (hole.end() == len(rest) or (offset + hole.end()) % BLOCK == 0)
        for hole in re.finditer(rb"\0+", rest)
    )


def _damaged(fault: Fault) -> LedgerError:
    return LedgerDamaged(
        f"entry {fault.index} at byte {fault.offset}: {fault.message}",
        index=fault.index,
        offset=fault.offset,
        problem=fault.code,
        help="this is not what a crash leaves; examine it with `gradwarden verify` and begin a new ledger",
    )


def _check_key(links: Links, key: PublicKey) -> None:
    if (links.opened and not links.authority.in_force(key)) or links.unknown_head is not None:
        raise LedgerError(
            f"the ledger is signed by another key than `{key.name}`",
            help="continue it with the key that it was begun with, or handed over to (`gradwarden rotate`)",
        )


def _check_rollback(links: Links, sidecar: Sidecar | None, path: str) -> None:
    if sidecar is None:
        return
    head = sidecar.checkpoint
    if head is None or sidecar.trust(links.authority.signers_of(head.size)) != "verified":
        raise LedgerRollback(f"the head beside `{path}` is not signed by this ledger's key")
    if links.size <= head.size:
        raise LedgerRollback(
            f"the ledger ends after {links.size} entries, but a head over {head.size} was signed",
            help="restore the missing entries; a signed ledger is never shortened",
        )
    if head.origin != links.origin or head.root != links.watched:
        raise LedgerRollback("the ledger differs from the head that was signed for it")


def _set_aside(path: str, data: bytes) -> str:
    """Save bytes durably under the first free name `<path>.broken-N`; return the name."""
    number = 1
    while True:
        target = f"{path}.broken-{number}"
        try:
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(handle, "wb") as saved:
            saved.write(data)
            saved.flush()
            os.fsync(handle)
        sync_directory(path)
        return target
