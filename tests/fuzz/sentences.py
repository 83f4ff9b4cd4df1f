"""Random policy texts derived from the grammar itself, so that no production is left out.

Every choice is taken from a `random.Random`. The same generator therefore serves a seeded campaign,
hypothesis (`st.randoms`, which shrinks) and a coverage-guided fuzzer that turns its bytes into choices.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from random import Random

from lark import Lark
from lark.lexer import PatternStr

HEADER = (
    'policy drawn version 1 language 1\nmodel { shallow = top 25% deep = rest quarantine = names "a*" }\n'
)

SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("a", "b", "c")),
    ("model { deep = rest }\n", ("deep", "step", "a")),
    (HEADER, ("shallow", "deep", "quarantine", "step", "epoch", "today", "exposures", "all")),
    (
        HEADER + "examples { n : number 0..10 places 2 m : number -5..5 optional }\n",
        ("n", "m", "deep", "step"),
    ),
    (HEADER + "examples { d : date e : date optional }\n", ("d", "e", "today", "deep", "days", "weeks")),
    (HEADER + 'examples { k : one of x, y, "Z" f : bool }\n', ("k", "f", "x", "y", "deep")),
    (HEADER + "examples { t : set of x, y s : string optional }\n", ("t", "s", "x", "y", "deep")),
    (
        HEADER + "examples { h : number 0..8 bits/byte }\nband low = h < 3\n",
        ("h", "low", "bits", "byte", "deep"),
    ),
    (HEADER + "signals { g : number 0..1 default 0 }\n", ("g", "deep", "shallow")),
    (HEADER + "phases { warm until step 5 last }\n", ("phase", "warm", "last", "deep", "shallow")),
    (HEADER + 'suppress kept { because "x" }\ndepth base { reach all }\n', ("kept", "base", "deep")),
    (
        HEADER + "examples { f : bool }\nlet q = f\nlet r = q or r2\nlet r2 = not q\n",
        ("f", "q", "r", "r2", "deep"),
    ),
)
"""Declarations to stand before a text, each with the names that it gives a meaning."""

NAMES = (
    *("source", "license", "consent", "tags", "lines", "score", "entropy", "patient", "erase_on", "loss"),
    *("strain", "shallow", "middle", "deep", "quarantine", "warmup", "main", "last", "thin", "low", "base"),
    *(
        "kept",
        "mit",
        "apache",
        "pii",
        "minor",
        "phase",
        "today",
        "step",
        "epoch",
        "exposures",
        "days",
        "bits",
    ),
    *("a", "b", "Upper", "_", "until", "in", "has", "all", "reach", "x" * 65),
)
NUMBERS = (
    *("0", "1", "2", "3", "0.5", "0.25", "10", "25", "100", "1e-6", "0.000001", "1.0000001", "4", "5"),
    *("2147483647", "2147483648", "9007199254740991", "9007199254740992", "1e30", "1e31", "1e9999"),
    *("9" * 40, "9" * 41, "007", "1e+2", "64", "65"),
)
STRINGS = (
    *('"a"', '""', '"adapter.*"', '"mit"', '"GPL-3.0"', '"*?*"', '"é\\n\\t"', '"\\"\\\\"', '"why"'),
    *('"2026-01-31"', '"' + "a*" * 40 + '"', '"\N{PILE OF POO}"', '"shared.policy"', '"\\q"'),
)
DATES = ("2026-01-31", "0001-01-01", "9999-12-31", "2026-02-30", "0000-00-00", "2024-02-29")
POOLS = {
    "NUMBER": NUMBERS,
    "STRING": STRINGS,
    "DATE": DATES,
    "AT_MOST": ("at most",),
    "AT_LEAST": ("at least",),
    "RECORD": ("record",),
}
SPACES = (" ",) * 12 + ("\n", "  ", "\t", " # note\n", "\r\n", "\n\n\n")


class Grammar:
    """The productions of `policy.lark`, each with the height of its least derivation."""

    def __init__(self) -> None:
        text = (files("gradwarden.grammars") / "policy.lark").read_text("utf-8")
        lark = Lark(text, parser="lalr", lexer="contextual", keep_all_tokens=True, maybe_placeholders=False)
        self.words = {t.name: t.pattern.value for t in lark.terminals if isinstance(t.pattern, PatternStr)}
        self.productions: dict[str, list[tuple[tuple[str, bool], ...]]] = {}
        for rule in lark.rules:
            body = tuple((symbol.name, symbol.is_term) for symbol in rule.expansion)
            self.productions.setdefault(str(rule.origin.name), []).append(body)
        least = self._heights()
        self.shortest = {
            name: [body for body in bodies if self._height(body, least) == least[name]]
            for name, bodies in self.productions.items()
        }

    def _heights(self) -> dict[str, int]:
        heights: dict[str, int] = {}
        changed = True
        while changed:
            changed = False
            for name, bodies in self.productions.items():
                best = min(
                    (h for body in bodies if (h := self._height(body, heights)) is not None), default=None
                )
                if best is not None and heights.get(name) != best:
                    heights[name], changed = best, True
        return heights

    @staticmethod
    def _height(body: tuple[tuple[str, bool], ...], heights: dict[str, int]) -> int | None:
        known = [0 if is_term else heights.get(name) for name, is_term in body]
        return None if None in known else 1 + max((h for h in known if h is not None), default=0)

    def sentence(
        self, random: Random, symbol: str = "start", budget: int = 30, names: tuple[str, ...] = NAMES
    ) -> str:
        """Return a text that derives from `symbol`; past `budget` tokens every derivation is the least.

        Names are mostly taken from `names`.
        """
        words: list[str] = []
        pending = [(symbol, False, 0)]
        while pending:
            name, is_term, depth = pending.pop()
            if is_term:
                words.append(self._token(random, name, names))
                words.append(random.choice(SPACES))
                continue
            bodies = self.productions[name]
            if len(words) // 2 >= budget or depth > 40:
                bodies = self.shortest[name]
            body = random.choice(bodies) if len(bodies) > 1 else bodies[0]
            pending += [(child, term, depth + 1) for child, term in reversed(body)]
        return "".join(words)

    def _token(self, random: Random, name: str, names: tuple[str, ...]) -> str:
        if name == "IN_NAME":
            return "in"
        if name in ("FIELD", "NAME"):
            return random.choice(names if random.randrange(8) else NAMES)
        if name in POOLS:
            return random.choice(POOLS[name])
        return str(self.words[name])


@cache
def grammar() -> Grammar:
    return Grammar()


def declaration(random: Random) -> str:
    """Return one declaration, on its own."""
    return grammar().sentence(random, random.choice(_ITEMS), 18)


def policy_text(random: Random) -> str:
    """Return a text of the grammar, mostly after declarations that give its names a meaning."""
    preamble, names = random.choice(SETTINGS)
    symbols = [random.choice(_ITEMS) for _ in range(random.choice((1, 1, 1, 1, 2, 3)))]
    return preamble + "\n".join(grammar().sentence(random, symbol, 18, names) for symbol in symbols)


_ITEMS = (
    *("rule", "rule", "rule", "rule", "assertion", "let", "let", "band", "starvation", "gradient", "phases"),
    *("examples", "signals", "model", "max_weight", "import_", "header", "start"),
)
