"""Shares the blocks of a large ledger between two processes.

Both claim shares in order, so that neither waits for the other to have done its part: a slow start, or what
one of them does besides, only shifts the border. They meet in a folder. Whoever renames the file `next-N` to
`next-N+1` has claimed share N, and the other process leaves what it found in a file of its own, which the
caller reads and removes.

Run as a program, this module is the other process.
"""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from gradwarden.runtime.ledger import blocks
from gradwarden.runtime.ledger.blocks import READINGS, Block, BlockReader, Reading
from gradwarden.runtime.ledger.entries import OddBlockError
from gradwarden.runtime.ledger.reader import open_ledger, size_of

SMALLEST = 12 << 20
"""Bytes below which one process is as fast."""

CHECKER = "gradwarden.runtime.ledger.sharing"

SHARE = 2
"""Blocks that a process claims at once."""

MOST_WAITING = 8
"""Shares that each process keeps until they are needed."""

PAUSE = 0.001
"""Seconds between two looks at what the other process has done."""


@contextmanager
def check_blocks(
    path: str | os.PathLike[str], *, reading: Reading, start: int = 0
) -> Generator[Iterator[Block]]:
    """Give the blocks of a ledger in order, checked here and, of a large one, in a second process.

    That one works from the beginning of the context to its end. reading, start: see `BlockReader`. The
    blocks, too, raise OddBlockError where anything is odd, LedgerError or OSError where the file cannot be
    read.
    """
    name = os.fspath(path)
    with open_ledger(name) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OddBlockError
        total = size_of(file)
        if start > total:
            raise OddBlockError
        reader = BlockReader(file, total, reading=reading, size=blocks.BLOCK, start=start)
        if total - start < SMALLEST or _processors() == 1:
            yield map(reader.read, range(reader.count))
            return
        with TemporaryDirectory(prefix="gradwarden-") as folder:
            shares = Shares(Path(folder), reader, SHARE)
            shares.begin()
            numbers = (total, start, SHARE, blocks.BLOCK, READINGS.index(reading))
            # -P: no module from the current folder, where whoever is checked may have laid one.
            command = [sys.executable, "-P", "-m", CHECKER, name, folder, *map(str, numbers)]
            nowhere = subprocess.DEVNULL
            with subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere) as other:
                try:
                    yield chain.from_iterable(_in_order(shares, other))
                finally:
                    other.kill()


def _in_order(shares: Shares, other: subprocess.Popen[bytes]) -> Iterator[list[Block]]:
    """Yield each share; where the next is still in the making, check one further on meanwhile."""
    own: dict[int, list[Block]] = {}
    for number in range(shares.count):
        while number not in own:
            ended = other.poll() is not None
            found = shares.take(number)
            if found is not None:
                own[number] = found
                break
            claimed = shares.claim() if len(own) < MOST_WAITING else None
            if claimed is not None:
                own[claimed] = shares.read(claimed)
            elif ended:
                raise OddBlockError
            else:
                time.sleep(PAUSE)
        yield own.pop(number)


class Shares:
    """The blocks of a file, some at a time, and the folder through which two processes share them."""

    def __init__(self, folder: Path, reader: BlockReader, size: int) -> None:
        self.count = -(-reader.count // size)
        self._folder = folder
        self._reader = reader
        self._size = size
        self._next = 0

    def begin(self) -> None:
        """Offer the first share."""
        (self._folder / "next-0").touch()

    def claim(self) -> int | None:
        """Return the number of a share that no process has claimed before; None where all are claimed."""
        while self._next < self.count:
            number = self._next
            self._next += 1
            try:
                os.rename(self._folder / f"next-{number}", self._folder / f"next-{number + 1}")
            except FileNotFoundError:  # the other process has claimed it
                continue
            return number
        return None

    def read(self, number: int) -> list[Block]:
        """Check the blocks of a share. Raises OddBlockError."""
        first = number * self._size
        return list(map(self._reader.read, range(first, min(first + self._size, self._reader.count))))

    def give(self, number: int, share: list[Block]) -> Path:
        """Leave a share for the caller. Return the file, which is removed once it is read."""
        made, given = self._folder / "unfinished", self._folder / f"share-{number}"
        made.write_bytes(pickle.dumps(share, pickle.HIGHEST_PROTOCOL))
        os.rename(made, given)
        return given

    def take(self, number: int) -> list[Block] | None:
        """Return a share that the other process has left, None where it has not."""
        given = self._folder / f"share-{number}"
        try:
            content = given.read_bytes()
        except FileNotFoundError:
            return None
        given.unlink()
        share: list[Block] = pickle.loads(content)
        return share


def _processors() -> int:
    """Return how many processors this process may use; where the system does not tell, how many there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def serve(arguments: Sequence[str]) -> int:
    """Check shares until all are claimed. Status 1: something is odd, or the caller is gone."""
    _, path, folder, *numbers = arguments
    total, start, share, size, reading = map(int, numbers)
    caller = os.getppid()
    given: deque[Path] = deque()
    try:
        with open_ledger(path) as file:
            reader = BlockReader(file, total, reading=READINGS[reading], size=size, start=start)
            shares = Shares(Path(folder), reader, share)
            while (number := shares.claim()) is not None:
                given.append(shares.give(number, shares.read(number)))
                while len(given) > MOST_WAITING and given[0].exists():
                    if os.getppid() != caller:
                        return 1
                    time.sleep(PAUSE)
                if len(given) > MOST_WAITING:
                    given.popleft()
    except (OddBlockError, OSError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv))
