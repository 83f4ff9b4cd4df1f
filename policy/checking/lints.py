"""Warnings about a policy that compiles but may not mean what its author thinks."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.checking.scope import Scope
from gradwarden.policy.checking.types import Attribute
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.program import Grant
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

_SHOWN = 8
"""How many names a finding lists."""


def lint(scope: Scope, header: s.Header, grants: Sequence[Grant]) -> None:
    """Warn about declarations that nothing uses and bands that nothing can reach."""
    _language(scope, header)
    _reached(scope, header.name.span, grants)
    _unused(scope)


def _language(scope: Scope, header: s.Header) -> None:
    if header.language is None:
        help = f"write `policy {header.name.text} version {header.version.span.text} language 1`"
        scope.faults.warn("GW501", "the language version is not pinned", header.span, help)


def _reached(scope: Scope, where: Span, grants: Sequence[Grant]) -> None:
    enforced = [grant for grant in grants if grant.level == "hard"]
    if not enforced:
        help = "what no `depth` rule grants is not learned"
        scope.faults.warn("GW508", "no rule grants anything, so nothing will be learned", where, help)
        return
    for index, band in enumerate(scope.band_names):
        if not any(grant.weights[index] for grant in enforced):
            help = "name it in a `depth` rule, if it is to learn anything"
            if band == QUARANTINE:
                help = "`reach all` leaves it out; name it in a `depth` rule"
            scope.faults.warn("GW503", f"no rule grants the band `{band}`", scope.band_spans[band], help)


def _unused(scope: Scope) -> None:
    _unread(scope)
    for name, signal in scope.signals.items():
        if name not in scope.used:
            scope.faults.warn("GW509", f"no rule reads the signal `{name}`", signal.span)
    for name, item in scope.named.items():
        if name not in scope.used:
            scope.faults.warn("GW511", f"no rule uses the condition `{name}`", item.name.span)


def _unread(scope: Scope) -> None:
    """Note the attributes that no rule reads, once per file.

    It is no warning: an attribute that records carry must be declared, whether or not a rule reads it.
    """
    unread: dict[str, list[Attribute]] = {}
    for name, attribute in scope.attributes.items():
        if name not in scope.used:
            unread.setdefault(attribute.span.source.name, []).append(attribute)
    for attributes in unread.values():
        names = [f"`{attribute.spec.name}`" for attribute in attributes]
        if len(names) > _SHOWN + 1:
            names = [*names[:_SHOWN], f"{len(names) - _SHOWN} more attributes"]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        help = "leave out what no record carries; a record with an undeclared attribute is invalid"
        scope.faults.note("GW504", f"no rule reads {listed}", attributes[0].span, help)
