"""The pages of the lint rules, from `pages.md`: what each is about, why, an example, and how to mend it.

    python -m gradwarden.policy.linting.pages docs/rules

writes a file for each. Examples are parts of a policy; `completed` adds what they leave out.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.registry import RULES, LintRule

BASE = """examples {
  kind      : one of a, b
  tags      : set of pii, minor
  source    : string
  lines     : integer 0..1000
  agreement : number 0..1
  entropy   : number 0..8 bits/byte
  consent   : bool
  person    : string
  collected : date
  patient   : string optional
  erase_on  : date optional
}

signals {
  loss : number 0..10 default 1
}
"""
"""What the examples of the pages import: `base.policy`."""

_HEADER = 'policy example version 1 language 1\nimport "base.policy"\n'
_MODEL = "model { shallow = top 25%  deep = rest }\n"
_GRANT = "depth granted { when kind == a  reach all }\n"

_SECTION = re.compile(
    r"^## (?P<code>GW\d{3})\n\n(?P<what>.*?)\n\n(?P<why>.*?)\n\n"
    r"```(?P<options>[^\n]*)\n(?P<bad>.*?)```\n\n(?P<fix>.*?)(?:\n\n```\n(?P<good>.*?)```)?\n*(?=^## |\Z)",
    re.MULTILINE | re.DOTALL,
)

_NEEDS = {
    "date": "the day of the check (`--at`, by default today)",
    "data": "a manifest (`--data`)",
    "run": "the planned run (`--steps`, `--sampling-rate`, `--noise-multiplier`)",
    "epoch": "how long an epoch takes (`--epoch-days`)",
}


@frozen
class Page:
    """The page of one lint. bad, good: examples with and without the finding; options: how it is checked."""

    rule: LintRule
    what: str
    why: str
    bad: str
    good: str
    fix: str
    options: str

    def markdown(self) -> str:
        """Return the page as it stands in `docs/rules/`."""
        rule = self.rule
        told = [f"A {rule.severity}", f"since {rule.since}"]
        if rule.mends:
            told.append("`check --fix` mends it where the program stays the same")
        if rule.needs:
            told.append(f"needs {_NEEDS[rule.needs]}")
        parts = [
            f"# {rule.code}: {rule.name}",
            f"{'; '.join(told)}.",
            self.what,
            f"## Why\n\n{self.why}",
            f"## Example\n\n```\n{self.bad}```",
            f"## How to mend it\n\n{self.fix}",
        ]
        if self.good:
            parts.append(f"```\n{self.good}```")
        return "\n\n".join(parts) + "\n"


@cache
def pages() -> dict[str, Page]:
    """Return the page of every lint by code, in the order of the registry."""
    text = (files("gradwarden.policy.linting") / "pages.md").read_text("utf-8")
    found = {match["code"]: match for match in _SECTION.finditer(text)}
    return {
        rule.code: Page(
            rule,
            match["what"],
            match["why"],
            match["bad"],
            match["good"] or "",
            match["fix"],
            match["options"].strip(),
        )
        for rule in RULES
        if (match := found.get(rule.code)) is not None
    }


def completed(example: str) -> str:
    """Return an example of a page as a whole policy, which imports `base.policy`."""
    head = "" if example.startswith("policy ") else _HEADER
    model = "" if re.search(r"^model\b", example, re.MULTILINE) else _MODEL
    grant = "" if re.search(r"^(?:hard |advisory )?depth\b", example, re.MULTILINE) else _GRANT
    if not head:
        first, _, rest = example.partition("\n")
        return f'{first}\nimport "base.policy"\n{model}{grant}{rest}'
    return f"{head}{model}{grant}{example}"


def index() -> str:
    """Return the list of all rules, for `docs/rules/README.md`."""
    rows = [
        f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity} | {rule.summary} |"
        for rule in RULES
    ]
    return "\n".join(
        [
            "# Lint rules",
            "",
            "What `gradwarden check` says of policies that compile. `gradwarden check --explain CODE` shows",
            "a page. A comment beside a rule, or above it, allows a finding there:",
            "`# gradwarden: allow GW525 because …`.",
            "",
            "| code | name | severity | what it is about |",
            "|---|---|---|---|",
            *rows,
            "",
            "The examples are parts of a policy. What they leave out is a header, a model, a rule that",
            "grants, and these declarations, which they import:",
            "",
            f"```\n{_MODEL}{_GRANT}```",
            "",
            f"```\n{BASE}```",
            "",
        ]
    )


def write(folder: Path) -> None:
    """Write every page, and their list, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(index(), "utf-8")
    for code, page in pages().items():
        (folder / f"{code}.md").write_text(page.markdown(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
