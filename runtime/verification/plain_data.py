"""Turns the state of a replay into plain data that JSON holds, and back.

Values are told apart by a tag; numbers, texts, lists and mappings with text for keys stand for themselves.
Objects are those of a few classes that the caller names, and are made again from their attributes, without
their `__init__`: no file can have any other code run, as one of `pickle` could. A class that is not named is
an error where the state is written, so that nothing of it is left out unnoticed.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from itertools import count
from math import isfinite
from typing import Any, TypeAlias

import numpy as np

from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.ledger.keys import PublicKey

Made: TypeAlias = Mapping[str, Callable[[], Any]]
"""Attributes that are not kept, and what makes them anew."""

TAG = "="
"""The one key of a mapping that stands for a value of another kind; no name in a ledger is this."""

_EXACT = 1 << 53
_NUMBERS = re.compile("[<|][biuf][1248]")
_SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class PlainData:
    """Writes and reads objects of some classes, by name; of each, what is not kept."""

    def __init__(self, classes: Mapping[type, Made]) -> None:
        self._made = dict(classes)
        self._named = {cls.__name__: cls for cls in classes}

    def attributes(self, value: Any) -> dict[str, Any]:
        """Return what is kept of an object, by attribute, not written yet."""
        kind = type(value)
        names = [field.name for field in fields(value)] if is_dataclass(value) else list(vars(value))
        return {name: getattr(value, name) for name in names if name not in self._made[kind]}

    def write(self, value: Any) -> Any:
        """Return a value as plain data. Raises TypeError for one of a kind that is not known."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is float:
            return value if isfinite(value) else _tagged("float", repr(value))
        if kind is int:
            return value if -_EXACT < value < _EXACT else _tagged("int", hex(value))
        if kind is list:
            return list(map(self.write, value))
        if kind is dict and all(type(key) is str for key in value) and TAG not in value:
            return {key: self.write(item) for key, item in value.items()}
        if kind in self._made:
            state = {name: self.write(item) for name, item in self.attributes(value).items()}
            return _tagged(kind.__name__, state)
        return self._special(kind, value)

    def _special(self, kind: type, value: Any) -> Any:
        if kind in _SEQUENCES.values():
            # Of a set the order says nothing, and must not depend on the process.
            items = sorted(value, key=repr) if kind in (set, frozenset) else value
            return _tagged(kind.__name__, list(map(self.write, items)))
        if kind in (dict, Counter):
            pairs = [[self.write(key), self.write(item)] for key, item in value.items()]
            return _tagged(kind.__name__, pairs)
        if kind is defaultdict:
            return _tagged("numbering", self._numbering(value))
        if kind is deque:
            return _tagged("deque", [value.maxlen, list(map(self.write, value))])
        if kind is bytes:
            return _tagged("bytes", b64encode(value).decode())
        if kind is np.ndarray:
            return _tagged("array", [value.dtype.str, b64encode(value.tobytes()).decode()])
        if kind is Program:
            return _tagged("Program", value.to_json())
        if kind is PublicKey:
            return _tagged("PublicKey", value.vkey)
        raise TypeError(f"the state of a verification holds a `{kind.__name__}`, which is not kept")

    def _numbering(self, value: Mapping[Any, int]) -> Any:
        """Return keys that were numbered as they came; those of one size, as commitments are, together."""
        keys, numbers = list(value), list(value.values())
        sizes = {len(key) if type(key) is bytes else -1 for key in keys}
        if len(sizes) == 1 and min(sizes) > 0 and numbers == list(range(len(keys))):
            return {"size": min(sizes), "keys": b64encode(b"".join(keys)).decode()}
        return [[self.write(key), number] for key, number in value.items()]

    def read(self, data: Any) -> Any:
        """Return what was written. Raises ValueError, KeyError or TypeError for anything else."""
        if isinstance(data, list):
            return list(map(self.read, data))
        if not isinstance(data, dict):
            return data
        if data.keys() != {TAG, "of"}:
            return {key: self.read(item) for key, item in data.items()}
        tag, of = data[TAG], data["of"]
        if tag in self._named:
            return self.made(self._named[tag], {name: self.read(item) for name, item in of.items()})
        return self._read_special(tag, of)

    def made(self, cls: type, state: Mapping[str, Any]) -> Any:
        """Return an object with these attributes, and those made anew that are not kept."""
        made: Any = object.__new__(cls)
        for name, item in (*state.items(), *((name, make()) for name, make in self._made[cls].items())):
            object.__setattr__(made, name, item)
        return made

    def _read_special(self, tag: str, of: Any) -> Any:
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](map(self.read, of))
        match tag:
            case "int":
                return int(of, 16)
            case "float":
                return float(of)
            case "dict":
                return {self.read(key): self.read(item) for key, item in of}
            case "Counter":
                return Counter({self.read(key): self.read(item) for key, item in of})
            case "deque":
                return deque(map(self.read, of[1]), of[0])
            case "numbering":
                return _numbered(of if isinstance(of, dict) else [(self.read(key), n) for key, n in of])
            case "bytes":
                return b64decode(of)
            case "array":
                return _array(*of)
            case "Program":
                return program_from_json(of)
            case "PublicKey":
                return PublicKey.from_vkey(of)
        raise ValueError(f"`{tag}` is no kind of value that is kept")


def _tagged(tag: str, of: Any) -> dict[str, Any]:
    return {TAG: tag, "of": of}


def _array(kind: str, packed: str) -> Any:
    # numpy evaluates what names a type otherwise.
    if _NUMBERS.fullmatch(kind) is None:
        raise ValueError(f"`{kind}` is no type of numbers that is kept")
    return np.frombuffer(b64decode(packed), np.dtype(kind)).copy()


def _numbered(given: Any) -> defaultdict[Any, int]:
    """Return keys with their numbers; the next key gets the next number."""
    if isinstance(given, dict):
        packed, size = b64decode(given["keys"]), given["size"]
        given = ((packed[at : at + size], at // size) for at in range(0, len(packed), size))
    known = dict(given)
    return defaultdict(count(max(known.values(), default=-1) + 1).__next__, known)
