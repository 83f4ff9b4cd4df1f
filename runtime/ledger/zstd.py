"""Zstandard (RFC 8878): the standard library's, where Python has it, or else the package `zstandard`.

Frames say how long their content is, and are refused where it is not what the reader expects: so no file can
make a reader take more memory than it means to.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gradwarden.runtime.errors import LedgerError

MAX_WINDOW = 1 << 24
"""Bytes that a frame may refer back to; frames hold less than that."""


class FrameError(ValueError):
    """A frame that is no sound one, or of another length than expected."""


def compress(data: bytes, level: int) -> bytes:
    """Return a frame that says how long its content is. Raises LedgerError where nothing can compress."""
    standard, package = _codecs()
    if standard is not None:
        return bytes(standard.compress(data, level))
    return bytes(package.ZstdCompressor(level=level, write_checksum=True).compress(data))


def decompress(frame: bytes, size: int) -> bytes:
    """Return the content of one frame. size: its length. Raises FrameError, LedgerError."""
    standard, package = _codecs()
    try:
        if standard is not None:
            info = standard.get_frame_info(frame)
            told = info.decompressed_size
        else:
            told = package.frame_content_size(frame)
        if told != size:
            raise FrameError(f"a frame holds {told} bytes instead of {size}")
        if standard is not None:
            reader = standard.ZstdDecompressor()
            content, whole = reader.decompress(frame, max_length=size), reader.eof and not reader.unused_data
        else:
            engine = package.ZstdDecompressor(max_window_size=MAX_WINDOW)
            content, whole = engine.decompress(frame, max_output_size=size, allow_extra_data=False), True
    except Exception as error:
        raise FrameError(f"a frame cannot be decompressed: {str(error)[:100]}") from error
    if len(content) != size or not whole:
        raise FrameError(f"a frame holds {len(content)} bytes instead of {size}")
    return bytes(content)


def _codecs() -> tuple[Any, Any]:
    """Return the standard library's module, or else the package."""
    try:
        return import_module("compression.zstd"), None
    except ImportError:
        pass
    try:
        return None, import_module("zstandard")
    except ImportError:
        raise LedgerError(
            "archives of ledgers need zstandard", help="pip install 'gradwarden[archive]'"
        ) from None
