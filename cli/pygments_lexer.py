"""Colours policy texts in documentation: a lexer for Pygments, registered as `gradwarden-policy`.

A keyword is one only where the grammar expects it. The lexer goes by what stands around a word: a name before
`:` is that of an attribute or a signal, the word after the kind of a rule is its name.
"""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import (  # type: ignore[import-untyped]  # no types are shipped
    RegexLexer,
    bygroups,
    words,
)
from pygments.token import (  # type: ignore[import-untyped]  # no types are shipped
    Comment,
    Keyword,
    Literal,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Text,
    Whitespace,
    _TokenType,
)

DECLARATIONS = ("examples", "signals", "model", "phases", "gradient", "import")
"""Words that begin a declaration without a name."""

KINDS = (
    *("policy", "let", "band", "depth", "suppress", "retain", "privacy", "memorization", "curriculum"),
    *("modulate", "waive", "maintain", "assert", "starvation"),
)
"""Words before the name of what they declare."""

LEVELS = ("advisory", "hard")

CLAUSES = (
    *("accept", "after", "all", "always", "approved", "at", "because", "before", "below", "blocks"),
    *("by", "cap"),
    *("clip", "default", "delta", "detach", "drift", "during", "epoch", "epochs", "epsilon", "exposure"),
    *("exposures", "from", "halt", "hold", "language", "least", "mask", "max", "most", "names", "never"),
    *("next", "noise", "optional", "out", "places", "private", "reach", "record", "refuse", "rehearse"),
    *("report", "rest", "route", "scale", "semantics", "spent", "step", "steps", "strength", "to", "tokens"),
    *("top", "unit", "until", "version", "weight", "when", "within"),
)

TYPES = ("bool", "date", "integer", "number", "of", "one", "set", "string")

OPERATORS = ("and", "any", "contains", "ends", "has", "implies", "in", "like", "not", "or", "starts", "with")

CONSTANTS = ("false", "true")

BUILTINS = ("phase", "today")
"""Words that a condition may read without declaring them, and that are no keywords of the grammar."""

_END = r"\b(?![ \t]*:)"
"""The end of a word that is not the name of an attribute."""


class PolicyLexer(RegexLexer):  # type: ignore[misc]  # its base has no types
    """Lexer for gradwarden policies."""

    name = "gradwarden policy"
    aliases: ClassVar[list[str]] = ["gradwarden-policy", "policy"]
    filenames: ClassVar[list[str]] = ["*.policy"]
    mimetypes: ClassVar[list[str]] = ["text/x-gradwarden-policy"]
    url = ""
    version_added = ""

    tokens: ClassVar[dict[str, list[tuple[object, ...]]]] = {
        "root": [
            (r"[ \t\r\n]+", Whitespace),
            (r"#[^\n]*", Comment.Single),
            (r'"(?:[^"\\\n]|\\[^\n])*"', String.Double),
            (r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])", Literal.Date),
            (r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", Number),
            (r"([A-Za-z_]\w*)([ \t]*)(:)", bygroups(Name.Attribute, Whitespace, Punctuation)),
            (
                rf"({'|'.join(KINDS)})([ \t]+)([A-Za-z_]\w*)",
                bygroups(Keyword.Declaration, Whitespace, Name.Function),
            ),
            (words((*DECLARATIONS, *KINDS, *LEVELS), prefix=r"\b", suffix=_END), Keyword.Declaration),
            (words(OPERATORS, prefix=r"\b", suffix=_END), Operator.Word),
            (words(CONSTANTS, prefix=r"\b", suffix=_END), Keyword.Constant),
            (words(TYPES, prefix=r"\b", suffix=_END), Keyword.Type),
            (words(CLAUSES, prefix=r"\b", suffix=_END), Keyword),
            (words(BUILTINS, prefix=r"\b", suffix=_END), Name.Builtin),
            (r"[A-Za-z_]\w*", Name),
            (r"==|!=|<=|>=|\.\.|[<>=+\-*/%]", Operator),
            (r"[{}()\[\],:]", Punctuation),
            (r".", Text),
        ]
    }


def kinds_of_words() -> dict[str, _TokenType]:
    """Return how each word of the language is coloured where it stands by itself."""
    groups = {
        Keyword.Declaration: (*DECLARATIONS, *KINDS, *LEVELS),
        Keyword: CLAUSES,
        Keyword.Type: TYPES,
        Operator.Word: OPERATORS,
        Keyword.Constant: CONSTANTS,
        Name.Builtin: BUILTINS,
    }
    return {word: kind for kind, group in groups.items() for word in group}
