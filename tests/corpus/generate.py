"""Writes the conformance corpus: the cases by hand, and cases drawn by type and reduced.

    python -m tests.corpus.generate

The draw has a fixed seed, so that the files change only where the language or this script does. For each
drawn policy the examples and contexts are chosen that send every condition both ways; rules whose conditions
do not go both ways are dropped, and so is every attribute that nothing reads. What a drawn case expects is
the answer of the scalar evaluator; the reference interpreter, which shares no code, must give the same.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import PolicyError
from gradwarden.policy.evaluation.evaluate import decide, truth_of
from gradwarden.policy.load import parse_policy
from gradwarden.policy.program import Constant, Program
from gradwarden.policy.source import Source
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.parse import parse
from tests.corpus.handwritten import GROUPS, Group
from tests.policy.reference_interpreter import Given, Interpreter
from tests.policy.typed_texts import TypedText, some_context, some_example, typed_text

FOLDER = Path(__file__).parent / "conformance"
FORMAT = "gradwarden/conformance/1"
SEED = 20260301
POLICIES = 240
MOST_CASES = 7

Json = dict[str, Any]


def context_of(data: Mapping[str, Any]) -> Context:
    """Return the context that a case describes."""
    day = date.fromisoformat(data["today"])
    spent = frozenset(data["spent"])
    return Context(data["step"], data["epoch"], day, data["exposures"], data["signals"], spent)


def decision_data(decision: Decision) -> Json:
    """Return a decision as the corpus writes it."""
    return {
        "verdict": decision.verdict,
        "weights": dict(zip(decision.bands, decision.micro, strict=True)),
        "rules": list(decision.rules),
        "advisory": list(decision.advisory),
        "waived": list(decision.waived),
        "obligations": [[obligation.kind, obligation.rule] for obligation in decision.obligations],
        "causes": [[cause.rule, cause.effect] for cause in decision.causes],
        "stage": decision.stage,
        "problems": [[problem.attribute, problem.code] for problem in decision.problems],
    }


def interpreter_of(texts: Sequence[str]) -> Interpreter:
    """Return the reference interpreter of a policy given as the texts of its files."""
    return Interpreter([parse(Source("policy", text))[0] for text in texts])


# --- by hand ------------------------------------------------------------------------------------------------


def handwritten(group: Group) -> Json:
    """Return a group with its weights by band."""
    file, _ = parse(Source(group.name, group.text))
    (model,) = (item for item in file.items if isinstance(item, s.Model))
    bands = [part.name.text for part in model.parts]
    cases = []
    for case in group.cases:
        weights = dict(zip(bands, case["expect"]["weights"], strict=True))
        cases.append({**case, "expect": {**case["expect"], "weights": weights}})
    return _entry(group.name, group.text, group.imports, cases)


def _entry(name: str, text: str, imports: Mapping[str, str], cases: Sequence[Json]) -> Json:
    return {"format": FORMAT, "name": name, "policy": text, "imports": dict(imports), "cases": list(cases)}


# --- drawn --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A drawn policy with its program and the cases that were chosen."""

    text: TypedText
    program: Program
    cases: tuple[tuple[Json, Json], ...]


def drawn_policies() -> Iterator[Json]:
    """Yield policies, each with cases that no smaller choice would replace."""
    number, kept = 0, 0
    while kept < POLICIES:
        random = Random(f"{SEED}:{number}")
        number += 1
        drawn = _choose(random, typed_text(random, most=random.choice((2, 3, 5))))
        drawn = drawn and _reduced(random, drawn)
        if drawn is not None and len(drawn.cases) >= 4 and _varied(drawn):
            kept += 1
            yield _generated(f"generated_{kept:03}", drawn)


def _varied(drawn: Drawn) -> bool:
    """Whether something is learned in one case and not in another."""
    learned = {any(decide(drawn.program, e, context_of(c)).micro) for e, c in drawn.cases}
    return len(learned) == 2


def _choose(random: Random, text: TypedText) -> Drawn | None:
    """Return a policy with a few cases that show what sixty drawn ones show; None where it is faulty."""
    try:
        program = parse_policy(text.text).program
    except PolicyError:
        return None
    drawn = [(some_example(random, text.attributes), some_context(random, text)) for _ in range(60)]
    shown = [_shows(program, example, context) for example, context in drawn]
    seen: set[Any] = set()
    chosen: list[int] = []
    while len(chosen) < MOST_CASES:
        best = max(range(len(drawn)), key=lambda i: (len(shown[i] - seen), -i))
        if not shown[best] - seen:
            break
        seen |= shown[best]
        chosen.append(best)
    return Drawn(text, program, tuple(drawn[i] for i in chosen))


def _shows(program: Program, example: Json, context: Json) -> frozenset[Any]:
    """What a case exercises: conditions true and false, the verdict, where it was decided, its causes."""
    decision = decide(program, example, context_of(context))
    shown: set[Any] = {("verdict", decision.verdict, decision.stage)}
    shown |= {("problem", problem.attribute, problem.code) for problem in decision.problems}
    shown |= {("cause", cause.rule, cause.effect) for cause in decision.causes}
    shown |= {("waived", name) for name in decision.waived}
    if not decision.problems:
        shown |= set(enumerate(truth_of(program, example, context_of(context))))
    return frozenset(shown)


def _reduced(random: Random, drawn: Drawn) -> Drawn | None:
    """Drop rules whose conditions do not go both ways, then attributes that nothing reads."""
    while dull := _dull(drawn):
        rules = [rule for rule in drawn.text.rules if _name(rule) not in dull]
        again = _choose(random, replace(drawn.text, rules=rules))
        if again is None:
            return None
        drawn = again
    for name in drawn.text.attributes:
        drawn = _without_attribute(drawn, name) or drawn
    return drawn


def _name(rule: str) -> str:
    match = re.match(r"(?:(?:hard|advisory) )?\w+ (\w+)", rule)
    assert match is not None
    return match[1]


def _dull(drawn: Drawn) -> set[str]:
    """Return the rules with a condition that is no constant and the same in all cases."""
    program = drawn.program
    valid = [(e, c) for e, c in drawn.cases if not decide(program, e, context_of(c)).problems]
    if not valid:
        return set()
    truths = zip(*(truth_of(program, e, context_of(c)) for e, c in valid), strict=True)
    owners = [rule.name for rule in program.grants]
    owners += [limit.name for limit in program.limits for _ in limit.clauses]
    owners += [rule.name for rule in program.modulations] + [waiver.rule for waiver in program.waivers]
    owners += [a.name for a in program.assertions for _ in range(2 if a.form == "implies" else 1)]
    conditions = zip(owners, program.conditions(), truths, strict=True)
    return {n for n, c, seen in conditions if len(set(seen)) == 1 and not isinstance(c, Constant)} - {"base"}


def _without_attribute(drawn: Drawn, name: str) -> Drawn | None:
    """Return the policy without an attribute, where nothing reads it."""
    schema = [re.sub(rf"(?m)^  {name} : .*\n", "", part) for part in drawn.text.schema]
    attributes = tuple(other for other in drawn.text.attributes if other != name)
    text = replace(drawn.text, schema=schema, attributes=attributes)
    try:
        program = parse_policy(text.text).program
    except PolicyError:
        return None
    cases = [({key: value for key, value in e.items() if key != name}, c) for e, c in drawn.cases]
    distinct = {json.dumps(case, sort_keys=True): case for case in cases}
    return Drawn(text, program, tuple(distinct.values()))


def _generated(name: str, drawn: Drawn) -> Json:
    text = drawn.text.text.replace("policy drawn", f"policy {name}", 1)
    interpreter = interpreter_of([text])
    cases = []
    for number, (example, context) in enumerate(drawn.cases, 1):
        expect = decision_data(decide(drawn.program, example, context_of(context)))
        if interpreter.decide(example, Given(**context)) != expect:
            raise AssertionError(f"two readings of the language differ:\n{text}\n{example}\n{context}")
        cases.append({"name": f"case {number}", "example": example, "context": context, "expect": expect})
    return _entry(name, text, {}, cases)


def corpus() -> dict[str, list[Json]]:
    """Return the corpus, by the name of its files."""
    return {
        "handwritten.jsonl": [handwritten(group) for group in GROUPS],
        "generated.jsonl": list(drawn_policies()),
    }


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, entries in corpus().items():
        lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries]
        (FOLDER / name).write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{name}: {len(entries)} policies, {sum(len(entry['cases']) for entry in entries)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
