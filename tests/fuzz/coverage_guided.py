"""Coverage-guided fuzzing of the same targets, with atheris (`pip install 'gradwarden[fuzz]'`).

    python -m tests.fuzz.coverage_guided policy -max_total_time=300 CORPUS_FOLDER

Bytes that the fuzzer mutates are read as the choices of the generators, so that a changed byte is another
choice and not another broken text. `raw_policy` and `raw_program` take the bytes as the text itself. Options
that begin with `-` are those of libFuzzer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random

RAW = ("raw_policy", "raw_program")


class Choices(Random):
    """A source of choices that reads them off bytes; past their end every choice is the first."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        part = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part.ljust(size, b"\0"), "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(24) / (1 << 24)


def harness(name: str) -> Callable[[bytes], None]:
    """Return what runs one input of a target."""
    from tests.fuzz.targets import TARGETS, run_policy_text, run_program

    if name == "raw_policy":
        return lambda data: _done(run_policy_text(data.decode("utf-8", "surrogateescape")))
    if name == "raw_program":
        return lambda data: _done(run_program(data))
    target = TARGETS[name]
    return lambda data: _done(target.run(target.generate(Choices(data))))


def _done(_taken: bool) -> None:
    """The fuzzer expects nothing back."""


def main() -> None:
    import atheris  # type: ignore[import-not-found]  # an extra

    with atheris.instrument_imports(include=["gradwarden.policy", "gradwarden.cli"]):
        run = harness(sys.argv[1])
    run(b"")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
