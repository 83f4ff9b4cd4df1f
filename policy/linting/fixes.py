"""Mends a policy text where that is safe: the compiled program stays the same to the last bit.

Lints say how a finding could be mended. Here the edits are tried: a text that no longer compiles to an equal
program is thrown away, whatever the edit was meant to do. Only the main text of a policy is changed; what it
imports may be shared with others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.lint import NOTHING, Given, lint
from gradwarden.policy.linting.subject import Edit, Finding
from gradwarden.policy.load import Policy, parse_policy
from gradwarden.policy.program import Program

MAX_ROUNDS = 40
"""How often a text is looked at again: mending one thing can uncover another."""


@frozen
class Mended:
    """A mended text, and the findings that are gone, each where it stood when it was mended."""

    text: str
    mended: tuple[Diagnostic, ...]


def mend(
    text: str,
    name: str = "<string>",
    directory: str | os.PathLike[str] | None = None,
    given: Given = NOTHING,
) -> Mended:
    """Return a policy text without the findings that can be mended safely.

    Raises PolicyError where the text is no policy.
    """
    policy = parse_policy(text, name, directory)
    gone: list[Diagnostic] = []
    for _ in range(MAX_ROUNDS):
        candidates = _candidates(policy, given)
        taken = _safe(policy, candidates, name, directory)
        if not taken:
            break
        policy = parse_policy(_applied(policy, taken), name, directory)
        gone += [finding.diagnostic for finding in taken]
    return Mended(_text(policy), tuple(gone))


def _text(policy: Policy) -> str:
    return policy.checked.files[0].source.text


def _candidates(policy: Policy, given: Given) -> list[Finding]:
    """Return findings with edits of the main text, none of which overlap."""
    main = policy.checked.files[0].source
    chosen: list[Finding] = []
    taken: list[tuple[int, int]] = []
    for finding in lint(policy.checked, given):
        spans = [(edit.span.start, edit.span.end) for edit in finding.edits if edit.span.source is main]
        if not spans or len(spans) < len(finding.edits):
            continue
        if all(end <= start or other <= begin for begin, end in spans for start, other in taken):
            chosen.append(finding)
            taken += spans
    return chosen


def _safe(
    policy: Policy, candidates: Sequence[Finding], name: str, directory: str | os.PathLike[str] | None
) -> list[Finding]:
    """Return the findings that can be mended together without a change of the program."""

    def keeps(findings: Sequence[Finding]) -> bool:
        return _program(_applied(policy, findings), name, directory) == policy.program

    if not candidates or keeps(candidates):
        return list(candidates)
    alone = [finding for finding in candidates if keeps([finding])]
    return alone if alone and keeps(alone) else alone[:1]


def _program(text: str, name: str, directory: str | os.PathLike[str] | None) -> Program | None:
    try:
        return parse_policy(text, name, directory).program
    except PolicyError:
        return None


def _applied(policy: Policy, findings: Sequence[Finding]) -> str:
    text = _text(policy)
    edits: list[Edit] = [edit for finding in findings for edit in finding.edits]
    for edit in sorted(edits, key=lambda edit: edit.span.start, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text
