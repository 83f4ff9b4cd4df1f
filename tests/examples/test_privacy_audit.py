"""The audit by attack, in small: it runs, its policies hold, and what it writes can be read."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from examples.privacy_audit.__main__ import POLICIES, command
from examples.privacy_audit.training import POLICIES as FOLDER
from gradwarden.cli.app import cli
from gradwarden.policy import format_policy


def test_the_audit_runs_and_says_what_it_found(tmp_path):
    result = CliRunner().invoke(command, ["--quick", "--out", str(tmp_path)])
    assert result.exception is None, result.output
    document = json.loads((tmp_path / "audit.json").read_text())
    assert [found["policy"] for found in document["audits"]] == list(POLICIES)
    for found in document["audits"]:
        assert 0 <= found["right"] <= found["guesses"]
        assert found["lower_bound"] >= 0.0
        assert found["policy"] in result.output


@pytest.mark.parametrize("policy", POLICIES)
def test_its_policies_are_checked_and_proved(policy):
    path = FOLDER / f"{policy}.policy"
    assert format_policy(path.read_text()) == path.read_text()
    for verb in (["check", "--strict"], ["prove"]):
        result = CliRunner().invoke(cli, [*verb, str(path)])
        assert result.exit_code == 0, result.output
