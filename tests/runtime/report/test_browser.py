"""A report in a real browser: on a phone, on paper, and with hostile names in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.report.test_page import hostile, plain, recording, text

__all__ = ["hostile", "plain", "recording", "text"]

pytestmark = pytest.mark.browser

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

LOOK = """<!DOCTYPE html><title>waiting</title><iframe id="page" style="width:WIDTHpx;height:800px"></iframe>
<script>
window.alert = () => { window.obeyed = true };
const page = document.getElementById("page");
page.onload = () => {
  const inside = page.contentDocument, seen = element => element.getBoundingClientRect();
  const all = [...inside.querySelectorAll("main *")];
  document.title = JSON.stringify({
    wide: inside.documentElement.scrollWidth,
    obeyed: !!window.obeyed,
    drawn: [...inside.querySelectorAll("svg path")].filter(path => seen(path).width > 1).length,
    small: all.filter(e => e.children.length === 0 && e.textContent.trim() && !e.closest("svg")
      && parseFloat(getComputedStyle(e).fontSize) < 12).length,
    narrow: Math.min(...[...inside.querySelectorAll("td.words")].map(cell => seen(cell).width)),
    fetched: page.contentWindow.performance.getEntriesByType("resource").length,
    jumps: [...inside.querySelectorAll("nav a")].every(a => inside.querySelector(a.getAttribute("href"))),
  });
};
page.srcdoc = TEXT;
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


def run(browser: str, folder: Path, *arguments: str) -> str:
    """Run the browser without a window and without its sandbox, which a container does not allow."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [browser, *quiet, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def look(browser: str, folder: Path, text: str, width: int) -> dict[str, Any]:
    """Open a report in a frame of some width, and say what is seen."""
    content = json.dumps(text).replace("</", "<\\/").replace("<!--", "<\\!--")
    frame = folder / "frame.html"
    frame.write_text(LOOK.replace("WIDTH", str(width)).replace("TEXT", content), "utf-8")
    shown = run(browser, folder, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    title = re.search("<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None
    found: dict[str, Any] = json.loads(unescape(title[1]))
    return found


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_is_shown_whole_at_every_width(browser: str, tmp_path: Path, text: str, width: int) -> None:
    seen = look(browser, tmp_path, text, width)
    assert seen["wide"] <= width
    assert seen["drawn"] >= 2
    assert seen["jumps"]
    assert (seen["obeyed"], seen["fetched"], seen["small"]) == (False, 0, 0)


def test_reasons_are_not_squeezed_to_a_word_in_a_line(browser: str, tmp_path: Path, plain: str) -> None:
    assert look(browser, tmp_path, plain, 390)["narrow"] >= 200


def test_it_can_be_printed(browser: str, tmp_path: Path, plain: str) -> None:
    (tmp_path / "report.html").write_text(plain, "utf-8")
    paper = tmp_path / "report.pdf"
    run(browser, tmp_path, f"--print-to-pdf={paper}", (tmp_path / "report.html").as_uri())
    content = paper.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Type /Page\n") >= 2
