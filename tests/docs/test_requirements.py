"""The table of requirements names tests that exist; those that nothing else shows directly are here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import Context, parse_policy
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "requirements.md").read_text("utf-8")
PRIVACY = (DOCS / "privacy.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE + PRIVACY)))

HEADER = "policy p version 1 language 1\n"
RIGHTS = "examples { rights : one of open, unknown  source : string  trial : bool }\n"
MODEL = 'model { shallow = top 25%  middle = next 50%  deep = rest  memory = names "memory.*" }\n'
RULES = [
    'depth open { when rights == open  reach all at 0.5  because "a" }\n',
    "depth trial { when trial  reach shallow, memory }\n",
    'suppress shut { when source == "x"  cap memory at 0  because "b" }\n',
    "retain short { when trial  at most 3 exposures }\n",
    "assert out { always refuse when rights == unknown }\n",
]


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_the_tests_named_exist(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_each_requirement_names_tests() -> None:
    rows = re.findall(r"^\| (R\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    policy = ["R6", "R9", "R10", "R11", "R12", "R13", "R14", "R50", "R51"]
    masks = ["R2", "R3", "R4", "R27", "R28", "R29", "R30", "R31", "R32", "R33", "R34", "R35"]
    memory = ["R41", "R42", "R43", "R44", "R45", "R46"]
    privacy = ["R25", "R47", "R48", "R49"]
    evidence = ["R54", "R55", "R56", "R57", "R58", "R59", "R60", "R61", "R62", "R63", "R64", "R65", "R66"]
    assert [number for number, _ in rows] == [*policy, *masks, *memory, *privacy, *evidence]
    further = re.findall(r"^\| ([a-z][a-z ]+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    scale = ["processes", "ranks", "private ranks", "weights", "archives", "new entries only"]
    assert [what for what, _ in further] == scale
    assert all("::" in tests for _, tests in [*rows, *further])


def test_a_region_of_data_is_retained_in_a_region_of_the_model() -> None:
    rules = (
        'let drafts = source starts with "draft/"\n'
        "depth d { reach all }\n"
        'suppress keep_out { when drafts  cap memory at 0, deep at 0.2  because "drafts change" }\n'
        "retain a_year { when drafts  until 2027-01-01  at most 2 exposures }\n"
    )
    program = parse_policy(HEADER + RIGHTS + MODEL + rules).program

    def weights(source: str, at: date = date(2026, 12, 31), exposures: int = 0) -> list[float]:
        example = {"rights": "open", "source": source, "trial": False}
        return list(program.decide(example, Context(at=at, exposures=exposures)).weights.values())

    assert weights("draft/1") == [1, 1, 0.2, 0]
    assert weights("final/1", exposures=9) == [1, 1, 1, 1]
    assert weights("draft/1", exposures=2) == weights("draft/1", at=date(2027, 1, 1)) == [0, 0, 0, 0]


@given(
    rules=st.lists(st.sampled_from(RULES[1:]), unique=True), trial=st.booleans(), source=st.text(max_size=3)
)
def test_unknown_rights_are_refused_unless_a_rule_grants_them(
    rules: list[str], trial: bool, source: str
) -> None:
    program = parse_policy(HEADER + RIGHTS + MODEL + RULES[0] + "".join(rules)).program
    decision = program.decide({"rights": "unknown", "source": source, "trial": trial}, Context())
    granted = trial and RULES[1] in rules and RULES[4] not in rules
    assert (decision.verdict == "refuse") == (not granted)
    for rights in (None, "odbl"):
        broken = program.decide({"rights": rights, "source": source, "trial": trial}, Context())
        assert (broken.verdict, max(broken.weights.values(), default=0)) == ("invalid", 0)


BUILD = """
import sys
from pathlib import Path
from gradwarden.policy import ModelMap, compile_policy, parse_policy
program = compile_policy(parse_policy(sys.stdin.read()), ModelMap.from_yaml(Path(sys.argv[1]).read_text()))
sys.stdout.write(program.to_json())
"""


def test_a_policy_and_a_model_map_give_the_same_bytes_in_every_process() -> None:
    plain = MODEL.replace('  memory = names "memory.*"', "")
    grants = [RULES[0], RULES[3], RULES[4], "depth trial { when trial  reach shallow, middle }\n"]
    grants += [f"depth more_{n} {{ when trial  reach shallow }}\n" for n in range(8)]
    model_map = ROOT / "cli" / "templates" / "model.yaml"
    built = {
        subprocess.run(
            [sys.executable, "-c", BUILD, model_map],
            input=text,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, text in (
            ("1", HEADER + RIGHTS + plain + "".join(grants)),
            ("2", HEADER + "# the same\n" + "".join(reversed(grants)) + plain + RIGHTS),
        )
    }
    assert len(built) == 1
    assert '"parameters":["' in built.pop()
