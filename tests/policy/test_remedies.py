"""What an author is told to write instead: the remedy of the first fault, for mistakes that people make."""

from __future__ import annotations

import pytest

from gradwarden.policy import PolicyError, parse_policy
from gradwarden.policy.errors import Diagnostic

HEAD = """policy p version 1 language 1
examples {
  consent  : bool
  ward     : one of icu, "day care"
  tags     : set of pii, minor
  source   : string
  age      : integer 0..130
  entropy  : number 0..8 bits/byte
  received : date
  patient  : string optional
  erase_on : date optional
}
signals { loss : number 0..10 default 1 }
model { shallow = top 25%  deep = rest }
depth d { reach all }
"""


def faults(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(HEAD + text)
    return caught.value.diagnostics


@pytest.mark.parametrize(
    ("text", "help"),
    [
        ("suppress s { when ward == day care }", 'values of several words are quoted: `"day care"`'),
        ("suppress s { when ward in [icu, day care] }", 'values of several words are quoted: `"day care"`'),
        ("suppress s { when ward == icu becuase }", "did you mean `because`?"),
        ("suppress s { when consent because personal }", 'a text stands in double quotes: `"personal"`'),
        ("suppress s { when age / 2 > 3 }", "there is no division; multiply the other side"),
        (
            'waive pace:deep { when age > 3 because "x" }',
            "nothing waives a pace: change it in `gradient { BAND at most 1 in N steps }`",
        ),
        ("suppress s { when consent } // why", "comments begin with `#`"),
        ("suppress s { when consent // why\n}", "comments begin with `#`"),
        ("suppress s { when consent cap deep to 0 }", "a weight follows `at`: `deep at 0.5`"),
        ("depth e { reach deep at 50% }", "write a decimal, such as `0.5`"),
        ("suppress s { when consent) }", "this `)` closes nothing"),
        ("suppress s { when consent }}", "this `}` closes nothing"),
        ("suppress s { when age between 10 and 20 }", "write `in 10..20`, both ends included"),
        ('suppress s { when source is "x" }', "write `==`"),
        ("suppress s { when age > 1,000 }", "numbers have no thousands separators"),
        ("import shared/more.policy", 'a text stands in double quotes: `"shared/more.policy"`'),
        ("depth e { reach deep at -1 }", "numbers here are not negative"),
        ("retain r { at most -1 exposures }", "numbers here are not negative"),
        ("privacy q { within deep epsilon = 3 delta 1e-6 clip 1 }", "leave out the `=`"),
        ("suppress { when consent }", "name it: `suppress NAME { … }`"),
        ("suppress opted-out { when consent }", "names are lower-case letters, digits and `_`"),
        ("suppress s { when ward ≠ icu }", "write `!=`"),
        ("suppress s { when age ≥ 3 }", "write `>=`"),
        ("suppress s { when age in 3–5 }", "write `..` between the ends of a range, `-` to subtract"),
        (
            "suppress s { when c\u043ensent }",
            "this is U+043E CYRILLIC SMALL LETTER O; names are made of plain letters, digits and `_`",
        ),
        ("suppress s {\u00a0when consent }", "this is U+00A0 NO-BREAK SPACE; write a plain space"),
        ("assert a { always refuse if consent }", "a condition follows `when`"),
        ("suppress s { when ward in (icu) }", "a list stands in square brackets: `[a, b]`"),
        ("allow e { when consent }", "what may be learned is granted by `depth NAME { when … reach … }`"),
        ("DENY e { when consent }", "what may not be learned is stopped by `suppress NAME { when … }`"),
        (
            "patients { when consent }",
            "a rule begins with its kind: `depth` grants, `suppress`, `retain` and `privacy` limit",
        ),
        ("depth e { reach top }", "`model` declares `shallow`, `deep`"),
        (
            "privacy q { within deep epsilon 3 clip 1 }",
            "for instance `delta 1e-6`: well below one over the number of privacy units",
        ),
    ],
)
def test_a_fault_of_syntax_says_what_to_write(text: str, help: str) -> None:
    assert [fault.help for fault in faults(text)] == [help]


@pytest.mark.parametrize(
    ("text", "help"),
    [
        ('suppress s { when received > "2026-02-03" }', "write the date without quotes: `2026-02-03`"),
        ("suppress s { when received > today - 30 }", "a duration has a unit: `30 days`"),
        ("suppress s { when received > today - 3 months }", "durations are whole `days` or `weeks`"),
        ("suppress s { when pii in tags }", "write `tags contains pii`"),
        ("suppress s { when consent == yes }", "write `true` or `false`"),
        ("suppress s { when received }", "compare it with something, as in `received < 2026-01-31`"),
        ("suppress s { when icu }", "write `ward == icu`"),
        ("suppress s { when not icu }", "write `ward == icu`"),
        ("memorization m { when los < 0.1 refuse }", "did you mean `loss`?"),
        ("suppress s { when age > 3 and pii in tags }", "write `tags contains pii`"),
        ("memorization m { when consent refuse }", "for instance `loss < …`"),
        ('suppress s { when age > "30" }', "write the number without quotes: `30`"),
        ("depth e { reach al }", "did you mean `all`?"),
        ("suppress s { when loss_of_life }", "declare it in `examples { … }`"),
    ],
)
def test_a_fault_of_type_says_what_to_write(text: str, help: str) -> None:
    assert [fault.help for fault in faults(text)] == [help]


@pytest.mark.parametrize(
    ("clauses", "help"),
    [
        ("until erase_on", "write `when has erase_on`"),
        ("when consent  until erase_on", "write `when consent and has erase_on`"),
        (
            'when source == "trial-7"   until erase_on   at most 3 exposures',
            'write `when source == "trial-7" and has erase_on`',
        ),
        ("when consent or age > 3  until erase_on", "write `when (consent or age > 3) and has erase_on`"),
        (
            "when consent implies age > 3  until erase_on",
            "write `when (consent implies age > 3) and has erase_on`",
        ),
        ("when (consent or age > 3)  until erase_on", "write `when (consent or age > 3) and has erase_on`"),
        (
            "when (consent or age > 3) or age == 1  until erase_on",
            "write `when ((consent or age > 3) or age == 1) and has erase_on`",
        ),
        (
            "when (consent or age > 3) and age < 9  until erase_on",
            "write `when (consent or age > 3) and age < 9 and has erase_on`",
        ),
        (
            "when consent # yes\n and age > 3  until erase_on",
            "add `and has erase_on` to the rule's condition",
        ),
    ],
)
def test_a_date_that_may_be_absent_is_told_the_whole_condition(clauses: str, help: str) -> None:
    assert [(fault.code, fault.help) for fault in faults(f"retain r {{ {clauses} }}")] == [("GW304", help)]


def test_a_name_of_two_words_is_joined() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("policy patient records version 1 language 1")
    assert caught.value.diagnostics[0].help == "a policy's name is one word: `patient_records`"
