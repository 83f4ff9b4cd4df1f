"""Renders a report as one HTML page: no scripts, nothing fetched, every text escaped.

What ledgers and policies say (names, reasons, origins) was written by others. Jinja2 escapes it, characters
that a reader would obey (controls, changes of direction) are replaced, and the page's own policy
(Content-Security-Policy) forbids scripts and anything from elsewhere, should one get in all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from gradwarden.runtime.errors import RuntimeGovernanceError
from gradwarden.runtime.records.branches import told
from gradwarden.runtime.report.account import Account, of_kind
from gradwarden.runtime.report.chart import heaviest, line, stack

COLOURS = ("#0b5394", "#b45309", "#166534", "#9d174d", "#5b21b6", "#0f766e", "#57534e")
"""Of areas, in order; each stands out from white by 4.5 to 1 at least (WCAG 2.2)."""

GRANTING = ("depth", "waive")

VERDICT_WORDS = {
    "admit": "admitted in full",
    "limit": "limited",
    "defer": "deferred",
    "refuse": "refused",
    "invalid": "invalid",
}

BROKEN = "\N{REPLACEMENT CHARACTER}"

MOST_EVENTS = 60
"""Events that are listed: the first and the last."""


def render(account: Account, verdict: Mapping[str, Any], meaning: str) -> str:
    """Return the page. verdict: what `verify --format json` says. meaning: of its status, in words."""
    steps, groups = account.steps, heaviest(account.shaping)
    shown = [event for event in account.events if event["kind"] != "anchored"]
    left_out = max(0, len(shown) - MOST_EVENTS)
    if left_out:
        shown = [*shown[: MOST_EVENTS // 2], *shown[-MOST_EVENTS // 2 :]]
    return str(
        _template().render(
            account=account,
            verdict=verdict,
            meaning=meaning,
            charts=[(shaping, stack(shaping, steps, groups)) for shaping in account.shaping],
            groups=groups,
            stopping=[rule for rule in account.rules if rule.stopped and rule.kind not in GRANTING],
            verdict_words=VERDICT_WORDS,
            budgets=[(spending, line(spending, steps)) for spending in account.spending],
            guards=of_kind(account.rules, "memorization"),
            events=[(event, describe(event)) for event in shown],
            left_out=left_out,
            saved=verdict["facts"].get("checkpoints", [])[-MOST_EVENTS:],
            colours=COLOURS,
        )
    )


def describe(event: Mapping[str, Any]) -> str:
    """Say in words what an event is."""
    body, kind = event["body"], event["kind"]
    match kind:
        case "opened":
            return f"the run began at {body['at']}"
        case "policy_changed":
            policy = body["policy"]
            return f"the policy became {policy['name']} version {policy['version']}"
        case "checkpoint":
            return f"weights were saved as {body['file']}, SHA-256 {body['digest']}"
        case "expired":
            return f"{body['rule']} began to stop examples: {body['count']:,}"
        case "starved":
            return f"no example had reached {body['band']} for {body['steps']:,} steps: {body['action']}"
        case "halted":
            return f"{body['rule']} halted the run after {body['steps']:,} steps"
        case "derived":
            return f"the run goes on from {body['origin']}, which had {body['size']:,} entries"
        case "rewound":
            abandoned = told(tuple((first, end) for first, end in body["abandoned"]))
            return f"the run went back to {body['checkpoint']['file']}; abandoned steps: {abandoned}"
        case "resumed":
            return f"the run was resumed after {body['from_size']:,} entries; {body['cut']:,} bytes set aside"
        case "sealed":
            return f"the run ended: {body['committed']:,} steps committed, {body['refused']:,} refused"
        case "rotated":
            return "the key of the ledger was handed over"
        case "revoked":
            return "a key of the ledger was revoked"
        case _:
            return str(kind)


def _visible(value: Any) -> Any:
    """Return text whose control characters and changes of direction are replaced, escaped or not."""
    if not isinstance(value, str):
        return value
    return type(value)("".join([c if c.isprintable() or c == "\n" else BROKEN for c in value]))


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise RuntimeGovernanceError(
            "a report needs Jinja2", help="pip install 'gradwarden[report]'"
        ) from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters["number"] = "{:,}".format
    environment.filters["weight"] = "{:,.2f}".format
    environment.filters["norm"] = "{:,.3g}".format
    environment.filters["percent"] = "{:.2%}".format
    return environment.from_string(
        files("gradwarden.runtime.report").joinpath("page.html").read_text("utf-8")
    )
