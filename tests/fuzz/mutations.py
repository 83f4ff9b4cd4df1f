"""Small damage to texts and to JSON data: what typing errors, bad merges and attackers do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.sentences import DATES, NAMES, NUMBERS, STRINGS, grammar

TOKEN = re.compile(r'"[^"\n]*"|\w+|\s+|#[^\n]*|.', re.DOTALL)

ODD = (
    *(
        "\x00",
        "\ufeff",
        "\r\n",
        "\r",
        "\x0b",
        "\x0c",
        "\x85",
        "\u2028",
        "\u202e",
        "\u200b",
        "\ud800",
        "\udfff",
    ),
    *(
        "é",
        "e\u0301",
        "\N{PILE OF POO}",
        "\U0010ffff",
        "ß",
        "İ",
        "ſ",
        "\xa0",
        "\u3000",
        "１",
        "²",
        "٣",
        "\x1b[31m",
    ),
    *('"', "\\", "'", "`", "#", "{", "}", "[", "]", "(", ")", ":", "=", "==", "..", ".", ",", "-", "%", "/"),
)


def _tokens(text: str) -> list[str]:
    return TOKEN.findall(text)


def _at(random: Random, items: Sequence[Any]) -> int:
    return random.randrange(len(items)) if items else 0


def drop_token(random: Random, text: str) -> str:
    words = _tokens(text)
    if words:
        at = _at(random, words)
        del words[at : at + random.randint(1, 3)]
    return "".join(words)


def repeat_token(random: Random, text: str) -> str:
    words = _tokens(text)
    at = _at(random, words)
    return "".join([*words[:at], *words[at : at + random.randint(1, 6)] * random.randint(2, 4), *words[at:]])


def swap_tokens(random: Random, text: str) -> str:
    words = _tokens(text)
    if len(words) > 1:
        a, b = _at(random, words), _at(random, words)
        words[a], words[b] = words[b], words[a]
    return "".join(words)


def replace_token(random: Random, text: str) -> str:
    words = _tokens(text)
    if words:
        words[_at(random, words)] = f" {_word(random)} "
    return "".join(words)


def insert_token(random: Random, text: str) -> str:
    words = _tokens(text)
    words.insert(_at(random, words), f" {_word(random)} ")
    return "".join(words)


def _word(random: Random) -> str:
    pool = random.choice((NAMES, NUMBERS, STRINGS, DATES, tuple(grammar().words.values())))
    return str(random.choice(pool))


def insert_odd(random: Random, text: str) -> str:
    at = random.randint(0, len(text))
    return text[:at] + random.choice(ODD) + text[at:]


def cut(random: Random, text: str) -> str:
    at = random.randint(0, len(text))
    return text[:at] if random.randrange(2) else text[at:]


def nest(random: Random, text: str) -> str:
    """Put something deep where a token stood; mostly near the limits, sometimes far beyond."""
    words = _tokens(text)
    depth = random.choice((8, 31, 32, 63, 64, 65, 66, 100, 300, 2000))
    form = random.randrange(7)
    at = _at(random, words)
    inner = words[at] if words else "a"
    deep = (
        "(" * depth + inner + ")" * depth,
        "not " * depth + inner,
        "-" * depth + inner,
        "(not " * depth + inner + ")" * depth,
        " + ".join([inner] * depth),
        " implies ".join([inner] * depth),
        "[" * depth + inner + "]" * depth,
    )[form]
    return "".join([*words[:at], " ", deep, " ", *words[at + 1 :]])


def grow(random: Random, text: str) -> str:
    """Put a very long lexeme where a token stood."""
    words = _tokens(text)
    size = random.choice((41, 64, 65, 300, 5_000))
    long = random.choice(("a", "9", "_", "9.9e", "a b ", "a, ", "\n", " ", "{ ", "} ", "é", "*", "# "))
    word = long * size
    at = _at(random, words)
    return "".join([*words[:at], f'"{word}"' if random.randrange(3) == 0 else word, *words[at + 1 :]])


def repeat_lines(random: Random, text: str) -> str:
    lines = text.split("\n")
    at = _at(random, lines)
    return "\n".join([*lines[:at], *lines[at : at + 2] * random.choice((2, 3, 20)), *lines[at:]])


def carriage_returns(random: Random, text: str) -> str:
    return text.replace("\n", random.choice(("\r\n", "\r", "\n\r", " ")))


MUTATIONS: tuple[Callable[[Random, str], str], ...] = (
    *(drop_token, repeat_token, swap_tokens, replace_token, insert_token) * 3,
    *(insert_odd, insert_odd, cut, nest, grow, repeat_lines, carriage_returns),
)


def mutated(random: Random, text: str, most: int = 4) -> str:
    """Return a text after up to `most` mutations."""
    for _ in range(random.randint(1, most)):
        text = random.choice(MUTATIONS)(random, text)
    return text


# --- JSON data ----------------------------------------------------------------------------------------------

SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 63, 64, 2**31, 2**53 - 1, 2**53, -(2**53), 2**63, 10**400, 0.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "deep", "mit", "2026-01-31", "today", "\x00", "\ud800", "x" * 300),
    *([], {}, [[]], [0], ["a"], {"a": 1}, {"and": []}, {"not": {"constant": True}}, {"number": 1}),
)


def mutated_data(random: Random, data: Any) -> Any:
    """Return a copy of JSON data in which one place is changed, dropped, repeated or taken from elsewhere."""
    places = list(_places(data, []))
    path = random.choice(places)
    form = random.randrange(6)
    if form == 0:
        return _replaced(data, path, _at_path(data, random.choice(places)))
    if form == 1:
        return _replaced(data, path, _nested(random, _at_path(data, path)))
    if form == 2:
        return _replaced(data, path, _DROP)
    value = _at_path(data, path)
    if form == 3 and isinstance(value, int) and not isinstance(value, bool):
        return _replaced(data, path, value + random.choice((-1, 1, 10**6, -(10**6), 2**53)))
    if form == 4 and isinstance(value, list) and value:
        return _replaced(data, path, [*value, random.choice(value)])
    return _replaced(data, path, random.choice(SCALARS))


_DROP = object()


def _places(data: Any, path: list[Any]) -> Any:
    yield tuple(path)
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from _places(value, [*path, key])


def _at_path(data: Any, path: Sequence[Any]) -> Any:
    for key in path:
        data = data[key]
    return data


def _nested(random: Random, value: Any) -> Any:
    for _ in range(random.choice((1, 3, 64, 70, 400))):
        value = random.choice(([value], {"not": value}, {"and": [value]}))
    return value


def _replaced(data: Any, path: Sequence[Any], new: Any) -> Any:
    """Return a copy of data with another value at a path; the copy shares what did not change."""
    if not path:
        return {} if new is _DROP else new
    key, *rest = path
    if isinstance(data, dict):
        changed = {k: v for k, v in data.items() if k != key or rest or new is not _DROP}
        if key in changed:
            changed[key] = _replaced(data[key], rest, new)
        return changed
    items = list(data)
    if not rest and new is _DROP:
        del items[key]
    else:
        items[key] = _replaced(data[key], rest, new)
    return items
