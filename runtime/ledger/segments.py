"""Verifies a large ledger's lines in several processes.

Each line holds the hash of the line before, so a run of lines can be checked without what precedes it; runs
are then stitched by comparing the first link of each with the last hash of the one before. Only what needs no
state is done apart: form, shape, order and links. Whatever looks odd ends the whole attempt, and the caller
goes through the file once in order, which also says where the fault is.

Either the file is divided among processes (`check_in_parallel`), or one process checks it from its beginning
while the caller does something else with the text of what is checked already (`check_ahead`). Then the shape
of the bodies is left to the caller, who parses them, too.

Run as a program, this module checks one run of lines and writes what it finds to its standard output, piece
by piece: a line of JSON, the leaf hashes, and the lines themselves where they are asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, TypeAlias

import orjson

from gradwarden.runtime.ledger.entries import LANDMARKS, MAX_LINE, MalformedLineError, decode, read_frame
from gradwarden.runtime.ledger.reader import open_ledger, pieces

SMALLEST = 24 << 20
"""Bytes below which one process is as fast."""

LARGEST = 1 << 30
"""Bytes above which the hashes kept for stitching would take too much memory."""

MOST_PROCESSES = 4

AHEAD = "ahead"

CHECKER = "gradwarden.runtime.ledger.segments"
"""The program that checks lines, and nothing more."""

Watch: TypeAlias = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of lines that fit each other.

    first, prev: the index and link of the first line. leaves: the leaf hash of each line, joined. landmarks:
    the lines that need the state of the whole ledger, by index. size: in bytes. tail: an unfinished line.
    lines: the lines themselves where they were asked for, newlines included.
    """

    first: int
    prev: str
    leaves: bytes
    landmarks: dict[int, bytes]
    size: int
    tail: bytes
    lines: bytes = b""


class OddSegmentError(ValueError):
    """A run of lines that is not sound in itself."""


def check_pieces(
    path: str, start: int, stop: int, *, ahead: bool = False, watch: Watch | None = None
) -> Iterator[Segment]:
    """Check the lines that begin in [start, stop), a piece at a time. Raises OddSegmentError at a fault.

    ahead: give the lines, too, and check no shapes. watch: shown the kind and body of each entry; raises
    OddSegmentError, too.
    """
    read = read_frame if ahead else decode
    index, prev = -1, ""
    with open_ledger(path) as file:
        for piece in pieces(file, start, stop):
            first, first_prev = index + 1, prev
            leaves: list[bytes] = []
            landmarks: dict[int, bytes] = {}
            for line in piece.lines:
                try:
                    found, kind, link, body = read(line)
                except MalformedLineError:
                    raise OddSegmentError from None
                if index < 0:
                    first, first_prev = found, link
                elif found != index + 1 or link != prev:
                    raise OddSegmentError
                leaf = sha256(b"\x00" + line)
                leaves.append(leaf.digest())
                index, prev = found, leaf.hexdigest()
                if kind in LANDMARKS:
                    landmarks[index] = line
                if watch is not None:
                    watch(kind, body)
            lines = b"\n".join([*piece.lines, b""])
            yield Segment(
                first,
                first_prev,
                b"".join(leaves),
                landmarks,
                len(lines),
                piece.rest or b"",
                lines if ahead else b"",
            )


def check_in_parallel(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> list[Segment] | None:
    """Check all lines of a ledger; None where it is too small or large for this, or anything is odd."""
    name = os.fspath(path)
    spans = list(pairwise(_bounds(name)))
    if len(spans) < 2:
        return None
    scale = len(spans)
    with ExitStack() as stack:
        workers = [stack.enter_context(_start(name, *span)) for span in spans[1:]]
        for worker in workers:
            stack.callback(worker.kill)
        try:
            found = []
            for segment in check_pieces(name, *spans[0]):
                found.append(segment)
                if progress is not None:
                    done = sum(segment.size for segment in found)
                    progress(min(done * scale, spans[-1][1]), spans[-1][1])
            for worker in workers:
                found += _results(worker)
        except (OddSegmentError, OSError):
            return None
    return found


def check_ahead(
    path: str | os.PathLike[str], checker: str = CHECKER
) -> Generator[Segment, None, None] | None:
    """Give the lines of a ledger, checked in order by another process that runs ahead of the caller.

    checker: the module to run; see `serve`. None where the ledger is too small for this or no second
    processor is there. What is given raises OddSegmentError at a fault.
    """
    name = os.fspath(path)
    with open_ledger(name) as file:
        total = os.fstat(file.fileno()).st_size
    return _ahead(name, total, checker) if total >= SMALLEST and _processors() > 1 else None


def _ahead(path: str, total: int, checker: str) -> Generator[Segment, None, None]:
    with _start(path, 0, total, AHEAD, checker=checker) as worker:
        try:
            yield from _results(worker)
        finally:
            worker.kill()


def _processors() -> int:
    """Return how many processors this process may use; where the system does not tell, how many there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _bounds(path: str) -> list[int]:
    """Return the offsets of line starts that divide the file evenly, its ends included."""
    with open_ledger(path) as file:
        total = os.fstat(file.fileno()).st_size
        if not SMALLEST <= total <= LARGEST:
            return []
        count = min(MOST_PROCESSES, _processors())
        bounds = [0]
        for part in range(1, count):
            file.seek(total * part // count)
            newline = file.read(MAX_LINE + 1).find(b"\n")
            if newline < 0:
                return []
            bounds.append(total * part // count + newline + 1)
        return [*bounds, total]


def _start(path: str, start: int, stop: int, *mode: str, checker: str = CHECKER) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", checker, path, str(start), str(stop), *mode]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )


def _results(worker: subprocess.Popen[bytes]) -> Iterator[Segment]:
    """Yield what a worker writes. Raises OddSegmentError where it found a fault or came to grief."""
    assert worker.stdout is not None, "every worker writes to a pipe"
    for line in worker.stdout:
        try:
            facts = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise OddSegmentError from None
        leaves, lines = worker.stdout.read(facts["leaves"]), worker.stdout.read(facts["lines"])
        landmarks = {int(index): text.encode() for index, text in facts["landmarks"].items()}
        tail = bytes.fromhex(facts["tail"])
        yield Segment(facts["first"], facts["prev"], leaves, landmarks, facts["size"], tail, lines)
    if worker.wait() != 0:
        raise OddSegmentError


def _output(segment: Segment) -> Iterator[bytes]:
    yield orjson.dumps(
        {
            "first": segment.first,
            "prev": segment.prev,
            "leaves": len(segment.leaves),
            "lines": len(segment.lines),
            "landmarks": {str(index): line.decode() for index, line in segment.landmarks.items()},
            "size": segment.size,
            "tail": segment.tail.hex(),
        }
    )
    yield b"\n"
    yield segment.leaves
    yield segment.lines


def serve(arguments: Sequence[str], watch: Watch | None = None) -> int:
    """Check the run of lines named by a program's arguments: path, start, stop. Status 1: something is odd.

    A fourth argument, AHEAD: write each piece at once. Otherwise all is written at the end, since the caller
    reads nothing before and a full pipe would bring this process to a halt.
    """
    _, path, start, stop, *mode = arguments
    ahead = AHEAD in mode
    found = check_pieces(path, int(start), int(stop), ahead=ahead, watch=watch)
    try:
        for segment in found if ahead else list(found):
            sys.stdout.buffer.writelines(_output(segment))
            sys.stdout.buffer.flush()
    except OddSegmentError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv))
