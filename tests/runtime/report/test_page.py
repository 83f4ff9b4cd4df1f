"""A report is well-formed, needs nothing beside it, obeys nobody's text, and can be read without sight."""

from __future__ import annotations

import re
from base64 import b64encode
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.report.account import Account, Accountant
from gradwarden.runtime.report.page import COLOURS, render
from tests.cli.conftest import DIGEST, OPENED, decision, step
from tests.runtime.provenance.small_runs import write_run
from tests.runtime.report.pages import Page

pytest.importorskip("jinja2")

VERDICT: dict[str, Any] = {
    "ok": True,
    "status": "OK",
    "facts": {"entries": 1234, "signed_entries": 1233, "root": DIGEST},
    "checked": ["1,234 entries"],
    "not_checked": ["the weights"],
    "findings": [{"severity": "warning", "code": "torn_tail", "index": 7, "message": "cut", "help": None}],
}

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onload='x\u202e\x1b[2J{{ 7*7 }}"


def add_up(path: Path) -> Account:
    accountant = Accountant()
    verify_chain(path, (), lambda: accountant.accept)
    return accountant.finish()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> str:
    return render(
        add_up(write_run(tmp_path_factory.mktemp("plain") / "run.ledger", run_signer)), VERDICT, "fine"
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> str:
    """Some steps record contributions."""
    path = write_run(tmp_path_factory.mktemp("recording") / "run.ledger", run_signer, recording=True)
    return render(add_up(path), VERDICT, "fine")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> str:
    """Every text that others choose is hostile."""
    path = tmp_path_factory.mktemp("hostile") / "run.ledger"
    policy = {"name": HOSTILE, "version": 1, "digest": DIGEST}
    terms = {
        **dict.fromkeys(("sampling_rate", "noise_multiplier", "clip", "unit", "delta", "clipping"), HOSTILE),
        **dict.fromkeys(("on_trust", "records"), HOSTILE),
        "rule": "people",
        "epsilon": "3",
    }
    with Ledger.open(path, run_signer, durability="os", origin="gradwarden/test") as ledger:
        ledger.append(
            "opened",
            {
                **OPENED,
                "keys": [run_signer.public.vkey],
                "policy": policy,
                "bands": [HOSTILE, "deep"],
                "run": HOSTILE,
                "at": HOSTILE,
                "engine": HOSTILE,
                "privacy": [terms],
            },
        )
        ledger.append(
            "decisions", {"decisions": [decision(0, "admit", HOSTILE), decision(1, "refuse", HOSTILE)]}
        )
        packed = {"commitments": b64encode(bytes(64)).decode()}
        ledger.append("step", {**step(0, 0, 1), **packed})
        spent = {"people": {"epsilon": "1.5", "steps": 1}}
        ledger.append(
            "committed", {"step": 0, "active": [HOSTILE], "norms": {}, "loss": None, "privacy": spent}
        )
        ledger.append("step", {**step(1, 0, 1), **packed})
        ledger.append("refused", {"step": 1, "gate": "commit", "reason": HOSTILE, "detail": HOSTILE})
        ledger.append("starved", {"step": 1, "band": HOSTILE, "steps": 2, "action": "report"})
        ledger.append("expired", {"step": 1, "rule": HOSTILE, "count": 1})
        ledger.append("checkpoint", {"step": 2, "file": HOSTILE, "digest": DIGEST, "tensors": None})
        ledger.append("policy_changed", {"policy": policy, "step": 2})
    found = {**VERDICT["findings"][0], "message": HOSTILE, "code": HOSTILE}
    verdict = {**VERDICT, "checked": [HOSTILE], "not_checked": [HOSTILE], "findings": [found]}
    return render(add_up(path), verdict, HOSTILE)


def test_checkpoints_are_told_with_the_bands_that_stayed(tmp_path: Path, run_signer: Signer) -> None:
    first = {"step": 0, "file": HOSTILE, "of": "model", "count": 1234, "root": DIGEST, "since": None}
    second = {**first, "step": 1_000, "of": "average", "since": 0}
    told = [
        {**first, "same": [], "changed": []},
        {**second, "same": ["deep", HOSTILE], "changed": ["shallow"]},
    ]
    verdict = {**VERDICT, "facts": {**VERDICT["facts"], "checkpoints": told}}
    text = render(add_up(write_run(tmp_path / "run.ledger", run_signer)), verdict, "fine")
    page = Page(text)
    assert "<script" not in text
    [table] = [one for one in page.root.all("table") if "Checkpoints" in one.all("caption")[0].text]
    rows = [[cell.text.strip() for cell in row.all("th", "td")] for row in table.all("tr")]
    assert [row[0] for row in rows[1:]] == ["0", "1,000"]
    assert rows[1][3] == "nothing before it to compare with"
    assert rows[2][1].endswith("(an average)")
    assert rows[2][3].startswith("deep, ")
    assert rows[2][4] == "shallow"


def test_a_row_of_one_step_names_it_once(hostile: str) -> None:
    tables = [
        one for one in Page(hostile).root.all("table") if "Weight per step" in one.all("caption")[0].text
    ]
    heads = [row.all("th")[0].text.strip() for table in tables for row in table.all("tr")[1:]]
    assert heads
    assert not [head for head in heads if re.fullmatch(r"([\d,]+) to \1", head)]


@pytest.fixture(params=["plain", "recording", "hostile"])
def text(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_it_is_well_formed_and_needs_nothing_beside_it(text: str) -> None:
    page = Page(text)
    elements = page.root.all()
    assert {e.tag for e in elements} & {"script", "img", "link", "iframe", "object", "form", "base"} == set()
    assert all(not name.startswith("on") for e in elements for name in e.attributes)
    assert all(e.attributes["href"].startswith("#") for e in page.root.all("a"))
    assert {e.attributes["href"][1:] for e in page.root.all("a")} <= page.ids.keys()
    assert "url(" not in text
    assert "@import" not in text
    assert all("//" not in value for e in elements for value in e.attributes.values())
    [policy] = [e for e in page.root.all("meta") if e.attributes.get("http-equiv")]
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_what_others_wrote_is_shown_and_not_obeyed(hostile: str) -> None:
    page = Page(hostile)
    assert "<script" not in hostile
    assert "\u202e" not in hostile
    assert "\x1b" not in hostile
    assert "{{ 7*7 }}" in page.root.text
    assert hostile.count("&lt;script&gt;") > 20


def test_headings_are_in_order_and_landmarks_are_there(text: str) -> None:
    page = Page(text)
    levels = [int(e.tag[1]) for e in page.root.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    [main] = page.root.all("main")
    assert [len(page.root.all(tag)) for tag in ("header", "nav", "footer")] == [1, 1, 1]
    assert all(section.attributes["aria-labelledby"] in page.ids for section in main.all("section"))
    assert page.root.all("html")[0].attributes["lang"] == "en"
    assert len(main.all("section")) == 8


def test_every_figure_has_a_text_alternative_and_a_table(text: str) -> None:
    page = Page(text)
    figures = page.root.all("figure")
    assert len(figures) >= 2
    for figure in figures:
        [drawing], [caption], [table] = figure.all("svg"), figure.all("figcaption"), figure.all("table")
        assert drawing.attributes["role"] == "img"
        names = drawing.attributes["aria-labelledby"].split()
        assert [page.ids[name].tag for name in names] == ["title", "desc"]
        assert all(page.ids[name].text.strip() for name in names)
        assert caption.text.strip()
        assert len(table.all("tr")) > 1
    for table in page.root.all("table"):
        assert [e.tag for e in table.children][:3] == ["caption", "thead", "tbody"]
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in table.all("th"))
        width = len(table.all("thead")[0].all("th"))
        assert all(len(row.all("th", "td")) == width for row in table.all("tr"))
        # What can be scrolled can be reached by the keyboard, and has a name.
        around = table.parent
        assert around is not None
        assert around.attributes["tabindex"] == "0"
        assert around.attributes["aria-label"]


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out(plain: str) -> None:
    written = set(re.findall(r"(?:color|--ink|--quiet|fill): (#[0-9a-f]{6})", plain))
    assert written >= set(COLOURS)
    for colour in written:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def test_it_fits_phones_and_paper(plain: str) -> None:
    assert 'content="width=device-width, initial-scale=1"' in plain
    assert "@media print" in plain
    assert "<text" not in plain  # text in a scaled drawing would be too small to read


def test_what_a_run_does_not_have_is_said(plain: str) -> None:
    words = " ".join(Page(plain).root.text.split())
    assert "No rule of the policy has a privacy budget. Nothing here is differentially private." in words
    assert "The policy has no rule against memorization." in words
    assert "early.safetensors" in words
    assert "closed" in words


def test_what_steps_record_of_contributions_is_told(recording: str, plain: str) -> None:
    assert "Contributions on record" not in plain
    assert 'id="recorded"' not in plain
    page = Page(recording)
    [table] = [one for one in page.root.all("table") if "on record" in one.all("caption")[0].text]
    rows = [[cell.text.strip() for cell in row.all("th", "td")] for row in table.all("tr")[1:]]
    assert [row[0] for row in rows] == ["shallow", "deep"]
    for band, steps, moved, told, added in rows:
        public, parts = map(int, told.split(" of "))
        assert int(steps) > 10 < public
        assert 0 < float(moved) < 1
        assert 0 < float(added) < 1
        assert (public < parts) == (band == "shallow")
    assert "The parts of private examples are never told." in page.root.text


def test_a_band_of_which_nothing_is_told_but_that_it_is_private(tmp_path: Path, run_signer: Signer) -> None:
    accountant = Accountant()
    verify_chain(write_run(tmp_path / "run.ledger", run_signer), (), lambda: accountant.accept)
    accountant.add_row("contributions", step=0, example=0, band="deep", norm=None)
    page = Page(render(accountant.finish(), VERDICT, "fine"))
    [table] = [one for one in page.root.all("table") if "on record" in one.all("caption")[0].text]
    cells = [cell.text.strip() for cell in table.all("tr")[1].all("th", "td")]
    assert cells == ["deep", "0", "none", "0 of 1", "none"]


def test_a_budget_is_drawn_and_told(hostile: str) -> None:
    words = " ".join(Page(hostile).root.text.split())
    assert "It rose to 1.50 of 3 by step 0." in words
