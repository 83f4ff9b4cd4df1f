"""Reads weights from safetensors files, strictly, without torch and without loading them.

A file is the length of its header (8 bytes, little endian), the header (a JSON object), and the data. The
header says of each tensor its `dtype`, `shape` and `data_offsets`, from the start of the data. Of tied
tensors one is stored; `__metadata__`, a mapping of text to text, gives the others: their name, and the stored
one's. The format is that of https://github.com/huggingface/safetensors, whose conditions are all held to: no
name twice, every byte of the data in exactly one tensor, each tensor as long as its type and shape make it.

Files are mapped, not read into memory: to copy what is hashed takes a sixth of the time that hashing does.
That a file has become shorter is noticed before it is touched; one that does so at that very moment ends
the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import WeightsError

SUFFIX = ".safetensors"

MAX_HEADER = 100_000_000
"""The longest header that the format allows, in bytes."""

MAX_TENSORS = 250_000
"""The most tensors of a model, over all of its files."""

MAX_DIMENSIONS = 64

_METADATA = "__metadata__"

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Every type of the format, and the bits of a value."""


@frozen
class StoredTensor:
    """A tensor in a file. begin, end: its bytes in the file; file: the number of that among the weights'."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """The length of its data in bytes."""
        return self.end - self.begin


class StoredWeights:
    """The tensors of one model, in one file or several; use it as a context manager.

    tensors: by name. tied: the stored name of each that is stored under another. Reading is safe from many
    threads. Raises WeightsError where a file is malformed or two hold the same tensor, OSError where one
    cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.tensors: dict[str, StoredTensor] = {}
        self.tied: dict[str, str] = {}
        self._files: list[int] = []
        self._maps: list[memoryview] = []
        with ExitStack() as opened:
            for number, path in enumerate(self.paths):
                file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                opened.callback(os.close, file)
                self._files.append(file)
                self._add(path, *_read_header(path, file, number))
                self._maps.append(memoryview(mmap(file, 0, access=ACCESS_READ)))
            self._opened = opened.pop_all()

    @classmethod
    def open(cls, path: Path) -> StoredWeights:
        """Open a file, or all safetensors files of a folder, which are taken for one model."""
        if not path.is_dir():
            return cls([path])
        paths = sorted(path.glob(f"*{SUFFIX}"))
        if not paths:
            raise WeightsError(f"the folder `{path}` holds no `{SUFFIX}` files")
        return cls(paths)

    def _add(self, path: Path, tensors: Mapping[str, StoredTensor], tied: Mapping[str, str]) -> None:
        twice = tensors.keys() & self.tensors.keys()
        if twice:
            other = self.paths[self.tensors[min(twice)].file]
            raise WeightsError(
                f"`{min(twice)}` is in `{other.name}` and in `{path.name}`",
                help="give one file, or a folder that holds the files of one model and no others",
            )
        self.tensors |= tensors
        self.tied |= tied
        if len(self.tensors) > MAX_TENSORS:
            raise WeightsError(f"the weights have more than {MAX_TENSORS:,} tensors")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maps.clear()
        self._opened.close()

    @property
    def size(self) -> int:
        """The length of all tensors' data in bytes."""
        return sum(tensor.size for tensor in self.tensors.values())

    def find(self, name: str) -> StoredTensor:
        """Return a tensor by its own name or by that of one that it is tied to. Raises WeightsError."""
        found = self.tensors.get(name) or self.tensors.get(self.tied.get(name, ""))
        if found is None:
            raise WeightsError(f"there is no tensor `{name}` in `{self.paths[0].name}`")
        return found

    def data(self, tensor: StoredTensor, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop` of a tensor's data.

        Raises WeightsError where the file has become shorter.
        """
        if os.fstat(self._files[tensor.file]).st_size < tensor.end:
            raise WeightsError(f"`{self.paths[tensor.file].name}` has become shorter while it was read")
        return self._maps[tensor.file][tensor.begin + start : tensor.begin + stop]


def _read_header(path: Path, file: int, number: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise _malformed(path, "it does not begin with the length of a header")
    header = _parse(path, os.pread(file, length, 8))
    metadata = header.pop(_METADATA, {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise _malformed(path, f"`{_METADATA}` is no mapping of text to text")
    if len(header) > MAX_TENSORS:
        raise WeightsError(f"`{path.name}` has more than {MAX_TENSORS:,} tensors")
    start, end = 8 + length, 0
    found = [_tensor(path, name, told, number, start) for name, told in header.items()]
    for tensor in sorted(found, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin - start != end:
            raise _malformed(path, f"there is a gap or an overlap before `{tensor.name}`")
        end = tensor.end - start
    if end != size - start:
        raise _malformed(path, f"its tensors end at byte {end:,} of the data, which have {size - start:,}")
    tensors = {tensor.name: tensor for tensor in found}
    tied = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return tensors, tied


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """Return a header in which no name stands twice and every text is one of Unicode."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        "".join(found).encode()
        return found

    try:
        if not text.startswith(b"{"):
            raise ValueError("it begins with something else than a brace")
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:120]
        raise _malformed(path, f"its header is no JSON object as the format has it ({told})") from None
    found: dict[str, Any] = header
    return found


def _tensor(path: Path, name: str, told: Any, number: int, start: int) -> StoredTensor:
    """Return what a header tells of a tensor. start: of the data in the file."""
    if type(told) is not dict or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"`{name}` is not told by type, shape and place")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if type(dtype) is not str or dtype not in _BITS:
        raise _malformed(path, f"`{name}` is of a type that the format does not know")
    if not (_counts(shape) and len(shape) <= MAX_DIMENSIONS and _counts(offsets) and len(offsets) == 2):
        raise _malformed(path, f"`{name}` has no shape, or no place in the data")
    begin, end = offsets
    if begin > end or prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise _malformed(path, f"`{name}` has another length than its type and shape make")
    return StoredTensor(name, dtype, tuple(shape), number, start + begin, start + end)


def _counts(value: Any) -> bool:
    return type(value) is list and all(type(one) is int and 0 <= one < 1 << 63 for one in value)


def _malformed(path: Path, message: str) -> WeightsError:
    return WeightsError(f"`{path.name}` is no safetensors file: {message}")
