"""Whether the data set that a Croissant description tells of carries what a policy reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from gradwarden.policy.croissant import Description, Field, RecordSet
from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Program
from gradwarden.policy.record_schema import ID

Standing = Literal["covered", "missing", "absent", "incompatible", "undeclared"]
"""covered: a field has what the attribute needs. missing: a required attribute has no field. absent: an
optional one has none. incompatible: the field has another type. undeclared: a field that the policy does not
declare; a record that carries it is invalid, content (texts, images) that stays outside metadata is not."""

FAULTS: tuple[Standing, ...] = ("missing", "incompatible")

_NUMBERS = re.compile(r"^(Integer|Float|Number|U?Int(8|16|32|64)|Float(16|32|64))$")

_WANTED = {
    "bool": ("Boolean", re.compile("^(Boolean|Bool)$")),
    "number": ("Integer or Float", _NUMBERS),
    "date": ("Date", re.compile("^Date$")),
    "enum": ("Text", re.compile("^(Text|URL|Enumeration)$")),
    "set": ("a list of Text", re.compile("^(Text|URL|Enumeration)$")),
    "string": ("Text", re.compile("^(Text|URL)$")),
}

_TOLD = (
    *("personalSensitiveInformation", "dataUseCases", "dataLimitations", "dataBiases", "dataSocialImpact"),
    "dataReleaseMaintenancePlan",
)
"""The properties of the RAI vocabulary that restrict what should be learned from a data set."""

_FILLERS = frozenset(
    (
        *(
            "about",
            "also",
            "and",
            "any",
            "are",
            "data",
            "dataset",
            "for",
            "from",
            "has",
            "have",
            "information",
        ),
        *("into", "its", "model", "models", "more", "not", "only", "other", "such", "than", "that", "the"),
        *(
            "their",
            "them",
            "this",
            "training",
            "used",
            "uses",
            "using",
            "was",
            "were",
            "which",
            "will",
            "with",
        ),
    )
)


@frozen
class Coverage:
    """How one attribute, or one field without attribute, stands; `detail` in words where there is a fault."""

    name: str
    standing: Standing
    detail: str = ""


@frozen
class Statement:
    """One text of the RAI vocabulary, and the rules that share a word with it (none: nothing reflects it)."""

    term: str
    text: str
    rules: tuple[str, ...]


def choose_record_set(program: Program, description: Description) -> RecordSet | None:
    """Return the (first) record set with the most attributes of a policy, None where none has any."""
    names = {spec.name for spec in program.attributes}
    best = max(description.record_sets, key=lambda s: len(names & {f.name for f in s.fields}), default=None)
    return best if best and names & {field.name for field in best.fields} else None


def coverage(program: Program, records: RecordSet) -> list[Coverage]:
    """Return how the attributes of a policy stand, in order, then the fields that it does not declare."""
    fields = {field.name: field for field in records.fields}
    found = [_attribute(spec, fields) for spec in program.attributes]
    declared = {spec.name for spec in program.attributes}
    return found + [Coverage(name, "undeclared") for name in fields if name not in declared and name != ID]


def _attribute(spec: AttributeSpec, fields: dict[str, Field]) -> Coverage:
    field = fields.get(spec.name)
    if field is None:
        near = did_you_mean(spec.name, fields)
        return Coverage(spec.name, "absent" if spec.optional else "missing", near or "")
    fault = next(_faults(spec, field), None)
    return Coverage(spec.name, "incompatible", fault) if fault else Coverage(spec.name, "covered")


def _faults(spec: AttributeSpec, field: Field) -> Iterator[str]:
    wanted, fits = _WANTED[spec.type]
    if field.parts:
        yield f"{wanted} is needed, and the field is made of fields of its own"
    if field.many != (spec.type == "set"):
        yield f"{wanted} is needed, and the field is {'a list' if field.many else 'one value'}"
    if not field.types:
        yield f"{wanted} is needed, and the field has no data type"
    elif not any(fits.match(name) for name in field.types):
        yield f"{wanted} is needed, and the field is of {', '.join(field.types)}"
    if spec.type in ("enum", "set") and field.values is not None:
        extra = [value for value in field.values if value not in spec.values]
        if extra:
            yield f"the policy does not declare the value{'s' if len(extra) > 1 else ''} {_quoted(extra)}"


def _quoted(values: list[str]) -> str:
    shown = ", ".join(f"`{value}`" for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def statements(program: Program, description: Description) -> list[Statement]:
    """Return what a description says of use and sensitivity, and which rules reflect it.

    A rule reflects a text that shares a word of some length with its name, its reason, or the attributes and
    values that its conditions test. That is a hint for whoever reviews, not a proof of anything.
    """
    words = dict(_rule_words(program))
    found = []
    for term in _TOLD:
        for text in description.rai.get(term, ()):
            told = _words(text)
            rules = tuple(sorted(name for name, known in words.items() if told & known))
            found.append(Statement(term, text, rules))
    return found


def _rule_words(program: Program) -> Iterator[tuple[str, frozenset[str]]]:
    from gradwarden.policy.comparing.parts import parts_of
    from gradwarden.policy.evaluation.phrasing import Phrasing

    phrasing = Phrasing(program)
    texts: dict[str, list[str]] = {}
    for part in parts_of(program):
        if part.level == "hard":
            texts.setdefault(part.name, [part.name]).extend(map(phrasing.condition, part.conditions))
    reasons = {rule.name: rule.because for rule in program.grants}
    reasons |= {rule.name: rule.because for rule in program.limits}
    reasons |= {rule.name: rule.because for rule in program.modulations}
    reasons |= {rule.name: rule.because for rule in program.assertions}
    for name, told in texts.items():
        told.append(reasons.get(name, ""))
    for name, told in texts.items():
        yield name, _words(" ".join(told))


def _words(text: str) -> frozenset[str]:
    """Return the words of a text that say something, without the endings of plurals."""
    found = re.findall(r"[a-z0-9]{3,}", text.lower().replace("_", " "))
    return frozenset(word[:-1] if word.endswith("s") else word for word in found if word not in _FILLERS)
