"""The CI files run the commands that there are, and what they run does what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gradwarden.cli.app import VERBS, cli
from tests.cli.conftest import POLICY
from tests.cli.test_test import TESTS, WRONG

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
SCAFFOLD = yaml.safe_load((ROOT / "cli" / "templates" / "gradwarden.yml").read_text())


def scripts() -> Iterator[tuple[str, str]]:
    """Yield every line of shell in a CI file."""
    for step in ACTION["runs"]["steps"]:
        yield from (("action.yml", line) for line in step.get("run", "").splitlines())
    for job in GITLAB.values():
        for line in job.get("script", []) if isinstance(job, dict) else []:
            yield from (("gitlab.yml", part) for part in line.splitlines())
    for hook in HOOKS.values():
        yield "hooks", " ".join([hook["entry"], *hook.get("args", [])])
    for step in SCAFFOLD["jobs"]["policy"]["steps"]:
        yield from (("gradwarden.yml", line) for line in step.get("run", "").splitlines())


COMMANDS = sorted(
    {(name, line.strip()) for name, line in scripts() if re.search(r"\bgradwarden [a-z]+", line)}
)


def test_each_file_runs_check_fmt_and_test() -> None:
    for name in ("action.yml", "gitlab.yml", "hooks", "gradwarden.yml"):
        used = {
            verb for n, line in COMMANDS for verb in re.findall(r"\bgradwarden ([a-z]+)", line) if n == name
        }
        assert used >= {"check", "fmt", "test"}, name


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_every_command_and_option_exists(name: str, line: str) -> None:
    [verb] = re.findall(r"\bgradwarden ([a-z]+)", line)
    assert verb in VERBS
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) <= known
    for chosen in re.findall(r"--format (\w+)", line):
        [formats] = [p.type for p in command.params if p.name == "output_format"]
        assert chosen in formats.choices  # type: ignore[attr-defined]


def test_the_action_declares_what_it_uses_and_uses_what_it_declares() -> None:
    text = (ROOT / "action.yml").read_text()
    used = set(re.findall(r"inputs\.([a-z-]+)", text))
    assert used == set(ACTION["inputs"])
    assert all(item["description"] for item in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


def test_no_input_is_written_into_a_script() -> None:
    """An input is text by whoever opens a pull request; in a script it would be run."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def step_named(name: str) -> dict[str, Any]:
    [step] = [step for step in ACTION["runs"]["steps"] if step["name"] == name]
    return dict(step)


def run_step(where: Path, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does: bash that stops at the first command that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "PATHS": ".", "SARIF": "out.sarif", "JUNIT": "out.xml", **variables}
    for variable in step_named(name)["env"]:
        environment.setdefault(variable, "")
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step_named(name)["run"]],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "sample.policy").write_text(POLICY)
    (tmp_path / "sample_test.yaml").write_text(TESTS)
    return tmp_path


def test_the_steps_pass_on_a_good_policy(project: Path) -> None:
    assert run_step(project, "The policies are well formed", STRICT="yes").returncode == 0
    assert '"results": []' in (project / "out.sarif").read_text()
    assert run_step(project, "They are laid out canonically").returncode == 0
    assert run_step(project, "They decide as their tests say").returncode == 0
    assert "<testsuites>" in (project / "out.xml").read_text()


@pytest.mark.soak
def test_the_steps_fail_on_what_they_are_there_for(project: Path) -> None:
    policy, tests = project / "sample.policy", project / "sample_test.yaml"
    policy.write_text(POLICY.replace("kind == a", "kind  == a", 1))
    assert run_step(project, "They are laid out canonically").returncode == 1
    policy.write_text(POLICY.replace("kind == a", "kind == zz", 1))
    checked = run_step(project, "The policies are well formed")
    assert checked.returncode == 1
    assert checked.stdout.startswith("::error title=GW208,file=sample.policy,line=")
    assert "GW208" in (project / "out.sarif").read_text()
    policy.write_text(POLICY)
    low = run_step(project, "They decide as their tests say", MIN_COVERAGE="90")
    assert low.returncode == 1
    assert "::error title=GW482,file=sample.policy" in low.stdout
    tests.write_text(WRONG)
    failed = run_step(project, "They decide as their tests say")
    assert failed.returncode == 1
    assert "::error title=GW480,file=sample_test.yaml,line=3" in failed.stdout
    tests.unlink()
    assert run_step(project, "They decide as their tests say").returncode == 1


@pytest.mark.soak
def test_the_step_that_compares_fails_where_a_policy_widens(project: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert run_step(project, "Nothing widens", REF="HEAD").returncode == 0
    (project / "sample.policy").write_text(POLICY.replace("lines >= 100", "lines >= 200"))
    widened = run_step(project, "Nothing widens", REF="HEAD")
    assert widened.returncode == 1, widened.stderr
    assert "wider" in widened.stdout
    (project / "sample.policy").write_text(POLICY.replace("lines >= 100", "lines >= 50"))
    assert run_step(project, "Nothing widens", REF="HEAD").returncode == 0


@pytest.mark.parametrize(
    ("path", "hooks"),
    [
        ("a/b.policy", {"gradwarden-check", "gradwarden-fmt", "gradwarden-test"}),
        ("a/b_test.yaml", {"gradwarden-test"}),
        ("a/model.yaml", set()),
    ],
)
def test_hooks_look_at_their_files(path: str, hooks: set[str]) -> None:
    assert {name for name, hook in HOOKS.items() if re.search(hook["files"], path)} == hooks
