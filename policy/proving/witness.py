"""Concrete examples: out of a model of the solver, into the solver, and as a person reads them.

A witness is what a data set and a run would supply, so that the reference evaluator can be asked about it.
Nothing is shown to a user that the evaluator has not confirmed (`confirm`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from gradwarden.policy.context import EPOCH_DAY, Context
from gradwarden.policy.decimals import unscaled
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.values import Fault, encode_number, encode_value, is_absent
from gradwarden.policy.program import Program
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import AttributeInput, Inputs, SignalInput
from gradwarden.policy.proving.smt import TRUE, Truth, negation, z3

Holds = Callable[[Mapping[str, object], Context], bool]
"""Whether the reference evaluator agrees that an example, in a context, shows what was asked for."""


class DisagreementError(GradwardenError):
    """The encoding and the evaluator give different decisions: a fault of gradwarden, not of the policy."""

    code = "GW651"


@dataclass(frozen=True)
class Witness:
    """One example and the context it is decided in. Numbers are ints, floats where exact, else Decimals."""

    metadata: Mapping[str, object]
    context: Context

    def to_json(self) -> str:
        """Return the metadata as JSON text that `gradwarden explain --example -` reads."""
        return json.dumps(dict(self.metadata), default=float)

    def command(self, policy: str, program: Program) -> str:
        """Return the command line that explains this example under a policy."""
        words = ["gradwarden", "explain", policy, "--example", "-", *self.options(program)]
        return f"echo {shlex.quote(self.to_json())} | {shlex.join(words)}"

    def options(self, program: Program) -> Iterator[str]:
        """Yield the options of `explain` that give the context; what is as by default is left out."""
        context = self.context
        for name in ("step", "epoch", "exposures"):
            if getattr(context, name):
                yield from (f"--{name}", str(getattr(context, name)))
        if context.at is not None and partition(program).uses_today:
            yield from ("--at", context.at.isoformat())
        declared = {spec.name for spec in program.signals}
        for name, value in sorted(context.signals.items()):
            if name in declared:
                yield from ("--set", f"{name}={value}")
        private = {limit.name for limit in program.limits if limit.privacy is not None}
        for rule in sorted(context.spent & private):
            yield from ("--spent", rule)

    def context_json(self, program: Program) -> dict[str, Any]:
        """Return the context as JSON data; the day only where the program reads it."""
        context = self.context
        at = context.at if partition(program).uses_today else None
        return {
            "step": context.step,
            "epoch": context.epoch,
            "at": at and at.isoformat(),
            "exposures": context.exposures,
            "signals": {name: float(value) for name, value in sorted(context.signals.items())},
            "spent": sorted(context.spent),
        }


# --- out of a model -----------------------------------------------------------------------------------------


def read_witness(model: Any, inputs: Inputs) -> Witness:
    """Return the example of a model."""
    metadata = {
        name: _value(model, made)
        for (name, _), made in inputs.attributes.items()
        if _holds(model, made.present)
    }
    clocks = {name: _int(model, whole) for name, whole in inputs.clocks.items()}
    signals = {
        name: number(_int(model, made.whole), made.places)
        for name, made in inputs.signals.items()
        if _holds(model, made.given)
    }
    spent = frozenset(rule for rule, truth in inputs.spent.items() if _holds(model, truth))
    at = EPOCH_DAY + timedelta(clocks["today"])
    return Witness(
        metadata, Context(clocks["step"], clocks["epoch"], at, clocks["exposures"], signals, spent)
    )


def _value(model: Any, made: AttributeInput) -> object:
    match made.spec.type:
        case "bool":
            return _holds(model, made.flag)
        case "number":
            return number(_int(model, made.whole), made.spec.places)
        case "date":
            return (EPOCH_DAY + timedelta(_int(model, made.whole))).isoformat()
        case "set":
            return [word for word, flag in made.members.items() if _holds(model, flag)]
        case _:
            assert made.choice is not None
            return made.choice.read(model)


def number(value: int, places: int) -> Any:
    """Return a scaled number as metadata that encode to it at any number of places up to its own."""
    exact = unscaled(value, places)
    if exact == int(exact):
        return int(exact)
    near = float(exact)
    same = all(_encoded(near, p) == _encoded(exact, p) for p in range(places + 1))
    return near if same else exact


def _encoded(value: float | Decimal, places: int) -> int:
    return encode_number(value, places, -(2**63), 2**63)


def _holds(model: Any, truth: Truth) -> bool:
    return bool(z3.is_true(model.eval(truth, model_completion=True)))


def _int(model: Any, whole: Any) -> int:
    return int(model.eval(whole, model_completion=True).as_long())


# --- into the solver ----------------------------------------------------------------------------------------


def pin(inputs: Inputs, metadata: Mapping[str, object], context: Context) -> list[Truth]:
    """Return what fixes the inputs to an example that fits the union of the schemas, and to a context.

    Raises Fault where a value fits no declaration of its attribute.
    """
    pinned: list[Truth] = []
    for name in {name for name, _ in inputs.attributes}:
        made = inputs.named(name)
        raw = metadata.get(name)
        if is_absent(raw):
            pinned += [negation(one.present) for one in made]
        else:
            pinned += _pinned(made, raw)
    for name, signal in inputs.signals.items():
        pinned += _pinned_signal(signal, context.signals.get(name))
    clocks = {
        "step": context.step,
        "epoch": context.epoch,
        "today": context.today or 0,
        "exposures": context.exposures,
    }
    pinned += [whole == clocks[name] for name, whole in inputs.clocks.items()]
    pinned += [t if rule in context.spent else negation(t) for rule, t in inputs.spent.items()]
    return pinned


def _pinned(made: Sequence[AttributeInput], raw: object) -> list[Truth]:
    """Fix the input whose type the value has; the others of the name are absent."""
    fault = Fault("unknown_attribute", "no program declares it")
    for one in made:
        try:
            fixed = _fixed(one, raw)
        except Fault as caught:
            fault = caught
            continue
        return [one.present, fixed, *(negation(other.present) for other in made if other is not one)]
    raise fault


def _fixed(made: AttributeInput, raw: object) -> Truth:
    value = encode_value(made.spec, raw)
    match made.spec.type:
        case "bool":
            return made.flag if value else negation(made.flag)
        case "number" | "date":
            return made.whole == int(value)
        case "set":
            return z3.And(
                [
                    flag == bool(int(value) >> code & 1)
                    for code, flag in enumerate(made.members[word] for word in made.spec.values)
                ]
            )
        case _:
            assert made.choice is not None
            return made.choice.equals(made.spec.values[int(value)] if made.spec.values else str(value))


def _pinned_signal(made: SignalInput, raw: object) -> list[Truth]:
    if raw is None:
        # Where all programs agree on the default, a signal that is not supplied is one that has that value.
        return [made.whole == made.default if made.given is TRUE else negation(made.given)]
    value = encode_number(raw, made.places, made.lo, made.hi)
    return [made.given, made.whole == min(max(value, made.lo), made.hi)]


# --- held against the evaluator -----------------------------------------------------------------------------


def confirm(encoding: Encoding, model: Any) -> Witness | None:
    """Return the example of a model after deciding it with the reference evaluator.

    The encoding must be one of the whole program, without switches. Returns None where the model takes
    outcomes of string tests that z3 could only guess. Raises DisagreementError where the decision is another.
    """
    witness = read_witness(model, encoding.inputs)
    decision = decide(encoding.program, witness.metadata, witness.context)
    micro = tuple(_int(model, weight) for weight in encoding.weights)
    verdict = next(name for name, truth in encoding.verdicts.items() if _holds(model, truth))
    listed = tuple(sorted(rule for rule, truth in encoding.matched.items() if _holds(model, truth)))
    if (decision.verdict, decision.micro, decision.rules) == (verdict, micro, listed):
        return witness
    if encoding.inputs.approximate:
        return None
    raise DisagreementError(
        f"the solver and the evaluator disagree about {witness.to_json()} under `{encoding.program.name}`",
        help="this is a bug in gradwarden; please report it with the policy",
    )
