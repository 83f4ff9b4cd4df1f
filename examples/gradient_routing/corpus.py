"""Two domains of text that every Python interpreter brings along: English prose, and Python source code.

Prose: paragraphs of the language reference (`pydoc_data.topics`) and of the docstrings of the standard
library; those with examples or much punctuation are left out. Code: the modules of the standard library
without their docstrings and comments. Only ASCII is kept, and of a long document only the beginning. Some
documents (topics, modules) are held out as a whole. The rest is cut into windows of one length. The same
interpreter and seed give the same windows.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")

Bytes: TypeAlias = npt.NDArray[np.uint8]

ALPHABET = 128

LONGEST = 20_000
"""Characters that are taken of one document."""

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "encodings"}
_SHORTEST, _PLAIN = 120, 0.93
"""Of a paragraph: characters, and the share of letters and spaces."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Windows of W bytes: training [N, W], testing [M, W]."""

    training: Bytes
    testing: Bytes


@dataclass(frozen=True, slots=True)
class Corpus:
    prose: Domain
    code: Domain


def collect(window: int, training: int, testing: int, seed: int = 0) -> Corpus:
    """Return so many windows of each domain. Raises ValueError where the interpreter has too little text."""
    order = random.Random(seed)
    enough = window * (training + testing) + LONGEST
    prose = [document(paragraphs(topics.topics[name])) for name in sorted(topics.topics)]
    code = list[str]()
    for path in _shuffled(modules(), order):
        if min(sum(map(len, prose)), sum(map(len, code))) > 1.05 * enough:
            break
        text, documentation = separate(ast.parse(path.read_bytes()))
        code.append(document([text]))
        prose.append(document(part for text in documentation for part in paragraphs(text)))
    return Corpus(*(_cut(_shuffled(texts, order), window, training, testing) for texts in (prose, code)))


def modules() -> list[Path]:
    """Return the modules of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(p for p in root.rglob("*.py") if not _LEFT_OUT & set(p.relative_to(root).parts))


def separate(module: ast.Module) -> tuple[str, list[str]]:
    """Return a module's code without documentation, and the documentation. The tree is changed."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documentation = ast.get_docstring(node)
            if documentation is not None:
                found.append(documentation)
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(module), found


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text that read as prose, each as one line."""
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        plain = sum(character.isalpha() or character == " " for character in line)
        if len(line) >= _SHORTEST and ">>>" not in line and plain >= _PLAIN * len(line):
            yield line


def document(parts: Iterable[str]) -> str:
    """Return the beginning of a document, in ASCII."""
    return "\n".join(parts).encode("ascii", "ignore").decode("ascii")[:LONGEST]


def _shuffled(items: Iterable[Item], order: random.Random) -> list[Item]:
    listed = list(items)
    order.shuffle(listed)
    return listed


def _cut(texts: list[str], window: int, training: int, testing: int) -> Domain:
    """Hold out as many documents as fill the testing windows, and train on the others."""
    lengths = np.cumsum([len(text) for text in texts])
    held_out = 1 + int(np.searchsorted(lengths, window * testing))
    return Domain(_windows(texts[held_out:], window, training), _windows(texts[:held_out], window, testing))


def _windows(texts: list[str], window: int, count: int) -> Bytes:
    data = np.frombuffer("\n".join(texts).encode("ascii"), np.uint8)
    if len(data) < count * window:
        raise ValueError(f"the standard library has text for {len(data) // window} windows, not {count}")
    return data[: count * window].reshape(count, window)
