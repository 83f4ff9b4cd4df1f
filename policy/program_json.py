"""The JSON form of a program: canonical (RFC 8785), strict to read; its schema is `program.schema.json`.

Every field is always written, but for `recorded`, `hold_out` of limits, and `below` of guards, where there is
none. A condition or numeric expression is an object with one key that names its kind: `{"and": […]}`,
`{"compare": {"op": "ge", "left": {"attribute": "lines"}, "right": {"number": 3}}}`. The digest of a
program is the SHA-256 of these bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

import rfc8785

from gradwarden.policy import program as p
from gradwarden.policy.errors import Diagnostic, PolicyError

MAX_BYTES = 64 << 20
"""The largest program that is read."""

_SHOWN = 20

Json = dict[str, Any]


def program_to_json(program: p.Program) -> str:
    """Return the canonical JSON text of a program."""
    return program_to_bytes(program).decode("utf-8")


def program_to_bytes(program: p.Program) -> bytes:
    return rfc8785.dumps(program_to_data(program))


def program_digest(program: p.Program) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of a program."""
    return sha256(program_to_bytes(program)).hexdigest()


def program_to_data(program: p.Program) -> Json:
    """Return a program as plain JSON data."""
    return {
        "format": p.FORMAT,
        "name": program.name,
        "version": program.version,
        "language": program.language,
        "max_weight": program.max_weight,
        "attributes": [_plain(spec) for spec in program.attributes],
        "signals": [_plain(spec) for spec in program.signals],
        "bands": [_plain(band) for band in program.bands],
        "grants": [_rule(rule, "when") for rule in program.grants],
        "limits": [_limit(rule) for rule in program.limits],
        "modulations": [_rule(rule, "when") for rule in program.modulations],
        "waivers": [_rule(rule, "when") for rule in program.waivers],
        "assertions": [_rule(rule, "when", "then") for rule in program.assertions],
        "starvation": [_unusual(guard, below=0) for guard in program.starvation],
        "gradient_caps": [_plain(cap) for cap in program.gradient_caps],
        "maintained": [_plain(rule) for rule in program.maintained],
        **({"recorded": program.recorded} if program.recorded else {}),
        "semantics": program.semantics,
        "model_map": program.model_map,
    }


def program_from_json(text: str | bytes, name: str = "program") -> p.Program:
    """Read a program from its canonical JSON; `name` is used in messages.

    Raises PolicyError where the text is not JSON, repeats a key, breaks the schema, is not byte for byte the
    canonical form, or describes rules that do not fit together.
    """
    from gradwarden.policy.program_check import program_faults

    try:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
    except UnicodeEncodeError:
        raise _fault("GW440", f"`{name}` is not valid UTF-8") from None
    read = _read(data, name)
    _check_schema(read, name)
    program = _program(read)
    try:
        canonical = program_to_bytes(program)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError):
        canonical = b""
    if canonical != data:
        help = "write it with `gradwarden build`, and do not edit it"
        raise _fault("GW442", f"`{name}` is not in canonical form", help)
    faults = [Diagnostic("GW443", f"in `{name}`: {fault}") for fault in program_faults(program)]
    if faults:
        raise PolicyError(faults[:_SHOWN])
    return program


# --- writing ------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Json:
    """Return a dataclass without conditions as JSON data."""
    return {key: _listed(item) for key, item in asdict(value).items()}


def _listed(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return [_listed(x) for x in item]
    if isinstance(item, dict):
        return {key: _listed(x) for key, x in item.items()}
    return item


def _rule(rule: Any, *conditions: str) -> Json:
    data = {key: getattr(rule, key) for key in rule.__slots__}
    for key, value in data.items():
        if key in conditions:
            data[key] = condition_to_data(value)
        elif isinstance(value, tuple):
            data[key] = [x if isinstance(x, int) else _plain(x) for x in value]
    return data


def _limit(limit: p.Limit) -> Json:
    return {
        "name": limit.name,
        "kind": limit.kind,
        "clauses": [_rule(clause, "when") for clause in limit.clauses],
        "level": limit.level,
        "because": limit.because,
        "privacy": None if limit.privacy is None else _unusual(limit.privacy, noise="", spent="refuse"),
        **({"hold_out": limit.hold_out} if limit.hold_out else {}),
    }


def _unusual(value: Any, **usual: str | int) -> Json:
    """Return a dataclass as JSON data without what is as ever: who does not say it keeps the digest."""
    return {key: item for key, item in _plain(value).items() if key not in usual or item != usual[key]}


def condition_to_data(condition: p.Condition) -> Json:
    """Return a condition as JSON data."""
    match condition:
        case p.Constant(value):
            return {"constant": value}
        case p.Not(term):
            return {"not": condition_to_data(term)}
        case p.And(terms):
            return {"and": [condition_to_data(term) for term in terms]}
        case p.Or(terms):
            return {"or": [condition_to_data(term) for term in terms]}
        case p.Has(attribute):
            return {"has": attribute}
        case p.Flag(attribute):
            return {"flag": attribute}
        case p.OneOf(attribute, codes):
            return {"one_of": {"attribute": attribute, "codes": list(codes)}}
        case p.SetTest(attribute, test, codes):
            return {"set": {"attribute": attribute, "test": test, "codes": list(codes)}}
        case p.Text(attribute, kind, operands):
            return {"text": {"attribute": attribute, "test": kind, "operands": list(operands)}}
        case p.Compare(op, left, right):
            return {"compare": {"op": op, "left": _number_data(left), "right": _number_data(right)}}
        case p.Spent(rule):
            return {"spent": rule}
        case p.Every(steps):
            return {"every": steps}


def _number_data(expr: p.NumericExpr) -> Json:
    match expr:
        case p.Number(value):
            return {"number": value}
        case p.AttributeValue(name):
            return {"attribute": name}
        case p.SignalValue(name):
            return {"signal": name}
        case p.ClockValue(name):
            return {"clock": name}
        case p.Arithmetic(op, left, right):
            return {op: [_number_data(left), _number_data(right)]}


# --- reading ------------------------------------------------------------------------------------------------


def _fault(code: str, message: str, help: str | None = None) -> PolicyError:
    return PolicyError([Diagnostic(code, message, help=help)])


def _read(data: bytes, name: str) -> Any:
    if len(data) > MAX_BYTES:
        raise _fault("GW440", f"`{name}` is larger than {MAX_BYTES >> 20} MiB")

    def unique(pairs: Sequence[tuple[str, Any]]) -> Json:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key is repeated")
        return keys

    def refused(word: str) -> None:
        raise ValueError(f"`{word}` is not a JSON number")

    def decimal(word: str) -> float | int:
        value = float(word)  # to the schema 1.0 is an integer; let it be one, in a form that is not canonical
        return int(value) if value.is_integer() else value

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refused, parse_float=decimal
        )
    except (ValueError, RecursionError) as error:
        match error:
            case RecursionError():
                reason = "it is nested too deeply"
            case UnicodeDecodeError():
                reason = f"it is not UTF-8 text, as byte {error.start} shows"
            case _:
                reason = str(error).lower()
        message = f"`{name}` is not a JSON program: {reason}"
        raise _fault("GW440", message, "give a policy, or what `gradwarden build -o` wrote") from None


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    text = (files("gradwarden.policy") / "schemas" / "program.schema.json").read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def _check_schema(data: Any, name: str) -> None:
    try:
        errors = sorted(_validator().iter_errors(data), key=lambda error: str(error.json_path))
    except RecursionError:
        raise _fault("GW441", f"`{name}` is nested too deeply for a program") from None
    if errors:
        raise PolicyError(
            Diagnostic("GW441", f"`{name}` is not a program: at `{e.json_path}`: {_brief(e.message)}")
            for e in errors[:_SHOWN]
        )


def _brief(message: str) -> str:
    printed = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message[:200])
    return printed if len(message) <= 200 else printed[:197] + "..."


def _program(data: Json) -> p.Program:
    return p.Program(
        name=data["name"],
        version=data["version"],
        language=data["language"],
        max_weight=data["max_weight"],
        attributes=tuple(p.AttributeSpec(**_tuples(x)) for x in data["attributes"]),
        signals=tuple(p.SignalSpec(**x) for x in data["signals"]),
        bands=tuple(_band(x) for x in data["bands"]),
        grants=tuple(p.Grant(**_conditions(x)) for x in data["grants"]),
        limits=tuple(_read_limit(x) for x in data["limits"]),
        modulations=tuple(_modulation(x) for x in data["modulations"]),
        waivers=tuple(p.Waiver(**_conditions(x)) for x in data["waivers"]),
        assertions=tuple(p.Assertion(**_conditions(x)) for x in data["assertions"]),
        starvation=tuple(p.Starvation(**x) for x in data["starvation"]),
        gradient_caps=tuple(p.GradientCap(**x) for x in data["gradient_caps"]),
        maintained=tuple(_maintenance(x) for x in data["maintained"]),
        recorded=data.get("recorded", 0),
        semantics=data["semantics"],
        model_map=data["model_map"],
    )


def _tuples(data: Mapping[str, Any]) -> Json:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _conditions(data: Mapping[str, Any]) -> Json:
    plain = _tuples(data)
    return plain | {key: _condition(plain[key]) for key in ("when", "then") if key in plain}


def _band(data: Json) -> p.Band:
    selectors = tuple(p.Selector(**_tuples(x)) for x in data["selectors"])
    return p.Band(data["name"], selectors, tuple(data["parameters"]))


def _read_limit(data: Json) -> p.Limit:
    clauses = tuple(p.Clause(**_conditions(x)) for x in data["clauses"])
    terms = data["privacy"]
    privacy = None if terms is None else p.PrivacyTerms(**_tuples(terms))
    held = data.get("hold_out", 0)
    return p.Limit(data["name"], data["kind"], clauses, data["level"], data["because"], privacy, held)


def _maintenance(data: Json) -> p.Maintenance:
    terms = data["rehearsal"]
    rehearsal = None if terms is None else p.Rehearsal(**terms)
    return p.Maintenance(**_tuples(data) | {"rehearsal": rehearsal})


def _modulation(data: Json) -> p.Modulation:
    scalings = tuple(p.Scaling(**x) for x in data["scalings"])
    return p.Modulation(**_conditions(data) | {"scalings": scalings})


def _condition(data: Json) -> p.Condition:
    ((kind, value),) = data.items()
    return _CONDITIONS[kind](value)


def _terms(values: list[Json]) -> tuple[p.Condition, ...]:
    return tuple(_condition(value) for value in values)


def _number(data: Json) -> p.NumericExpr:
    ((kind, value),) = data.items()
    if kind in _ARITHMETIC:
        return p.Arithmetic(_ARITHMETIC[kind], _number(value[0]), _number(value[1]))
    return _NUMBERS[kind](value)


_CONDITIONS: dict[str, Callable[[Any], p.Condition]] = {
    "constant": p.Constant,
    "not": lambda value: p.Not(_condition(value)),
    "and": lambda value: p.And(_terms(value)),
    "or": lambda value: p.Or(_terms(value)),
    "has": p.Has,
    "flag": p.Flag,
    "one_of": lambda value: p.OneOf(**_tuples(value)),
    "set": lambda value: p.SetTest(**_tuples(value)),
    "text": lambda value: p.Text(**_tuples(value)),
    "compare": lambda value: p.Compare(value["op"], _number(value["left"]), _number(value["right"])),
    "spent": p.Spent,
    "every": p.Every,
}

_ARITHMETIC: dict[str, Literal["add", "sub", "mul"]] = {"add": "add", "sub": "sub", "mul": "mul"}

_NUMBERS: dict[str, Callable[[Any], p.NumericExpr]] = {
    "number": p.Number,
    "attribute": p.AttributeValue,
    "signal": p.SignalValue,
    "clock": p.ClockValue,
}
