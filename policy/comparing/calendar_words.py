"""What changes at a time, in words."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.comparing.calendar import Change

_KINDS = {"depth": "grant", "suppress": "suppression", "privacy": "privacy rule", "memorization": "guard"}

_WORDS = {
    "expired": ("`{}` expires", "`{}` no longer counts as expired"),
    "embargoed": ("embargo of `{}` begins", "embargo of `{}` ends"),
    "not_open": ("a stage of `{}` begins", "a stage of `{}` ends"),
    "waive": ("waiver of `{0}` begins: `{0}` is lifted", "waiver of `{0}` lapses: `{0}` applies again"),
    "assert": ("assertion `{}` begins to be tested", "assertion `{}` is no longer tested"),
    "modulate": ("modulation `{}` begins", "modulation `{}` ends"),
}
"""By effect or kind: what it is that the rule begins, and ends."""

_BOTH = {
    "not_open": "the stage of `{}` changes",
    "embargoed": "embargo of `{}` begins for some examples and ends for others",
}


def what_changes(change: Change) -> str:
    """Return what a part of a rule does, such as "embargo of `press` ends"."""
    key = change.effect if change.effect in _WORDS else change.kind
    begins, ends = _WORDS.get(key) or _general(change)
    if change.begins and change.ends:
        return _BOTH.get(key, f"{_KINDS.get(change.kind, 'rule')} `{{}}` turns to other examples").format(
            change.name
        )
    return (begins if change.begins else ends).format(change.name)


def _general(change: Change) -> tuple[str, str]:
    noun = _KINDS.get(change.kind, change.kind)
    return f"{noun} `{{}}` begins to apply", f"{noun} `{{}}` ceases to apply"


def what_it_means(change: Change, bands: Sequence[str]) -> str:
    """Return which bands get more or less, empty where nothing was found out."""
    if change.wider is None or change.narrower is None:
        return ""
    told = [
        f"{word}: {'all bands' if set(found) == set(bands) and len(bands) > 1 else ', '.join(found)}"
        for word, found in (("wider", change.wider), ("narrower", change.narrower))
        if found
    ]
    return "; ".join(told) or "same weights, another verdict or obligation"
