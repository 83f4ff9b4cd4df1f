"""Verifies a large ledger's lines in several processes.

Each line holds the hash of the line before, so a run of lines can be checked without what precedes it; runs
are then stitched by comparing the first link of each with the last hash of the one before. Only what needs no
state is done apart: form, shape, order and links. Whatever looks odd makes the whole attempt None, and the
caller goes through the file once in order, which also says where the fault is.

Run as a program, this module checks one run of lines and writes the result to its standard output: a line of
JSON, then the leaf hashes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import orjson

from gradwarden.runtime.ledger.entries import MAX_LINE, MalformedLineError, decode
from gradwarden.runtime.ledger.links import LANDMARKS
from gradwarden.runtime.ledger.reader import open_ledger, pieces

SMALLEST = 24 << 20
"""Bytes below which one process is as fast."""

LARGEST = 1 << 30
"""Bytes above which the hashes kept for stitching would take too much memory."""

MOST_PROCESSES = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of lines that fit each other.

    first, prev: the index and link of the first line. leaves: the leaf hash of each line, joined. landmarks:
    the lines that need the state of the whole ledger, by index. size: in bytes. tail: an unfinished line.
    """

    first: int
    prev: str
    leaves: bytes
    landmarks: dict[int, bytes]
    size: int
    tail: bytes


class OddSegmentError(ValueError):
    """A run of lines that is not sound in itself."""


def check_segment(path: str, start: int, stop: int, progress: Callable[[int], None] | None = None) -> Segment:
    """Check the lines that begin in [start, stop). Raises OddSegmentError where anything is wrong."""
    first, first_prev, index, prev = -1, "", -1, ""
    leaves: list[bytes] = []
    landmarks: dict[int, bytes] = {}
    tail, size = b"", 0
    with open_ledger(path) as file:
        for piece in pieces(file, start, stop):
            for line in piece.lines:
                try:
                    found, kind, link, _ = decode(line)
                except MalformedLineError:
                    raise OddSegmentError from None
                if first < 0:
                    first, first_prev = found, link
                elif found != index + 1 or link != prev:
                    raise OddSegmentError
                leaf = sha256(b"\x00" + line)
                leaves.append(leaf.digest())
                index, prev = found, leaf.hexdigest()
                if kind in LANDMARKS:
                    landmarks[index] = line
                size += len(line) + 1
            tail = piece.rest or b""
            if progress is not None:
                progress(size)
    if first < 0:
        raise OddSegmentError
    return Segment(first, first_prev, b"".join(leaves), landmarks, size, tail)


def check_in_parallel(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> list[Segment] | None:
    """Check all lines of a ledger; None where it is too small or large for this, or anything is odd."""
    name = os.fspath(path)
    spans = list(pairwise(_bounds(name)))
    if len(spans) < 2:
        return None
    with ExitStack() as stack:
        workers = [stack.enter_context(_start(name, *span)) for span in spans[1:]]
        for worker in workers:
            stack.callback(worker.kill)
        try:
            first = check_segment(name, *spans[0], _scaled(progress, len(spans), spans[-1][1]))
            return [first, *map(_result, workers)]
        except (OddSegmentError, OSError):
            return None


def _scaled(
    progress: Callable[[int, int], None] | None, processes: int, total: int
) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(min(done * processes, total), total)


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


def _start(path: str, start: int, stop: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gradwarden.runtime.ledger.segments", path, str(start), str(stop)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )


def _result(worker: subprocess.Popen[bytes]) -> Segment:
    output, _ = worker.communicate()
    if worker.returncode != 0:
        raise OddSegmentError
    line, leaves = output.split(b"\n", 1)
    facts = orjson.loads(line)
    landmarks = {int(index): text.encode() for index, text in facts["landmarks"].items()}
    tail = bytes.fromhex(facts["tail"])
    return Segment(facts["first"], facts["prev"], leaves, landmarks, facts["size"], tail)


def _output(segment: Segment) -> Iterator[bytes]:
    yield orjson.dumps(
        {
            "first": segment.first,
            "prev": segment.prev,
            "landmarks": {str(index): line.decode() for index, line in segment.landmarks.items()},
            "size": segment.size,
            "tail": segment.tail.hex(),
        }
    )
    yield b"\n"
    yield segment.leaves


def main() -> int:
    """Check the run of lines named by the arguments: path, start, stop. Status 1: something is odd."""
    try:
        segment = check_segment(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except OddSegmentError:
        return 1
    sys.stdout.buffer.writelines(_output(segment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
