"""Where names are declared and used: as the checker reads them, and so that renaming keeps a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from gradwarden.policy.source import Source
from gradwarden.policy.syntax.names import Occurrence, at, occurrences
from gradwarden.policy.syntax.parse import parse
from tests.policy.strategies_text import declarations, text_of

SCHEMA = """\
policy sample version 1 language 1
examples {
  kind : one of surface, concept
  license : one of mit, "GPL-3.0"
  concept : bool
  tags : set of pii, minor
  patient : string optional
  erase_on : date optional
  entropy : number 0..8 bits/byte
}
signals { loss : number 0..10 default 1 }
model { shallow = top 25%  deep = rest }
phases { warmup until step 10  main }
let fine = concept and tags contains pii
band low = entropy < 3 bits/byte
"""


def found(*rules: str) -> list[tuple[str, str, bool]]:
    """Return what the rules name, after the declarations of the schema: kind, name, whether declared."""
    text = SCHEMA + "\n".join(rules)
    file, faults = parse(Source("sample.policy", text))
    assert not faults
    here = [x for x in occurrences([file]) if x.span.start >= len(SCHEMA)]
    assert all(x.span.text == x.symbol.name for x in here)
    return [(x.symbol.kind, x.symbol.name, x.declares) for x in here]


def uses(condition: str) -> list[tuple[str, str]]:
    return [(kind, name) for kind, name, _ in found(f"suppress s {{ when {condition} }}")[1:]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("concept", [("attribute", "concept")]),
        # what stands beside an enumeration is a value of it, even where an attribute has that name
        ("kind == concept", [("attribute", "kind"), ("value", "concept")]),
        ("surface == kind", [("value", "surface"), ("attribute", "kind")]),
        ('license == "GPL-3.0"', [("attribute", "license"), ("value", "GPL-3.0")]),
        ("license not in [mit]", [("attribute", "license"), ("value", "mit")]),
        ("tags contains pii", [("attribute", "tags"), ("value", "pii")]),
        ("tags has any [pii, minor]", [("attribute", "tags"), ("value", "pii"), ("value", "minor")]),
        ('has patient and patient == "x"', [("attribute", "patient")] * 2),
        ("phase == main", [("phase", "main")]),
        ('phase in ["warmup"]', [("phase", "warmup")]),
        ("fine and band low and low", [("condition", "fine")] + [("entropy band", "low")] * 2),
        ("loss * 2 < 1 - loss", [("signal", "loss")] * 2),
        ("step < 3 and today > 2026-01-01", []),
        ("unheard_of", []),
    ],
)
def test_words_of_conditions_are_told_apart(condition: str, expected: list[tuple[str, str]]) -> None:
    assert uses(condition) == expected


def test_clauses_name_bands_attributes_signals_phases_and_rules() -> None:
    assert [
        name
        for name in found(
            "depth d { reach shallow, deep at 0.5 }",
            "retain r { when has erase_on  until erase_on }",
            "privacy p { within shallow  epsilon 3 delta 1e-6 clip 1 unit patient }",
            "modulate m { scale deep by loss from 1 to 0 }",
            "curriculum c { in warmup reach all }",
            'waive r { approved by "A"  until 2027-01-01  because "b" }',
            "starvation deep { after 10 steps halt }",
            "gradient { shallow at most 1  deep at most 1 in 4 steps }",
            "maintain m { within deep  rehearse d at least 1% }",
            "assert a { never reach deep when fine }",
        )
        if not name[2]
    ] == [
        ("band", "shallow", False),
        ("band", "deep", False),
        ("attribute", "erase_on", False),
        ("attribute", "erase_on", False),
        ("band", "shallow", False),
        ("attribute", "patient", False),
        ("band", "deep", False),
        ("signal", "loss", False),
        ("phase", "warmup", False),
        ("rule", "r", False),
        ("band", "deep", False),
        ("band", "shallow", False),
        ("band", "deep", False),
        ("band", "deep", False),
        ("rule", "d", False),
        ("band", "deep", False),
        ("condition", "fine", False),
    ]


def test_names_are_shared_by_all_files_of_a_policy() -> None:
    main, _ = parse(Source("main.policy", "policy p version 1\nmodel { a = rest }\nlet here = there\n"))
    part, _ = parse(Source("part.policy", "examples { there : bool }\ndepth d { when here  reach a }\n"))
    names = [(x.span.source.name, x.symbol.name, x.declares) for x in occurrences([main, part])]
    assert names == [
        ("main.policy", "p", True),
        ("main.policy", "a", True),
        ("main.policy", "here", True),
        ("main.policy", "there", False),
        ("part.policy", "there", True),
        ("part.policy", "d", True),
        ("part.policy", "here", False),
        ("part.policy", "a", False),
    ]


def test_a_cursor_behind_the_last_letter_is_still_on_the_name() -> None:
    source = Source("a.policy", "policy p version 1\nmodel { ab = rest }\n")
    names = occurrences([parse(source)[0]])

    def name(offset: int) -> str | None:
        occurrence = at(names, source, offset)
        return occurrence.symbol.name if occurrence else None

    start = source.text.index("ab")
    assert [name(start + n) for n in (-1, 0, 1, 2, 3)] == [None, "ab", "ab", "ab", None]


def _of(text: str) -> tuple[Occurrence, ...]:
    file, faults = parse(Source("drawn.policy", text))
    assert not faults
    return occurrences([file])


@settings(max_examples=25)
@given(declarations())
def test_every_occurrence_is_where_its_name_is_written_and_each_use_has_a_declaration(
    parts: list[str],
) -> None:
    names = _of(text_of(parts))
    declared = {x.symbol for x in names if x.declares}
    assert all(x.symbol in declared and x.span.text == x.symbol.name for x in names)
    assert len({x.span.start for x in names}) == len(names)


@pytest.mark.parametrize(
    "path", sorted(Path("tests/corpus/good").resolve().glob("*.policy")), ids=lambda x: x.stem
)
def test_every_declared_rule_and_band_of_the_corpus_is_found(path: Path) -> None:
    from gradwarden.policy.load import load_policy, read_files

    policy = load_policy(path)
    files = read_files(Source(str(path), path.read_text("utf-8")), path.parent).files
    spans = {x.span for x in occurrences(files) if x.declares}
    named = {span for rule, span in policy.rules.items() if not rule.startswith("pace:")}
    assert named | set(policy.bands.values()) <= spans
