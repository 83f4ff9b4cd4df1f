"""Reads the examples out of the pages in `docs/`, and completes those that are parts of policies.

A fenced block is marked with its kind and, after it, with words. Of a `policy` block: `prelude`, what the
partial examples leave out; `file=PATH`, a file for later blocks to import; codes, the findings of an example
that is wrong. Of a `yaml` block: `prelude`, the example and context that rows start from; `rows`, decisions
of the policy above, as rows of a table in a test file; `bands`, which parameters of a model each of its bands
has; nothing, a whole test file of the policy above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w[\w-]*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"^(?:advisory |hard )?([a-z]+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. line: where its text begins, counted from 1."""

    kind: str
    words: tuple[str, ...]
    text: str
    line: int


@dataclass
class Example:
    """A policy on a page. codes: its findings, where it is wrong. tests: the texts of test files for it.
    bands: YAML, a list of parameters for each band.
    """

    page: str
    line: int
    text: str
    codes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    bands: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    for match in _FENCE.finditer(page):
        yield Block(match[1], tuple(match[2].split()), match[3], page.count("\n", 0, match.start(3)) + 1)


def heads(text: str) -> set[str]:
    """Return the words that the declarations of a policy begin with, each at the start of its line."""
    return set(_HEAD.findall(text))


def completed(part: str, prelude: str) -> str:
    """Join the paragraphs of the prelude whose kind a part lacks with the part."""
    present = heads(part)
    kept = [text for text in prelude.split("\n\n") if not heads(text) & present]
    return "\n\n".join([*kept, part])


def examples(name: str, preludes: str = "language.md") -> list[Example]:
    """Return the policies on a page, each with the decisions that stand below it."""
    page = (DOCS / name).read_text("utf-8")
    given = {
        block.kind: block.text
        for block in blocks((DOCS / preludes).read_text("utf-8"))
        if block.words == ("prelude",)
    }
    found: list[Example] = []
    files: dict[str, str] = {}
    for block in blocks(page):
        if block.kind == "policy":
            place, codes = _marks(block.words)
            if place:
                files[place] = block.text
                continue
            whole = "policy" in heads(block.text)
            text = block.text if whole else completed(block.text, given["policy"])
            found.append(Example(name, block.line, text, codes, dict(files)))
        elif block.kind == "yaml" and block.words == ("rows",):
            found[-1].tests.append(table(block.text, given["yaml"]))
        elif block.kind == "yaml" and block.words == ("bands",):
            found[-1].bands = block.text
        elif block.kind == "yaml" and block.text.startswith("cases:") and not block.words:
            found[-1].tests.append(block.text)
    return found


def _marks(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    place = next((word.removeprefix("file=") for word in words if word.startswith("file=")), None)
    codes = tuple(word for word in words if re.fullmatch(r"GW\d{3}", word))
    known = len(codes) + (place is not None) + (words == ("prelude",))
    assert known == len(words), f"unknown marks of a policy: {words}"
    return place, codes


def table(rows: str, base: str) -> str:
    """Return a test file: a table of rows that start from the example and the context of `base`."""
    start = re.sub(r"^example:", "base:", base, flags=re.MULTILINE)
    lines = [*start.splitlines(), "rows:", *(f"  {line}" for line in rows.splitlines())]
    return "cases:\n  - name: the row\n    table:\n" + "".join(f"      {line}\n" for line in lines)
