"""Random policy texts that type-check: a fixed schema, and rules of every kind in every form of expression.

A policy is drawn as a list of declarations, so that tests can reorder them and spread them over files.
Between words stands a drawn gap: a space, a line end or a comment.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gradwarden.policy.syntax.lexemes import lexemes

HEADER = "policy drawn version 1 language 1"

SCHEMA = (
    'examples {\n source : string  license : one of mit, apache, "GPL-3.0"\n consent : bool }',
    "examples { tags : set of pii, minor  lines : integer 0..1000 # count\n score : number -1..1 places 3 }",
    "examples { entropy : number 0..8 bits/byte  patient : string optional erase_on : date optional }",
    "signals { loss : number 0..10 default 1\n strain : number 0..1 default 0 }",
    "model { shallow = top 25% middle = next 50% deep = rest # all else\n semantics detach"
    ' quarantine = names "adapter.*" }',
    "phases { warmup until step 10 main until epoch 2 last }",
    "let permissive = license in [mit, apache]",
    "let thin = (lines < 10) and not permissive",
    "band low = entropy < 3.0 bits/byte",
    "band high = 5.5 <= entropy",
)

gaps = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n\n", " # note\n", "\n# above\n", "\t"])
weights = st.sampled_from(["0", "0.5", "1", "0.000001", "0.25"])
counts = st.integers(1, 50).map(str)
days = st.dates().map(str)

SIMPLE = (
    *("consent", "permissive", "thin", "low", "band high", "true", "has patient", "not consent"),
    *('source == "a"', 'source != "b # not a comment"', 'source in ["x", "y"]', 'source like "s*?"'),
    *('source starts with "a"', 'source ends with "b"', 'source contains "é\\"\\\\"'),
    *("license == mit", 'license != "GPL-3.0"', "license not in [mit]", "tags contains pii"),
    *("tags has any [pii, minor]", "tags has all [minor]", "lines in 3..7", "score in -0.5..0.25"),
    *("lines in [1, 2, 3]", "score not in -1..0", "lines * 2 - 3 > 7", "-score + 0.125 >= score * score"),
    *("entropy >= 2 bits/byte", "step < 100", "epoch == 0", "exposures >= 3", "today > 2026-01-01"),
    *("phase == main", "phase in [warmup, last]", "loss > 2.5", "strain <= 0.5", "3 < lines"),
    *('has patient and patient == "p"', "has erase_on and today - erase_on > 30 days"),
    *("not has erase_on or erase_on + 2 weeks < today", 'has patient implies patient != ""'),
)


@st.composite
def conditions(draw: DrawFn, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(SIMPLE))
    gap = draw(gaps)
    form = draw(st.sampled_from(["and", "or", "implies", "not", "three"]))
    inner = [f"({draw(conditions(depth=depth - 1))})" for _ in range(3)]
    if form == "not":
        return f"not{gap}{inner[0]}"
    if form == "three":
        return f"{inner[0]} and{gap}{inner[1]}{gap}and {inner[2]}"
    return f"{inner[0]}{gap}{form}{draw(gaps)}{inner[1]}"


@st.composite
def targets(draw: DrawFn, weighted: bool = False) -> str:
    bands = draw(st.lists(st.sampled_from(["shallow", "middle", "deep", "all"]), min_size=1, unique=True))
    at = [f" at {draw(weights)}" if weighted or draw(st.booleans()) else "" for _ in bands]
    return f",{draw(gaps)}".join(band + weight for band, weight in zip(bands, at, strict=True))


PRIVACY_EXTRAS = ("noise at most 2.50", "spent halt")

CLAUSES: dict[str, SearchStrategy[list[str]]] = {
    "depth": targets().map(lambda t: [f"reach {t}"]),
    "suppress": st.one_of(
        st.just(['because "why"']),
        targets(weighted=True).map(lambda t: [f"cap {t}", 'because "so"']),
        st.just(["route to quarantine"]),
    ),
    "retain": st.one_of(
        counts.map(lambda n: [f"at most {n} exposures"]),
        st.tuples(days, counts).map(lambda x: [f"until {x[0]}", f"at most {x[1]} epochs"]),
        days.map(lambda d: [f"from {d}"]),
    ),
    "privacy": st.just(
        ["within shallow, middle", "epsilon 3", "delta 1e-6", "clip 1.50", "unit source", *PRIVACY_EXTRAS]
    ),
    "memorization": st.one_of(
        st.just(["refuse"]),
        targets(weighted=True).map(lambda t: [f"cap {t}"]),
        st.just(["route to quarantine"]),
        counts.map(lambda n: [f"at most {n} exposures"]),
        st.integers(2, 1000).map(lambda n: [f"hold out 1 in {n} tokens"]),
    ),
    "curriculum": st.lists(
        st.tuples(
            st.sampled_from(
                ["before step 5", "from epoch 1", "in main", "during step 3..9", "from 2026-05-01"]
            ),
            targets(),
        ).map(lambda x: f"{x[0]} reach {x[1]}"),
        min_size=1,
        max_size=3,
    ),
    "modulate": st.tuples(weights, weights).map(
        lambda x: [f"scale deep by strain from {x[0]} to {x[1]}, middle by loss from 1 to {x[1]}"]
    ),
}


@st.composite
def rules(draw: DrawFn, name: str) -> str:
    kind = draw(st.sampled_from([*CLAUSES, "assert"]))
    gap, level = draw(gaps), draw(st.sampled_from(["", "hard ", "advisory "]))
    condition = draw(conditions())
    if kind == "assert":
        claim = draw(
            st.sampled_from(
                [
                    f"never reach deep when {condition}",
                    f"always refuse when {condition}",
                    f"at most 0.5 in deep when {condition}",
                    f"always private when {condition}",
                    f"({condition}) implies consent",
                ]
            )
        )
        return f"{level}assert {name} {{{gap}{claim}{draw(gaps)}}}"
    clauses = draw(CLAUSES[kind])
    if kind == "memorization":
        clauses = [f"when loss < 0.5 and ({condition})", *clauses]
    elif draw(st.booleans()):
        clauses = [f"when {condition}", *clauses]
    body = gap.join(clauses)
    return f"{level}{kind} {name} {{{draw(gaps)}{body}{draw(gaps)}}}"


@st.composite
def declarations(draw: DrawFn) -> list[str]:
    """The declarations of a policy after its header, in a drawn order."""
    drawn = [draw(rules(f"rule_{index}")) for index in range(draw(st.integers(0, 5)))]
    extra = [
        "suppress waived { when not consent }",
        'waive waived { when consent  approved by "A"  until 2026-01-01  because "x" }',
        'waive waived { approved by "B"  until 2027-01-01  because "x" }',
        "starvation deep { after 100 steps halt }",
        "starvation shallow { below 0.010 after 1 step report }",
        "gradient { deep at most 1.0 record 1 in 16 steps shallow at most 5 }",
        "gradient { deep at most 1 in 4 steps }",
        "maintain kept { within shallow, middle  strength 0.010  drift at most 2.5%  from step 3 }",
        "depth practised { reach deep at 0.50 }",
        'maintain practice { within deep  rehearse practised at least 12.50%  strength 2 because "x" }',
    ]
    return draw(st.permutations([*SCHEMA, *drawn, *extra]))


def text_of(parts: list[str]) -> str:
    return "\n".join([HEADER, *parts]) + "\n"


@st.composite
def commented(draw: DrawFn, text: str) -> str:
    """A policy text with comments after any of its words, each on its own line or ending one."""
    words = [lexeme for lexeme in lexemes(text) if lexeme.kind != "comment"]
    ends = [lexeme.start + len(lexeme.text) for lexeme in words]
    places = draw(st.sets(st.sampled_from([0, *ends]), min_size=1, max_size=12))
    parts, before = [], 0
    for number, at in enumerate(sorted(places)):
        gap = draw(st.sampled_from([" ", "", "\n", "\n\n  ", "\r\n"]))
        note = draw(
            st.sampled_from(["", " note", ' "quoted" {', " # twice", " é🜁\t", " depth x { reach all }"])
        )
        after = draw(st.sampled_from(["\n", "\n\n\n", "\n    "]))
        parts += [text[before:at], f"{gap}#{number}{note}{after}"]
        before = at
    return "".join([*parts, text[before:]])
