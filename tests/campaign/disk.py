"""What a disk may hold after the power failed: a writer's calls are recorded, and cut off anywhere.

A trace is what was asked of the disk, in order, and what was promised to callers (`Ack`). After a sync all
written before it stands. Of what was written since, any blocks may have reached the disk and any not, and the
size of the file may have grown less far, as far or farther than its content; what did not arrive reads as
zeros. A file that is replaced as a whole is the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias
from unittest.mock import patch

from gradwarden.runtime.ledger import writer as writer_module
from gradwarden.runtime.ledger.storage import LedgerFile


@dataclass(frozen=True)
class Write:
    """Bytes were appended."""

    data: bytes


@dataclass(frozen=True)
class Cut:
    """The file was shortened to a size."""

    size: int


@dataclass(frozen=True)
class Sync:
    """All written so far stands."""


@dataclass(frozen=True)
class Replace:
    """The head beside the ledger is being replaced; `Replaced` says that the new one stands."""

    note: bytes


@dataclass(frozen=True)
class Replaced:
    """The last `Replace` is durable."""


@dataclass(frozen=True)
class Ack:
    """A caller was told that an entry is durable; number: what the entry says."""

    index: int
    number: int


Event: TypeAlias = Write | Cut | Sync | Replace | Replaced | Ack
Trace: TypeAlias = list[Event]


@dataclass(frozen=True)
class Image:
    """What is on the disk: the ledger, and the head beside it where there is one."""

    content: bytes
    sidecar: bytes | None

    def put(self, path: Path) -> None:
        path.write_bytes(self.content)
        beside = Path(f"{path}.head")
        if self.sidecar is None:
            beside.unlink(missing_ok=True)
        else:
            beside.write_bytes(self.sidecar)


@contextmanager
def recorded(trace: Trace) -> Iterator[None]:
    """Record what ledgers ask of the disk meanwhile."""
    write, sync, cut = LedgerFile.write, LedgerFile.sync, LedgerFile.cut
    replace = writer_module.write_sidecar

    def recording_write(file: LedgerFile, data: bytes) -> None:
        write(file, data)
        trace.append(Write(data))

    def recording_sync(file: LedgerFile) -> None:
        sync(file)
        trace.append(Sync())

    def recording_cut(file: LedgerFile, size: int) -> None:
        trace.append(Cut(size))
        cut(file, size)
        trace.append(Sync())

    def recording_replace(path: str, note: str) -> None:
        trace.append(Replace(note.encode()))
        replace(path, note)
        trace.append(Replaced())

    with (
        patch.object(LedgerFile, "write", recording_write),
        patch.object(LedgerFile, "sync", recording_sync),
        patch.object(LedgerFile, "cut", recording_cut),
        patch.object(writer_module, "write_sidecar", recording_replace),
    ):
        yield


def after_crash(random: Random, trace: Sequence[Event], start: Image) -> Image:
    """Return what may be on the disk where the power fails after these calls, which began from an image."""
    durable, written, cut = start.content, start.content, False
    beside: list[bytes | None] = [start.sidecar]
    for event in trace:
        match event:
            case Write(data):
                written += data
            case Cut(size):
                written, cut = written[:size], True
            case Sync():
                durable, cut = written, False
            case Replace(note):
                beside.append(note)
            case Replaced():
                beside = beside[-1:]
    if cut and random.randrange(2):
        return Image(durable, random.choice(beside))
    kept = min(len(durable), len(written))
    return Image(_some_blocks(random, written, kept), random.choice(beside))


def _some_blocks(random: Random, written: bytes, durable: int) -> bytes:
    """Return content of which only the first bytes are sure to be there."""
    whole = len(written)
    size = random.choice((whole, durable, random.randint(durable, whole), whole + random.randrange(5_000)))
    content = bytearray(written[:durable])
    block = random.choice((512, 512, 4_096))
    chance = random.choice((0.0, 0.5, 0.9, 1.0))
    at = durable
    while at < size:
        end = min(size, (at // block + 1) * block)
        piece = written[at:end] if random.random() < chance else b""
        content += piece.ljust(end - at, b"\0")
        at = end
    return bytes(content)


def prefixes(trace: Sequence[Event], start: Image) -> Iterator[tuple[Image, list[Ack]]]:
    """Yield each state through which the disk goes where all arrives in order, byte by byte.

    With it come the promises that were made until then.
    """
    content, sidecar, told = start.content, start.sidecar, list[Ack]()
    for event in trace:
        match event:
            case Write(data):
                for size in range(len(data)):
                    yield Image(content + data[:size], sidecar), list(told)
                content += data
            case Cut(size):
                yield Image(content, sidecar), list(told)
                content = content[:size]
            case Replace(note):
                yield Image(content, sidecar), list(told)
                sidecar = note
            case Ack():
                told.append(event)
    yield Image(content, sidecar), told
