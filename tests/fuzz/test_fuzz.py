"""Every reader of foreign input takes what it is given or refuses it in words, whatever it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.campaign import run
from tests.fuzz.sentences import grammar
from tests.fuzz.targets import ROOT, TARGETS, run_format


@pytest.mark.parametrize("name", TARGETS)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_hostile_input_is_taken_or_refused(name: str, random: Random) -> None:
    target = TARGETS[name]
    target.run(target.generate(random))


def test_a_short_campaign_finds_nothing_and_reaches_every_target() -> None:
    campaign = run(400, first_seed=0, only=None, out=None)
    # How long an input takes depends on what else the machine does; `make fuzz` is the place for that.
    assert [finding for finding in campaign.findings if finding["kind"] != "slow"] == []
    assert set(campaign.tallies) == set(TARGETS)


def test_a_campaign_reports_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = TARGETS["format"]
    monkeypatch.setitem(TARGETS, "format", type(broken)(broken.generate, lambda text: bool(1 // 0), 1))  # type: ignore[index]
    campaign = run(20, first_seed=0, only="format", out=None)
    assert {finding["kind"].split()[0] for finding in campaign.findings} == {"ZeroDivisionError"}


@given(random=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_sentences_of_every_declaration_derive_from_the_grammar(random: Random) -> None:
    """The generator knows the grammar: rules without names from outside the language mostly parse."""
    run_format(grammar().sentence(random, "rule", 12, ("a", "b")))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_long_campaign_finds_nothing(tmp_path: Path) -> None:
    """`make fuzz` runs a million inputs; these are twenty thousand of other seeds."""
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--inputs", "20000", "--seed", "2000000"]
    result = subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=False)
    assert result.returncode == 0, out.read_text("utf-8")
