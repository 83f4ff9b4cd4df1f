"""What the author of a broken text probably meant: the help of syntax faults.

A remedy is looked for in three steps: the character that stands where it cannot, what stands around it, and
the keyword that it resembles. Where none of them says anything, neither does the help.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.source import Span

_CHARACTERS = {
    "'": 'strings are written in double quotes: `"…"`',
    "“": 'strings are written in straight double quotes: `"…"`',
    "”": 'strings are written in straight double quotes: `"…"`',
    "„": 'strings are written in straight double quotes: `"…"`',
    "‘": 'strings are written in straight double quotes: `"…"`',
    "’": 'strings are written in straight double quotes: `"…"`',
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`, or `!=` to compare",
    "≠": "write `!=`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "×": "write `*`",
    "–": "write `..` between the ends of a range, `-` to subtract",
    "—": "write `..` between the ends of a range, `-` to subtract",
    "…": "write `..` between the ends of a range",
    ";": "clauses are separated by spaces or new lines",
}

_GRANTS = "what may be learned is granted by `depth NAME { when … reach … }`"
_STOPS = "what may not be learned is stopped by `suppress NAME { when … }`"
_WORDS = {
    **dict.fromkeys(("allow", "permit", "grant", "admit"), _GRANTS),
    **dict.fromkeys(("deny", "forbid", "block", "refuse", "reject", "exclude", "prohibit"), _STOPS),
}
"""Words by which other languages begin a rule."""

_DECLARATIONS = "a rule begins with its kind: `depth` grants, `suppress`, `retain` and `privacy` limit"

_HEADER = re.compile(r"(?:^|\s)policy\s+(\w+)\s+$")
"""The beginning of a header, up to what should be its version."""

_HEAD = re.compile(r"(?:^|[\s}])(\w+)\s+$")
"""The word before the place where a name is missing."""

_WAIVED_PACE = re.compile(r"\bwaive\s+pace$")
"""What stands before the colon of `pace:BAND`, as decisions name a pace."""

_VALUE = re.compile(r"(?:[=!]=|[\[,])\s*(\w+)\s+$")
"""A bare value of a comparison or a list, and nothing after it."""

_GROUPED = re.compile(r"\d$")
"""The digits before a separator."""

_NAMED = re.compile(r"(?:^|\s)[a-z]+\s+\w+$")
"""The kind of a declaration and the beginning of its name."""

_TEXT = re.compile(r"[\w./-]+")
"""What was meant as one text: a word, or a path."""

_RANGE = re.compile(r"\s+(\S+)\s+and\s+(\S+)")
"""The ends of a range, as after `between`."""

_LIKENESS = 0.7
"""Keywords are short: below this, a word resembles one by chance."""


def remedy(span: Span, keywords: Collection[str], expected: Collection[str]) -> str | None:
    """Return what to write instead of the text of a span, or None where that cannot be told.

    `keywords` are the words and signs that may stand there, `expected` the names of the grammar's terminals.
    """
    found = span.text
    if found in keywords:
        return None
    return (
        _by_character(span, keywords, expected)
        or _by_context(span, keywords, expected)
        or did_you_mean(found, sorted(word for word in keywords if word.isalpha()), _LIKENESS)
        or (_DECLARATIONS if "depth" in keywords else None)
    )


def _by_character(span: Span, keywords: Collection[str], expected: Collection[str]) -> str | None:
    found = span.text[:1]
    match found:
        case "=" if "==" in keywords:
            return "did you mean `==`?"
        case "=" if "NUMBER" in expected:
            return "leave out the `=`"
        case "-" if "NUMBER" in expected:
            return "numbers here are not negative"
        case "/" if "*" in keywords and not _begins_comment(span):
            return "there is no division; multiply the other side"
        case "/":
            return "comments begin with `#`"
        case "%" if "RBRACE" in expected:
            return "write a decimal, such as `0.5`"
        case ")" if "NAME" not in expected:
            return "this `)` closes nothing"
        case "}" if "depth" in keywords:
            return "this `}` closes nothing"
        case "," if _GROUPED.search(_before(span)):
            return "numbers have no thousands separators"
        case ":" if _WAIVED_PACE.search(_before(span)):
            return "nothing waives a pace: change it in `gradient { BAND at most 1 in N steps }`"
        case "(" if "[" in keywords:
            return "a list stands in square brackets: `[a, b]`"
        case "{" if "NAME" in expected and (head := _HEAD.search(_before(span))):
            return f"name it: `{head[1]} NAME {{ … }}`"
        case "{":
            return "a block belongs to a declaration such as `depth NAME { … }`"
    return _CHARACTERS.get(found) or _look_alike(found)


def _begins_comment(span: Span) -> bool:
    return span.source.text[span.start + 1 : span.start + 2] in ("/", "*")


def _look_alike(character: str) -> str | None:
    """Name a character that can be taken for another one."""
    if character.isascii():
        return None
    name = unicodedata.name(character, "")
    told = f"this is U+{ord(character):04X} {name}".rstrip()
    if character.isspace():
        return f"{told}; write a plain space"
    return f"{told}; names are made of plain letters, digits and `_`" if character.isalnum() else told


def _by_context(span: Span, keywords: Collection[str], expected: Collection[str]) -> str | None:
    found, before = span.text, _before(span)
    if set(expected) == {"STRING"} and found.isidentifier():
        text = _TEXT.match(span.source.text, span.start)
        return f'a text stands in double quotes: `"{text[0] if text else found}"`'
    if "depth" in keywords and found.lower() in _WORDS:
        return _WORDS[found.lower()]
    if found.isidentifier() and "version" in keywords and (name := _HEADER.search(before)):
        return f"a policy's name is one word: `{name[1]}_{found}`"
    if found == "-" and set(expected) == {"LBRACE"} and _NAMED.search(before):
        return "names are lower-case letters, digits and `_`"
    if found == "to" and "at" in keywords:
        return "a weight follows `at`: `deep at 0.5`"
    if found == "is" and "==" in keywords:
        return "write `==`"
    if found == "between" and (ends := _RANGE.match(span.source.text, span.end)):
        return f"write `in {ends[1]}..{ends[2]}`, both ends included"
    if found == "if" and "when" in keywords:
        return "a condition follows `when`"
    if (value := _VALUE.search(before)) and found.isidentifier():
        near = did_you_mean(found, sorted(word for word in keywords if word.isalpha()), _LIKENESS)
        return near or f'values of several words are quoted: `"{value[1]} {found}"`'
    return None


def _before(span: Span) -> str:
    """Return the line up to the span."""
    start = span.source.text.rfind("\n", 0, span.start) + 1
    return span.source.text[start : span.start]
