"""Every lint rule, once: its code, name and severity, what it is about, and what it needs to be told.

A lint is a warning or a note about a policy that compiles. The page of each is in `pages.md`, from which
`docs/rules/` is written.
"""

from __future__ import annotations

from typing import Literal

from gradwarden.policy.frozen import frozen

Input = Literal["date", "data", "run", "epoch"]
"""What a lint needs besides the policy: `--at`, `--data`, `--steps` and its terms, `--epoch-days`."""


@frozen
class LintRule:
    """One lint. summary: what a finding says, in a few words; mends: whether `check --fix` can mend it."""

    code: str
    name: str
    severity: Literal["warning", "note"]
    summary: str
    mends: bool = False
    needs: Input | None = None
    since: str = "0.1"

    @property
    def page(self) -> str:
        """Where its page is in the repository."""
        return f"docs/rules/{self.code}.md"


def _warning(code: str, name: str, summary: str, mends: bool = False, needs: Input | None = None) -> LintRule:
    return LintRule(code, name, "warning", summary, mends, needs)


def _note(code: str, name: str, summary: str, mends: bool = False, needs: Input | None = None) -> LintRule:
    return LintRule(code, name, "note", summary, mends, needs)


RULES = (
    _warning("GW501", "language-not-pinned", "the language version is not pinned", mends=True),
    _warning("GW502", "missing-because", "a suppression without a reason"),
    _warning("GW503", "starved-band", "a band that no rule grants"),
    _note("GW504", "unread-attribute", "attributes that no rule reads (a note)"),
    _warning("GW505", "needless-has", "`has` of an attribute that is never absent", mends=True),
    _warning("GW506", "decided-comparison", "a comparison that is always true or always false"),
    _warning("GW507", "no-quarantine", "a route to quarantine without such a band"),
    _warning("GW508", "grants-nothing", "a policy that grants nothing"),
    _warning("GW509", "unread-signal", "a signal that no rule reads"),
    _warning("GW510", "unreachable-rule", "a rule or condition that can never hold"),
    _warning("GW511", "unused-condition", "a named condition that nothing uses", mends=True),
    _warning(
        "GW512",
        "privacy-at-times",
        "a privacy rule that holds at some times only, and guarantees nothing at others",
    ),
    _warning("GW513", "always-true", "a condition that always holds", mends=True),
    _warning("GW514", "idle-term", "a part of a condition that changes nothing", mends=True),
    _warning("GW515", "shadowed-rule", "a rule that another one of its kind leaves nothing to do"),
    _warning("GW516", "repeated-rule", "two rules that say the same", mends=True),
    _warning("GW517", "lapsed-waiver", "a waiver that has lapsed", needs="date"),
    _warning("GW518", "long-waiver", "a waiver that lapses more than three years from now", needs="date"),
    _warning("GW519", "past-date", "a date in the past, where only the future matters", needs="date"),
    _warning("GW521", "privacy-without-unit", "a privacy rule that names no privacy unit"),
    _warning("GW522", "budget-too-short", "a privacy budget that does not last the planned run", needs="run"),
    _warning("GW523", "short-retention", "data kept for less than one epoch", needs="epoch"),
    _warning("GW525", "voided-guarantee", "a privacy guarantee that a limit on exposures voids"),
    _warning("GW526", "large-delta", "a `delta` that allows publishing whole units"),
    _warning("GW527", "large-epsilon", "an `epsilon` above 10"),
    _warning("GW528", "advisory-privacy", "a privacy rule that only advises, and protects nobody"),
    _warning("GW529", "idle-modulation", "a modulation that never changes a weight"),
    _warning("GW531", "unused-ceiling", "a ceiling of weights that no rule makes use of"),
    _warning("GW532", "empty-grant", "a `depth` rule that grants nothing"),
    _warning("GW533", "idle-limit", "a limit that lowers nothing"),
    _warning("GW534", "unused-phases", "phases that no rule refers to"),
    _warning("GW535", "curriculum-gap", "a time between the stages of a curriculum, at which all is open"),
    _warning("GW536", "faulty-allowance", "a comment that allows a finding, without a reason or a code"),
    _note("GW537", "roundabout-condition", "a condition that can be said more plainly (a note)", mends=True),
    _warning("GW538", "idle-allowance", "a comment that allows a finding which is not there", mends=True),
    _warning("GW539", "waived-advice", "a waiver of a rule that is only advisory"),
    _warning("GW541", "idle-assertion", "an assertion that nothing could break"),
    _warning("GW542", "band-gap", "a single value between two entropy bands"),
    _warning(
        "GW543", "unneeded-grant", "a grant that is wider than any example of the data needs", needs="data"
    ),
    _note("GW544", "unseen-value", "a value that no example of the data has (a note)", needs="data"),
    _warning("GW545", "premature-guard", "a memorization rule that holds before anything is measured"),
    _warning("GW547", "refuses-everything", "a rule that refuses every example at any time"),
    _warning("GW548", "idle-maintenance", "a `maintain` rule for a band that no rule grants"),
    _warning("GW549", "given-signal", "a rule that goes by a signal of the loop's, under privacy rules"),
    _warning("GW550", "endless-drought", "a starvation guard that asks for more than any rule grants"),
)
"""Every lint rule, by code."""

BY_CODE = {rule.code: rule for rule in RULES}
