"""What type-checks, and what each fault is called."""

from __future__ import annotations

import re
from decimal import Inexact, localcontext
from pathlib import Path

import pytest

from gradwarden.policy import PolicyError, parse_policy

ROOT = Path(__file__).parent.parent.parent
SCHEMA = """policy p version 1 language 1
examples {
  consent : bool
  kind    : one of a, b
  tags    : set of pii, minor
  source  : string
  lines   : integer 0..1000
  score   : number 0..1
  entropy : number 0..8 bits/byte
  born    : date
  patient : string optional
  erase   : date optional
  gain    : number 0..1 optional
  flag    : bool optional
}
signals { loss : number 0..10 default 1 }
model { shallow = top 25%  deep = rest }
phases { warmup until step 10  main }
let named = lines > 3
band low = entropy < 3
"""

NOISE = "privacy p { when consent  epsilon 3  delta 1e-6  clip 1 "
PACE = "gradient { deep at most 1 in 4 steps }"


def faults(text: str) -> list[str]:
    try:
        parse_policy(SCHEMA + text)
    except PolicyError as error:
        return [diagnostic.code for diagnostic in error.diagnostics]
    return []


def condition_faults(condition: str) -> list[str]:
    return faults(f"depth d {{ when {condition}  reach all }}")


@pytest.mark.parametrize(
    "condition",
    [
        "consent",
        "consent == true and false != consent",
        "named and low and band low and not named",
        'kind == a and a == kind and kind in [a, b] and kind != "b"',
        'source == "x" and "x" == source and source starts with "y"',
        "tags contains pii or tags has any [pii] or tags has all [pii, minor]",
        "lines + 1 < 3 and 3 > lines and -lines < 0 and lines * lines >= 2 * lines - 1",
        "lines > 0.5 and score >= 0.12345678",
        "entropy > 3 and entropy > 3 bits/byte and entropy * 2 > 3 bits/byte and entropy - entropy < 1",
        "today - born > 30 days and born + 2 weeks < today and today - born > born - 2020-01-01",
        "born in 2020-01-01..2021-01-01 and born == 2020-01-01",
        "30 days * lines > today - born",
        "step < 10 and epoch == 0 and exposures >= 1 and phase == main and phase in [warmup]",
        "loss > 0.5",
    ],
)
def test_well_typed_conditions_pass(condition: str) -> None:
    assert condition_faults(condition) == []


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("lines", "GW301"),
        ('"x"', "GW301"),
        ("phase", "GW301"),
        ("lines and consent", "GW301"),
        ("consent + 1 > 2", "GW302"),
        ("lines == source", "GW302"),
        ("source == 3", "GW302"),
        ("consent == named", "GW302"),
        ("lines in [x]", "GW302"),
        ("tags in [pii]", "GW302"),
        ("kind in 0..3", "GW302"),
        ("consent in [a]", "GW302"),
        ("born + born > today", "GW302"),
        ("born > 3", "GW302"),
        ("today - born > 3", "GW302"),
        ("lines contains pii", "GW302"),
        ("source contains pii", "GW302"),
        ("source has any [pii]", "GW302"),
        ("entropy > score", "GW303"),
        ("entropy > 3 bits", "GW303"),
        ("entropy * entropy > 3", "GW303"),
        ("kind == c", "GW208"),
        ("tags contains adult", "GW208"),
        ("phase == late", "GW204"),
        ("band named", "GW201"),
        ("has kindd", "GW201"),
        ("has named", "GW201"),
        ('source < "b"', "GW311"),
        ("tags == pii", "GW311"),
        ("kind in []", "GW307"),
        ("lines in 5..3", "GW307"),
        ("1.5 days < today - born", "GW310"),
        ("lines * lines * lines * lines * lines * lines > 1", "GW305"),
        ("lines > 0.1234567890123456", "GW305"),
        ("lines > 99999999999999999", "GW305"),
        ("0 < lines < 3", "GW113"),
    ],
)
def test_ill_typed_conditions_are_named(condition: str, code: str) -> None:
    assert condition_faults(condition) == [code]


@pytest.mark.parametrize(
    "condition",
    [
        'has patient and patient == "x"',
        'not has patient or patient == "x"',
        'has patient implies patient == "x"',
        'not (not has patient) and patient == "x"',
        'not (not has patient or patient == "x")',
        'has patient and consent and (lines > 3 or patient == "x")',
        '(has patient and consent) and patient == "x"',
        '(has patient and consent or lines > 3 and has patient) and patient == "x"',
        "(not has patient and not has erase) or consent or lines > 3 or true",
        'not has patient or not has erase or patient == "x" and erase < today',
        "has gain and gain > 0.5 and has flag and flag",
        'not (has patient and consent) or patient == "x"',
    ],
)
def test_an_optional_attribute_may_be_read_where_it_is_known_to_be_present(condition: str) -> None:
    assert condition_faults(condition) == []


@pytest.mark.parametrize(
    "condition",
    [
        'patient == "x"',
        'patient == "x" and has patient',
        'has patient or patient == "x"',
        'not has patient and patient == "x"',
        'not has patient implies patient == "x"',
        'has erase and patient == "x"',
        '(has patient or consent) and patient == "x"',
        'not (has patient or consent) and patient == "x"',
        "flag",
        "gain > 0.5",
        "erase < today",
    ],
)
def test_an_optional_attribute_may_not_be_read_otherwise(condition: str) -> None:
    assert condition_faults(condition) == ["GW304"]


def test_named_conditions_show_presence_too() -> None:
    assert (
        faults('let known = has patient and consent\ndepth d { when known and patient == "x"  reach all }')
        == []
    )
    assert faults(
        'let known = has patient or consent\ndepth d { when known and patient == "x"  reach all }'
    ) == ["GW304"]


@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        ("retain r { when has erase  until erase }", []),
        ("retain r { until erase }", ["GW304"]),
        ("retain r { until born }", []),
        ("retain r { until lines }", ["GW302"]),
        ("retain r { }", ["GW451"]),
        ("retain r { from 2026-01-01 until 2026-01-01 }", ["GW460"]),
        ("privacy q { within shallow epsilon 1 delta 1e-6 clip 1 unit source }", []),
        ("privacy q { when has patient within shallow epsilon 1 delta 1e-6 clip 1 unit patient }", []),
        ("privacy q { within shallow epsilon 1 delta 1e-6 clip 1 unit patient }", ["GW304"]),
        ("privacy q { within shallow epsilon 1 delta 1 clip 1 }", ["GW455"]),
        ("privacy q { within shallow epsilon 1 delta 0.1 }", ["GW451"]),
        ("privacy q { within shallow epsilon 1 delta 0.1 clip 1 spent halt noise at most 2.5 }", []),
        ("privacy q { within shallow epsilon 1 delta 0.1 clip 1 spent refuse spent halt }", ["GW452"]),
        ("privacy q { within shallow epsilon 1 delta 0.1 clip 1 noise at most 0 }", ["GW455"]),
        ("suppress s { when not consent spent halt }", ["GW450"]),
        ("memorization m { when loss < 1  refuse }", []),
        ("let calm = loss < 1\nmemorization m { when calm  refuse }", []),
        ("memorization m { when lines < 1  refuse }", ["GW458"]),
        ("memorization m { when loss < 1 and false  refuse }", []),
        ("memorization m { when loss < 1 }", ["GW451"]),
        ("memorization m { when loss < 1  refuse  route to quarantine }", ["GW459"]),
        ("curriculum c { in main reach all }", []),
        ("curriculum c { in late reach all }", ["GW204"]),
        ("curriculum c { before born reach all }", ["GW460"]),
        ("modulate m { scale deep by loss from 1 to 0 }", []),
        ("modulate m { scale deep by loss from 1 to 1.1 }", ["GW469"]),
        ("modulate m { scale deep by lines from 1 to 1 }", ["GW201"]),
        ("suppress s { cap deep at 0.5, shallow at 1 }", []),
        ("suppress s { cap deep }", ["GW451"]),
        ("suppress s { cap deep at 2 }", ["GW453"]),
        ("max weight 2\nsuppress s { cap deep at 2 }", []),
        ("suppress s { route to deep }", ["GW463"]),
        ("suppress s { refuse }", ["GW450"]),
        ("depth e { reach deep, deep }", ["GW465"]),
        ("assert a { consent }", ["GW464"]),
        ("assert a { consent implies named }", []),
        ('assert a { has patient implies patient != "" }', []),
        ('assert a { consent implies patient != "" }', ["GW304"]),
        ("starvation deep { after 3 steps halt }\nstarvation deep { after 4 steps halt }", ["GW465"]),
        ("starvation deep { below 0.01 after 3 steps halt }", []),
        ("starvation deep { below 0 after 3 steps halt }", ["GW455"]),
        ("starvation deep { below 1.5 after 3 steps halt }", ["GW453"]),
        ("max weight 2\nstarvation deep { below 1.5 after 3 steps halt }", []),
        ("starvation deep { below 0.0000001 after 3 steps halt }", ["GW309"]),
        ("gradient { deep at most 0 }", ["GW455"]),
        ("gradient { record 1 in 1 steps  deep at most 1 }", []),
        ("gradient { record 2 in 16 steps }", ["GW468"]),
        ("gradient { record 1 in 0 steps }", ["GW310"]),
        ("gradient { record 1 in 2.5 steps }", ["GW310"]),
        ("gradient { record 1 in 4 steps  record 1 in 4 steps }", ["GW465"]),
        ("gradient { record 1 in 4 steps }\ngradient { record 1 in 8 steps }", ["GW465"]),
        ("gradient { record at most 1 }", ["GW202"]),
        ("gradient { deep at most 1e-30 in 1e30 steps }", ["GW468", "GW310"]),
        ("gradient { deep at most 1 in 4 steps  deep at most 1 }", []),
        ("gradient { deep at most 2 in 4 steps }", ["GW468"]),
        ("gradient { deep at most 1 in 1 steps }", ["GW310"]),
        ("gradient { deep at most 1 in 1000001 steps }", ["GW310"]),
        ("gradient { deep at most 1 in 4 steps }\ngradient { deep at most 1 in 2 steps }", ["GW465"]),
        ("gradient { deeper at most 1 in 4 steps }", ["GW202"]),
        (f"{NOISE} within deep }}\n{PACE}", ["GW473"]),
        (f"advisory {NOISE} within deep }}\n{PACE}", []),
        (f"{NOISE} within shallow }}\n{PACE}", []),
        (f'{PACE}\nwaive pace {{ approved by "A"  until 2027-01-01  because "b" }}', ["GW203"]),
        ("model { semantics detach }", ["GW205"]),
        ("memorization m { when loss < 0.5  at most 3 exposures }", []),
        ("memorization m { when loss < 0.5  at most 3 epochs }", ["GW450"]),
        ("memorization m { when consent  at most 3 exposures }", ["GW458"]),
        ("memorization m { when consent  hold out 1 in 4 tokens }", []),
        ("memorization m { hold out 1 in 4 tokens }", []),
        ("memorization m { when consent  hold out 2 in 4 tokens }", ["GW468"]),
        ("memorization m { when consent  hold out 1 in 1 tokens }", ["GW310"]),
        ("memorization m { when consent  hold out 1 in 1001 tokens }", ["GW310"]),
        ("memorization m { when consent  hold out 1 in 4 tokens  refuse }", ["GW459"]),
        ("suppress s { hold out 1 in 4 tokens }", ["GW450"]),
        ("maintain m { within deep, shallow  strength 0.01  drift at most 2.5% }", []),
        ("advisory maintain m { from step 10  drift at most 100%  within deep }", []),
        ("maintain m { within deep }", ["GW451"]),
        ("maintain m { strength 1 }", ["GW451"]),
        ("maintain m { within deep  strength 1  strength 2 }", ["GW452"]),
        ("maintain m { when consent  within deep  strength 1 }", ["GW450"]),
        ("suppress s { cap deep at 0.5  strength 1 }", ["GW450"]),
        ("maintain m { within deeper  strength 1 }", ["GW202"]),
        ("maintain m { within deep  strength 0 }", ["GW455"]),
        ("maintain m { within deep  strength 1000.1 }", ["GW455"]),
        ("maintain m { within deep  drift at most 0% }", ["GW455"]),
        ("maintain m { within deep  drift at most 100.1% }", ["GW455"]),
        ("maintain m { within deep  drift at most 0.00001% }", ["GW455"]),
        ("maintain m { within deep, deep  strength 1 }", ["GW465"]),
        (
            "maintain m { within deep  strength 1 }\nadvisory maintain n { within deep  strength 2 }",
            ["GW465"],
        ),
        ("maintain m { within deep, shallow  rehearse d at least 20% }", []),
        ("maintain m { within deep  rehearse d at least 100%  strength 1 }", []),
        ("maintain m { within deep  rehearse d at least 0% }", ["GW455"]),
        ("maintain m { within deep  rehearse d at least 100.1% }", ["GW455"]),
        ("maintain m { within deep  rehearse e at least 20% }", ["GW203"]),
        ("maintain m { within deep  rehearse s at least 20% }\nsuppress s { }", ["GW472"]),
        ("maintain m { within deep  rehearse m at least 20% }", ["GW472"]),
        ("maintain m { within deep  rehearse n at least 20% }\ndepth n { reach shallow }", ["GW472"]),
        ("maintain m { within deep  rehearse n at least 20% }\ndepth n { reach deep at 0 }", ["GW472"]),
        ("maintain m { within deep  rehearse n at least 20% }\nadvisory depth n { reach all }", ["GW472"]),
        ("maintain d { within deep  strength 1 }", ["GW205"]),
        ("maintain m { within deep  strength 1  from epoch 1 }", ["GW460"]),
        ("maintain m { within deep  strength 1  from 2026-01-01 }", ["GW460"]),
        ("maintain m { within deep  strength 1  from born }", ["GW460"]),
        ("maintain m { within deep  strength 1  from step 0.5 }", ["GW310"]),
        (
            "maintain m { within deep  strength 1 }\n"
            'waive m { approved by "x" until 2026-01-01 because "y" }',
            ["GW456"],
        ),
        ('suppress s { }\nwaive s { approved by "x" until 2026-01-01 because "y" }', []),
        ('waive d { approved by "x" until 2026-01-01 because "y" }', ["GW456"]),
        ('waive s { approved by "x" until 2026-01-01 because "y" }', ["GW203"]),
        ("depth d { reach deep }", ["GW205"]),
        ("band mid = entropy in 2..4", ["GW313"]),
        ("band mid = entropy in 3..4", []),
        ("band odd = entropy > 4 or entropy < 3", ["GW312"]),
        ("band soft = has gain and gain < 0.5", []),
        ("let a = b\nlet b = a", ["GW207"]),
    ],
)
def test_rules_are_checked(rule: str, codes: list[str]) -> None:
    assert faults(f"depth d {{ reach all }}\n{rule}") == codes


def test_a_policy_without_fault_may_still_earn_warnings() -> None:
    policy = parse_policy("policy p version 1\nmodel { a = rest }\nsuppress s { when step > 3 }")
    assert [(w.code, w.severity) for w in policy.warnings] == [
        ("GW501", "warning"),
        ("GW508", "warning"),
        ("GW502", "warning"),
    ]


def test_numbers_are_exact_whatever_the_decimal_context() -> None:
    exact = "depth d { when score > 0.1234567 and lines in [1000, 3.0]  reach all at 0.123456 }"
    long = "depth d { reach all at 0.5000000000000000000000000000000001 }"
    with localcontext(prec=3, traps=[Inexact]):
        assert faults(exact) == []
        assert faults(long) == ["GW309"]
    assert faults(long) == ["GW309"]
    assert faults("depth d { when lines > 3.0000000000000000000000000000000001  reach all }") == ["GW305"]


@pytest.mark.parametrize(("name", "codes"), [("_", []), ("x1", []), ("D", ["GW206"]), ("n" * 65, ["GW206"])])
def test_names_have_one_form_wherever_they_are_declared(name: str, codes: list[str]) -> None:
    for text in (
        f"depth {name} {{ reach all }}",
        f"assert {name} {{ never reach deep }}",
        f"examples {{ {name} : bool }}",
        f"signals {{ {name} : number 0..1 default 0 }}",
        f"let {name} = true",
    ):
        assert faults(text) == codes
    with_header = SCHEMA.replace("policy p", f"policy {name}")
    found: list[str] = []
    try:
        parse_policy(with_header)
    except PolicyError as error:
        found = [diagnostic.code for diagnostic in error.diagnostics]
    assert found == codes


def test_no_number_of_warnings_hides_an_error() -> None:
    warned = "".join(f"suppress s{index} {{ }}\n" for index in range(1_500))
    assert faults(warned + "depth d { reach none }") == ["GW202"]


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    folders = [ROOT / name for name in ("policy", "runtime", "cli")]
    paths = {path for folder in folders for path in folder.rglob("*.py")} - {ROOT / "cli" / "codes.py"}
    texts = [path.read_text("utf-8") for path in paths]
    used = {code for text in texts for code in re.findall(r"[\"'](GW\d{3})[\"']", text)}
    table = (ROOT / "docs" / "diagnostics.md").read_text("utf-8")
    listed = re.findall(r"^\| (GW\d{3}) \|", table, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert used == set(listed)


@pytest.mark.parametrize(
    ("when", "codes"),
    [
        ("when consent", []),
        ("when consent and loss < 1", ["GW512"]),
        ("when step > 100", ["GW512"]),
        ("when born > today - 30 days", ["GW512"]),
        ("when exposures > 1 or consent", ["GW512"]),
        ("when phase == main", ["GW512"]),
        ("", []),
    ],
)
def test_privacy_that_comes_and_goes_during_a_run_is_warned_of(when: str, codes: list[str]) -> None:
    text = f"privacy q {{ {when} within shallow epsilon 3 delta 1e-6 clip 1 }}"
    found = parse_policy(f"{SCHEMA}depth d {{ reach all }}\n{text}").warnings
    assert [warning.code for warning in found if warning.code == "GW512"] == codes
    found = parse_policy(f"{SCHEMA}depth d {{ reach all }}\nadvisory {text}").warnings
    assert "GW512" not in [warning.code for warning in found]


def test_it_is_told_that_not_every_fault_is_shown() -> None:
    text = SCHEMA + "".join(f"suppress s{index} {{ when nothing }}\n" for index in range(1_005))
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["GW201"] * 1_000 + ["GW114"]
