"""Reads the nodes of a YAML text strictly and collects what is wrong, so that all faults show at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from gradwarden.policy.errors import Diagnostic, did_you_mean
from gradwarden.policy.program import MAX_CEILING, SCALE
from gradwarden.policy.source import Span
from gradwarden.policy.testing.yaml_text import MAX_FAULTS, Node


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns nodes into plain values. What does not fit is a fault, and an empty value stands for it.

    At most MAX_FAULTS faults are kept.
    """

    faults: list[Diagnostic] = field(default_factory=list)

    def fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Diagnostic(code, message, span, help))

    def expected(self, node: Node, what: str, kind: str, help: str | None = None) -> None:
        self.fault("GW423", f"{what} must be {kind}, not {node.describe()}", node.span, help)

    def mapping(
        self, node: Node, what: str, known: tuple[str, ...] | None, required: tuple[str, ...] = ()
    ) -> dict[str, Node]:
        """Return the entries of a mapping; those not `known` are faults, as are required ones left out."""
        if not isinstance(node.value, dict):
            self.expected(node, what, "a mapping")
            return {}
        fields: dict[str, Node] = {}
        for key, (where, value) in node.value.items():
            if known is not None and key not in known:
                choices = "known here: " + ", ".join(f"`{word}`" for word in known)
                self.fault("GW420", f"{what} has no `{key}`", where.span, did_you_mean(key, known) or choices)
            else:
                fields[key] = value
        for key in required:
            if key not in fields and not self.misspelt(node, key, known or ()):
                self.fault("GW422", f"{what} needs `{key}`", node.span)
        return fields

    def misspelt(self, node: Node, key: str, known: tuple[str, ...]) -> bool:
        """Whether a key that is missing stands there under another name, which is reported as unknown."""
        if not isinstance(node.value, dict):
            return False
        return any(word not in known and did_you_mean(word, [key]) for word in node.value)

    def sequence(self, node: Node, what: str) -> tuple[Node, ...]:
        if not isinstance(node.value, tuple):
            self.expected(node, what, "a list")
            return ()
        return node.value

    def plain_mapping(self, node: Node | None, what: str) -> dict[str, object]:
        if node is None:
            return {}
        return {key: value.plain() for key, value in self.mapping(node, what, None).items()}

    def words(self, node: Node, what: str) -> list[tuple[str, Node]]:
        return [(self.text(item, f"an entry of {what}"), item) for item in self.sequence(node, what)]

    def text(self, node: Node, what: str) -> str:
        if isinstance(node.value, str):
            return node.value
        self.expected(node, what, "a text", "put it in quotes" if is_scalar(node) else None)
        return ""

    def count(self, node: Node, what: str) -> int:
        if isinstance(node.value, int) and not isinstance(node.value, bool) and 0 <= node.value < 2**53:
            return node.value
        self.fault("GW423", f"{what} must be a whole number from 0", node.span)
        return 0

    def number(self, node: Node, what: str) -> float:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return node.value
        self.expected(node, what, "a number")
        return 0.0

    def date(self, node: Node) -> date | None:
        if isinstance(node.value, date):
            return node.value
        self.fault("GW423", "`at` must be a date such as 2026-01-31", node.span)
        return None

    def weight(self, node: Node, band: str) -> int:
        """Return an expected weight in millionths, taken from its text so that no decimal is rounded."""
        if not isinstance(node.value, int | float) or isinstance(node.value, bool):
            self.expected(node, f"the weight of `{band}`", "a number")
            return 0
        return self.micro(node, node.span.text, band)

    def micro(self, node: Node, text: str, band: str) -> int:
        """Return a weight in millionths from the text of a decimal."""
        try:
            value = Decimal(text)
        except ArithmeticError:
            value = Decimal("NaN")
        if value.is_finite() and 0 <= value <= MAX_CEILING // SCALE:
            micro = value * SCALE
            if micro == micro.to_integral_value():
                return int(micro)
        self.fault("GW423", f"the weight of `{band}` must lie in 0..4, with at most 6 decimals", node.span)
        return 0

    def choice(self, node: Node, what: str, known: tuple[str, ...]) -> str:
        word = self.text(node, what)
        if isinstance(node.value, str):
            self.check_choice(word, node, what, known)
        return word

    def check_choice(self, word: str, node: Node, what: str, known: tuple[str, ...]) -> None:
        if word not in known:
            choices = "one of " + ", ".join(f"`{choice}`" for choice in known)
            self.fault("GW427", f"`{word}` is not {what}", node.span, did_you_mean(word, known) or choices)

    def unique(self, names: Iterable[tuple[str, Span]]) -> None:
        """Report names that occur twice."""
        seen: dict[str, Span] = {}
        for name, span in names:
            if name in seen:
                other = f"the other is on line {seen[name].line}"
                self.fault("GW426", f"two cases are named `{name}`; {other}", span)
            seen.setdefault(name, span)


def is_scalar(node: Node) -> bool:
    return not isinstance(node.value, dict | tuple)
