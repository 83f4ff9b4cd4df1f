"""Reads what verbs are given: policies, compiled programs, model maps and examples."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradwarden.cli.failures import InputError

if TYPE_CHECKING:
    from gradwarden.policy.load import Parse
    from gradwarden.policy.model_map import ModelMap
    from gradwarden.policy.program import Program
    from gradwarden.runtime.evidence.prover import SignedHead

MAX_EXAMPLE_BYTES = 1 << 20
MAX_NOTE_BYTES = 1 << 20
STDIN = Path("-")

NOTE_HELP = "a signed note is a text and, below an empty line, who signed it; is this the right file?"
HEAD_HELP = "give a signed head, such as `LEDGER.head` or what `gradwarden witness` wrote"
PROOF_HELP = "give what `gradwarden proof -o` wrote, byte for byte"
LEDGER_HELP = "is it the right file? give the ledger that a run wrote, such as `run.ledger`"


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file, or of standard input for `-`. Raises OSError, InputError."""
    if path == STDIN:
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"`{path}` is larger than {limit >> 10:,} KiB")
    return decode(data, path)


def read_bytes(path: Path, limit: int, noun: str) -> bytes:
    """Return the content of a file. Raises OSError, InputError where it is larger than what `noun` may be."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"`{path}` is too large for {noun}")
    return data


def read_note(path: Path) -> bytes:
    """Return the bytes of a signed note. Raises OSError, InputError, NoteError where it is none."""
    from gradwarden.runtime.ledger.note import parse_note

    content = read_bytes(path, MAX_NOTE_BYTES, "a signed note")
    with told_of(path, help=NOTE_HELP):
        parse_note(content)
    return content


def load_head(path: Path) -> SignedHead:
    """Return the signed head in a note. Raises OSError, InputError, NoteError."""
    from gradwarden.runtime.evidence.prover import read_head

    content = read_note(path)
    with told_of(path, help=HEAD_HELP):
        return read_head(content)


def read_head_note(path: Path) -> bytes:
    """Return the bytes of the note in which a head was signed. Raises as `load_head`."""
    return load_head(path).note


def head_under(note: Path | None, ledger: Path) -> SignedHead:
    """Return the head to prove under: that of a note, or the last in a ledger. Raises as the two do."""
    from gradwarden.runtime.evidence.prover import last_head

    return last_head(ledger) if note is None else load_head(note)


@contextmanager
def told_of(path: Path, *, help: str) -> Iterator[None]:
    """Inside, let errors about the content of a file name the file, and say what it should be."""
    from gradwarden.runtime.errors import RuntimeGovernanceError

    try:
        yield
    except RuntimeGovernanceError as error:
        error.message = f"`{path}`: {error.message}"
        error.help = error.help or help
        raise


def check_begun(ledger: Path) -> None:
    """Raise InputError where a file does not begin as a ledger does, LedgerError as `open_ledger`."""
    from gradwarden.runtime.ledger.reader import has_entries

    if not has_entries(ledger):
        raise InputError(f"`{ledger}` holds no entry of a ledger", help=LEDGER_HELP)


def decode(data: bytes, path: Path) -> str:
    """Return bytes as text. Raises InputError where they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"`{path}` is not UTF-8 text: byte {error.start} cannot be read",
            help="is this the right file? it looks like binary data" if b"\0" in data else None,
        ) from None


def find_files(paths: Iterable[Path], suffix: str) -> list[Path]:
    """Return the files named, and those with a suffix in the directories named, each once.

    Hidden directories and links to directories are not entered. Raises InputError where a directory has none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(_walk(path, suffix))
            if not inside:
                raise InputError(f"there is no `*{suffix}` file under `{path}`")
            found.update(dict.fromkeys(inside))
        else:
            found[path] = None
    return list(found)


def _walk(directory: Path, suffix: str) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(directory, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            if name.endswith(suffix) and not name.startswith("."):
                yield Path(folder, name)


@cache
def parse_once() -> Parse:
    """Return the parser of this command: what several policies import is parsed once."""
    from gradwarden.policy.load import remembering

    return remembering()


def load_program(path: Path, model_map: Path | None = None) -> Program:
    """Return the program of a policy, or one compiled earlier (`*.json`).

    Raises PolicyError with every diagnostic, OSError, InputError.
    """
    if path.suffix == ".json":
        if model_map is not None:
            raise InputError(f"`{path}` is compiled: its bands were bound when it was built")
        from gradwarden.policy.program_json import program_from_json

        return program_from_json(path.read_bytes(), str(path))
    from gradwarden.policy import compile_policy, load_policy

    return compile_policy(load_policy(path, parse_once()), load_model_map(model_map) if model_map else None)


def load_model_map(path: Path) -> ModelMap:
    """Return a saved model map. Raises PolicyError, OSError, InputError."""
    from gradwarden.policy.model_map import MAX_BYTES, ModelMap

    return ModelMap.from_yaml(read_text(path, MAX_BYTES), str(path))


def read_example(path: Path) -> dict[str, Any]:
    """Return the metadata of one example from a JSON or YAML mapping; its `id`, if any, is left out."""
    from gradwarden.policy.source import Source
    from gradwarden.policy.testing.yaml_text import read_yaml

    text = read_text(path, MAX_EXAMPLE_BYTES)
    name = "standard input" if path == STDIN else str(path)
    example = parse_json_object(text, name) if _is_json(path, text) else read_yaml(Source(name, text)).plain()
    if not isinstance(example, dict):
        raise InputError(
            f"`{name}` must hold one example: a mapping from attribute to value",
            help="for a file of many examples use `gradwarden plan`" if isinstance(example, list) else None,
        )
    example.pop("id", None)
    return example


def _is_json(path: Path, text: str) -> bool:
    if path.suffix == ".json":
        return True
    if not text.lstrip().startswith("{"):
        return False
    import json

    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json_object(text: str, name: str) -> Any:
    """Return parsed JSON in which no key is repeated. Raises InputError."""
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"`{name}` repeats the key `{repeated}`")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"`{name}:{error.lineno}:{error.colno}` is not valid JSON: {error.msg.lower()}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{name}` is not valid JSON: {error}") from None
