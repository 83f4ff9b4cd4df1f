"""Links between the pages lead somewhere, headings included."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS

PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", (DOCS / name).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(name: str) -> set[str]:
    heads = re.findall(r"^#{1,4} (.+)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    broken = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", prose(name)):
        path = DOCS / (target or name)
        if not path.exists() or (anchor and anchor not in anchors(target or name)):
            broken.append(f"{target}#{anchor}")
    assert broken == []
