"""Croissant (MLCommons) descriptions of data sets: what they say of fields, and attributes put into them.

Croissant is JSON-LD; versions 1.0 and 1.1 are read. A record set has fields, each with a name and a data type
of schema.org or of Croissant. Keys may carry a prefix (`cr:`, `sc:`, `rai:`) or be full addresses; only their
last part is looked at, and for the responsible-AI vocabulary the prefix as well.
Source: the Croissant and Croissant RAI specifications at https://docs.mlcommons.org/croissant/docs/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gradwarden.policy.evaluation.values import decode_value
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Program
from gradwarden.policy.record_schema import number_words

RECORDS = "examples"
"""The name of the record set that `record_sets` makes."""

MANIFEST = "manifest"
"""The `@id` of the file that the fields are taken from: one must be declared under `distribution`."""

CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "column": "cr:column",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "key": "cr:key",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "repeated": "cr:repeated",
    "sc": "https://schema.org/",
    "source": "cr:source",
}

TYPES = {"bool": "sc:Boolean", "enum": "sc:Text", "set": "sc:Text", "date": "sc:Date", "string": "sc:Text"}

# --- writing ------------------------------------------------------------------------------------------------


def record_sets(program: Program) -> dict[str, Any]:
    """Return the attributes of a program as Croissant 1.0 record sets, to be joined into a description.

    Values of enumerations and sets become record sets of their own (`sc:Enumeration`) that fields refer to.
    """
    listed = [spec for spec in program.attributes if spec.type in ("enum", "set")]
    records = {
        "@type": "cr:RecordSet",
        "@id": RECORDS,
        "name": RECORDS,
        "description": f"Metadata of training examples, as policy {program.name} version {program.version} "
        f"(sha256 {program.digest}) declares them.",
        "field": [_field(spec) for spec in program.attributes],
    }
    return {"@context": dict(CONTEXT), "recordSet": [*map(_values, listed), records]}


def _field(spec: AttributeSpec) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{spec.name}",
        "name": spec.name,
        "description": _words(spec),
        "dataType": _type(spec),
        "source": {"fileObject": {"@id": MANIFEST}, "extract": {"column": spec.name}},
    }
    if spec.type == "set":
        field["repeated"] = True
    if spec.type in ("enum", "set"):
        field["references"] = {"field": {"@id": f"{spec.name}_values/name"}}
    return field


def _values(spec: AttributeSpec) -> dict[str, Any]:
    name = f"{spec.name}_values"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"The values that `{spec.name}` may have.",
        "dataType": "sc:Enumeration",
        "key": {"@id": f"{name}/name"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/name",
                "name": "name",
                "description": "The value.",
                "dataType": "sc:Text",
            }
        ],
        "data": [{f"{name}/name": value} for value in spec.values],
    }


def _type(spec: AttributeSpec) -> str:
    return TYPES.get(spec.type) or ("sc:Float" if spec.places else "sc:Integer")


def _words(spec: AttributeSpec) -> str:
    match spec.type:
        case "number":
            words = number_words(spec)
        case "date":
            words = f"{decode_value(spec, spec.lo)} to {decode_value(spec, spec.hi)}"
        case "enum":
            words = "one of its values"
        case "set":
            words = "any of its values"
        case "string":
            words = f"at most {spec.hi} characters"
        case _:
            words = "true or false"
    return words + (" (optional)" if spec.optional else "")


# --- reading ------------------------------------------------------------------------------------------------


@frozen
class Field:
    """A field of a record set. types: the last parts of its data types. values: those it refers to, if any.

    many: whether a record has a list of them. parts: whether it is made of fields of its own.
    """

    name: str
    types: tuple[str, ...]
    many: bool
    parts: bool
    values: tuple[str, ...] | None


@frozen
class RecordSet:
    name: str
    fields: tuple[Field, ...]


@frozen
class Description:
    """What is read of a Croissant description. rai: properties of the RAI vocabulary, with their texts."""

    name: str
    record_sets: tuple[RecordSet, ...]
    rai: Mapping[str, tuple[str, ...]]


def read_description(document: Any) -> Description:
    """Return what a Croissant description says; parts that are not of the expected form are left out."""
    top = _plain(document)
    sets = [_plain(entry) for entry in _list(top.get("recordSet"))]
    values = _listed_values(sets)
    return Description(
        name=_text(top.get("name")),
        record_sets=tuple(
            RecordSet(_name(entry), tuple(_read_fields(entry, values)))
            for entry in sets
            if "Enumeration" not in _types(entry)
        ),
        rai=dict(_read_rai(document)),
    )


def _plain(node: Any) -> dict[str, Any]:
    """Return an object with the last parts of its keys; none for what is no object."""
    return {_last(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def _last(word: str) -> str:
    return re.split(r"[:/#]", word)[-1] or word


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _text(value: Any) -> str:
    """Return a text that may be tagged with a language; the first, where there are several."""
    for entry in _list(value):
        found = entry.get("@value") if isinstance(entry, dict) else entry
        if isinstance(found, str):
            return found
    return ""


def _name(node: Mapping[str, Any]) -> str:
    return _text(node.get("name")) or _last(_text(node.get("@id")))


def _types(node: Mapping[str, Any]) -> tuple[str, ...]:
    named = [entry.get("@id") if isinstance(entry, dict) else entry for entry in _list(node.get("dataType"))]
    return tuple(_last(entry) for entry in named if isinstance(entry, str))


def _read_fields(entry: Mapping[str, Any], values: Mapping[str, tuple[str, ...]]) -> Iterator[Field]:
    for raw in _list(entry.get("field")):
        node = _plain(raw)
        names = [_name(node), _last(_text(node.get("@id")))]
        # In 1.0 examples the name of a field is sometimes `records/name`; its last part is the column.
        name = next((_last(name) for name in names if name), "")
        reference = _plain(_plain(node.get("references")).get("field"))
        many = node.get("repeated") is True or node.get("isArray") is True
        parts = bool(_list(node.get("subField")))
        yield Field(name, _types(node), many, parts, values.get(_text(reference.get("@id"))))


def _listed_values(sets: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the texts that are listed in the descriptions of enumerations, by the `@id` of their field."""
    found: dict[str, list[str]] = {}
    for entry in sets:
        for row in _list(entry.get("data")):
            for key, value in row.items() if isinstance(row, dict) else ():
                if isinstance(value, str):
                    found.setdefault(key, []).append(value)
    return {key: tuple(values) for key, values in found.items()}


_RAI = re.compile(r"^(?:rai:|https?://mlcommons\.org/croissant/RAI/)(\w+)$")


def _read_rai(document: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, value in document.items() if isinstance(document, dict) else ():
        match = _RAI.match(key)
        if match:
            texts = tuple(text for entry in _list(value) if (text := _text(entry)))
            yield match[1], texts
