"""Model maps: every parameter of a model with its distance from the output, and the binding of bands to them.

A map is data. It is derived once from a live model (`gradwarden.runtime.ModelMap.from_module`), saved as
YAML (`schemas/model_map.schema.json`) and then serves to compile and check policies without the model.

Depth is in millionths: 0 at the output, 1,000,000 at the input. Of N blocks, block i (0 nearest the input)
has depth (N-1-i)/N, so `top 25%` of twelve blocks is the last three; what precedes the blocks (embeddings,
stem) has depth 1,000,000 and what follows them (final norm, head) has depth 0. A tensor that a model uses in
several places is one parameter; it belongs to its deepest use and lists its other names as aliases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from typing import Any, Self

import jsonschema
import rfc8785
import yaml

from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE, Band, Selector
from gradwarden.policy.source import Span

FORMAT = "gradwarden/model-map/1"

MAX_BYTES = 64 << 20
"""The largest model map file that is read."""

MAX_DEPTH = 32
"""How many lists and mappings of a model map may stand in each other."""

_SHOWN = 3


@frozen
class Parameter:
    """One tensor of a model. `aliases` are other names of the same, tied tensor."""

    name: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()


@frozen
class Layer:
    """A module whose parameters share one depth.

    block: index in the repeated stack, 0 nearest the input; None for what stands outside the stack.
    depth: millionths, 0 at the output, 1,000,000 at the input.
    """

    name: str
    block: int | None
    depth: int
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class ModelMap:
    """All parameters of a model, by layer, from the input to the output."""

    model: str
    layers: tuple[Layer, ...]

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return 1 + max((layer.block for layer in self.layers if layer.block is not None), default=-1)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter once, from the input to the output."""
        return tuple(parameter for layer in self.layers for parameter in layer.parameters)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the map's data in canonical JSON (RFC 8785)."""
        return sha256(rfc8785.dumps(self.to_data())).hexdigest()

    def to_data(self) -> dict[str, Any]:
        """Return the map as the plain data that its YAML form holds."""
        return {
            "format": FORMAT,
            "model": self.model,
            "layers": [
                {
                    "name": layer.name,
                    "block": layer.block,
                    "depth": layer.depth,
                    "parameters": [
                        {"name": p.name, "shape": list(p.shape)}
                        | ({"aliases": list(p.aliases)} if p.aliases else {})
                        for p in layer.parameters
                    ],
                }
                for layer in self.layers
            ],
        }

    def to_yaml(self) -> str:
        """Return the map as YAML text that `from_yaml` reads back to an equal map."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, default_flow_style=None, width=110)

    @classmethod
    def from_data(cls, data: object, name: str = "model map") -> Self:
        """Return the map held by plain data. Raises PolicyError where they break the schema."""
        _check_schema(data, name)
        layers = tuple(_layer(entry) for entry in data["layers"])  # type: ignore[index]  # by the schema
        repeated = _repeated(n for layer in layers for p in layer.parameters for n in (p.name, *p.aliases))
        if repeated:
            raise PolicyError([_fault("GW402", f"`{name}` lists {_names(repeated, 'parameter')} twice")])
        return cls(data["model"], layers)  # type: ignore[index]  # by the schema

    @classmethod
    def from_yaml(cls, text: str, name: str = "model map") -> Self:
        """Read a map from YAML text; `name` is used in messages. Raises PolicyError."""
        if len(text) > MAX_BYTES:
            raise PolicyError([_fault("GW400", f"`{name}` is larger than {MAX_BYTES >> 20} MiB")])
        try:
            _check_events(text)
            data = yaml.load(text, Loader=_StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            raise PolicyError([_fault("GW400", f"`{where}` is not valid YAML: {problem}")]) from None
        return cls.from_data(data, name)


def bind(
    bands: Sequence[Band], model_map: ModelMap, spans: Mapping[str, Span] | None = None
) -> tuple[Band, ...]:
    """Return the bands with their parameters filled in, sorted by name.

    Name patterns choose first (a tied parameter also under its aliases), then block ranges, then fractions of
    the depth among what is left: `top f` takes depths below f, each `next f` the stretch that follows, a
    stretch that ends at 100% includes the input; `rest` takes whatever remains. `spans` says where each band
    is declared, so that faults can be told there.

    Raises PolicyError with a diagnostic for every parameter in two bands or in none, every band without
    parameters and every block range past the last block.
    """
    homes: dict[str, list[str]] = {parameter.name: [] for parameter in model_map.parameters}
    for kinds in (("names",), ("blocks",), ("top", "next"), ("rest",)):
        free = {name for name, owners in homes.items() if not owners}
        for band, parameter in _claims(bands, model_map, kinds):
            if parameter.name in free and band not in homes[parameter.name]:
                homes[parameter.name].append(band)
    where = dict(spans or {})
    faults = [*_range_faults(bands, model_map, where), *_home_faults(bands, homes, where)]
    if faults:
        raise PolicyError(faults)
    return tuple(
        replace(band, parameters=tuple(sorted(name for name, home in homes.items() if home == [band.name])))
        for band in bands
    )


def matches(pattern: str, name: str) -> bool:
    """Return whether a glob pattern covers a whole name: `*` is any run of characters, `?` is one.

    Takes time proportional to the product of the lengths, whatever the pattern.
    """
    at, mark, resume, star = 0, 0, 0, -1
    while at < len(name):
        if mark < len(pattern) and pattern[mark] == "*":
            star, resume, mark = mark, at, mark + 1
        elif mark < len(pattern) and pattern[mark] in ("?", name[at]):
            at, mark = at + 1, mark + 1
        elif star >= 0:
            resume += 1
            at, mark = resume, star + 1
        else:
            return False
    return not pattern[mark:].strip("*")


def _claims(
    bands: Sequence[Band], model_map: ModelMap, kinds: tuple[str, ...]
) -> Iterator[tuple[str, Parameter]]:
    cursor = 0
    for band in bands:
        for selector in band.selectors:
            if selector.kind not in kinds:
                continue
            start = 0 if selector.kind == "top" else cursor
            cursor = start + selector.amount
            for layer in model_map.layers:
                for parameter in layer.parameters:
                    if _chooses(selector, layer, parameter, start, cursor):
                        yield band.name, parameter


def _chooses(selector: Selector, layer: Layer, parameter: Parameter, start: int, end: int) -> bool:
    match selector.kind:
        case "names":
            names = (parameter.name, *parameter.aliases)
            return any(matches(pattern, name) for pattern in selector.patterns for name in names)
        case "blocks":
            return layer.block is not None and selector.lo <= layer.block <= selector.hi
        case "rest":
            return True
        case _:
            return start <= layer.depth < (end if end < SCALE else SCALE + 1)


def _range_faults(
    bands: Sequence[Band], model_map: ModelMap, spans: Mapping[str, Span]
) -> Iterator[Diagnostic]:
    for band in bands:
        for selector in band.selectors:
            if selector.kind == "blocks" and selector.hi >= model_map.blocks:
                have = f"blocks 0..{model_map.blocks - 1}" if model_map.blocks else "no blocks"
                yield _fault(
                    "GW406",
                    f"band `{band.name}` asks for blocks {selector.lo}..{selector.hi}, "
                    f"but `{model_map.model}` has {have}",
                    span=spans.get(band.name),
                )


def _home_faults(
    bands: Sequence[Band], homes: dict[str, list[str]], spans: Mapping[str, Span]
) -> Iterator[Diagnostic]:
    lost = [name for name, owners in homes.items() if not owners]
    if lost:
        yield _fault(
            "GW403",
            f"{_names(lost, 'parameter')} {'is' if len(lost) == 1 else 'are'} in no band",
            "give one band `rest`, or choose them by `names`",
            spans.get(bands[-1].name) if bands else None,
        )
    clashes: dict[tuple[str, ...], list[str]] = {}
    for name, owners in homes.items():
        if len(owners) > 1:
            clashes.setdefault(tuple(owners), []).append(name)
    for rivals, names in clashes.items():
        yield _fault(
            "GW404",
            f"{_names(names, 'parameter')} {'is' if len(names) == 1 else 'are'} in several bands: "
            + ", ".join(f"`{rival}`" for rival in rivals),
            "every parameter belongs to exactly one band",
            spans.get(rivals[0]),
        )
    for band in bands:
        if not any(band.name in owners for owners in homes.values()):
            yield _fault(
                "GW405",
                f"band `{band.name}` has no parameters",
                "other bands chose first, or nothing in the model matches its selectors",
                spans.get(band.name),
            )


def _check_schema(data: object, name: str) -> None:
    schema = json.loads((files("gradwarden.policy") / "schemas" / "model_map.schema.json").read_text("utf-8"))
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(data), key=lambda e: str(e.json_path))
    if errors:
        raise PolicyError(
            _fault("GW401", f"`{name}` is not a model map: at `{error.json_path}`: {_brief(error.message)}")
            for error in errors[:20]
        )


def _layer(entry: dict[str, Any]) -> Layer:
    return Layer(
        entry["name"],
        entry["block"],
        entry["depth"],
        tuple(
            Parameter(p["name"], tuple(p["shape"]), tuple(p.get("aliases", ()))) for p in entry["parameters"]
        ),
    )


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _names(names: Sequence[str], noun: str) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more}"


def _brief(message: str) -> str:
    return message if len(message) <= 200 else message[:197] + "..."


def _fault(code: str, message: str, help: str | None = None, span: Span | None = None) -> Diagnostic:
    return Diagnostic(code, message, span, help)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_events(text: str) -> None:
    """Refuse aliases, which can expand without bound, and deep nesting, before anything recurses over it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not allowed in a model map", event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", event)


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)


class _StrictLoader(_Loader):  # type: ignore[misc]  # one of two classes
    """YAML as plain data in which no key is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in _repeated(str(key) for key in keys):
            raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is repeated", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
