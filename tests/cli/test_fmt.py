"""`gradwarden fmt`: files are changed only if asked, whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.cli.conftest import POLICY, Run

UGLY = POLICY.replace("model {\n", "model{\n").replace("  deep    =", "deep=")


@pytest.fixture
def ugly(here: Path) -> Path:
    path = here / "ugly.policy"
    path.write_text(UGLY)
    return path


def test_a_canonical_file_is_left_alone(run: Run, policy: Path) -> None:
    before = policy.stat().st_mtime_ns
    assert run("fmt", policy).exit_code == 0
    assert run("fmt", "--check", policy).exit_code == 0
    assert policy.stat().st_mtime_ns == before


def test_a_file_is_laid_out_once(run: Run, ugly: Path) -> None:
    ugly.chmod(0o640)
    result = run("fmt", ugly)
    assert (result.exit_code, result.stdout) == (0, f"changed {ugly}\n")
    assert ugly.read_text() == POLICY
    assert stat.S_IMODE(ugly.stat().st_mode) == 0o640
    assert run("fmt", ugly).stdout == ""


def test_check_changes_nothing(run: Run, ugly: Path, policy: Path) -> None:
    result = run("fmt", "--check", ".")
    assert (result.exit_code, result.stdout) == (1, "would change ugly.policy\n")
    assert ugly.read_text() == UGLY


def test_diff_shows_what_would_change(run: Run, ugly: Path) -> None:
    result = run("fmt", "--diff", ugly)
    assert result.exit_code == 0
    assert "-deep= rest" in result.stdout
    assert "+  deep    = rest" in result.stdout
    assert ugly.read_text() == UGLY
    assert run("fmt", "--diff", "--check", ugly).exit_code == 1


def test_standard_input_goes_to_standard_output(run: Run) -> None:
    result = run("fmt", "-", input=UGLY)
    assert (result.exit_code, result.stdout) == (0, POLICY)
    assert run("fmt", "--check", "-", input=UGLY).exit_code == 1


def test_a_file_that_does_not_parse_is_kept_and_others_are_still_done(run: Run, ugly: Path) -> None:
    broken = ugly.with_name("broken.policy")
    broken.write_text("policy {")
    result = run("fmt", broken, ugly)
    assert result.exit_code == 2
    assert "broken.policy:1:" in result.stderr
    assert broken.read_text() == "policy {"
    assert ugly.read_text() == POLICY


def test_line_endings_become_those_of_the_canonical_form(run: Run, policy: Path) -> None:
    policy.write_bytes(POLICY.replace("\n", "\r\n").encode())
    assert run("fmt", "--check", policy).exit_code == 1
    run("fmt", policy)
    assert policy.read_bytes() == POLICY.encode()


def test_a_link_is_followed_not_replaced(run: Run, ugly: Path) -> None:
    link = ugly.with_name("link.policy")
    link.symlink_to(ugly)
    run("fmt", link)
    assert link.is_symlink()
    assert ugly.read_text() == POLICY
