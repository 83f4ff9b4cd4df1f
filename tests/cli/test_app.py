"""What holds for every verb: help, exit statuses, colours, and errors that are told cleanly."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gradwarden.cli.app import VERBS, cli
from tests.cli.conftest import Run

PROMISED = [
    "init", "check", "fmt", "test", "explain", "plan", "prove", "calendar", "schema", "diff", "build",
    "approve", "sign-data", "map", "keygen", "verify", "replay", "timestamp", "rotate", "revoke", "archive",
    "bind",
    "log", "history", "trace", "report", "memorized", "proof", "verify-proof", "receipt", "witness", "export",
    "attest", "verify-attestation", "sign-model", "verify-model", "lsp",
]  # fmt: skip


def gradwarden(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "gradwarden.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_the_verbs_are_those_promised() -> None:
    assert list(VERBS) == PROMISED


@pytest.mark.parametrize("name", PROMISED)
def test_help_teaches(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: gradwarden {name}")
    assert "Examples:" in result.stdout
    assert f"gradwarden {name}" in result.stdout.split("Examples:")[1]
    assert "Exit status:" in result.stdout


@pytest.mark.parametrize("name", PROMISED)
def test_a_verb_tells_the_same_as_the_list_of_verbs(name: str) -> None:
    command = import_module(f"gradwarden.cli.commands.{name.replace('-', '_')}").command
    assert (command.name, command.short_help) == (name, VERBS[name])


@pytest.mark.parametrize("name", PROMISED)
def test_every_option_is_explained(name: str) -> None:
    command = import_module(f"gradwarden.cli.commands.{name.replace('-', '_')}").command
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options)


def test_without_a_verb_the_verbs_are_shown(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert all(name in result.output for name in VERBS)


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"gradwarden {version('gradwarden')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_back_with_our_variable(run: Run, shell: str) -> None:
    result = run("--completion", shell)
    assert result.exit_code == 0
    assert "_GRADWARDEN_COMPLETE" in result.stdout


def test_completion_lists_verbs() -> None:
    environment = {
        **os.environ,
        "_GRADWARDEN_COMPLETE": "bash_complete",
        "COMP_WORDS": "gradwarden ke",
        "COMP_CWORD": "1",
    }
    assert gradwarden(env=environment).stdout == "plain,keygen\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chekc"], "did you mean `check`?"),
        (["frobnicate"], "no verb `frobnicate`"),
        (["--frobnicate"], "--frobnicate"),
        (["--completion", "tcsh"], "tcsh"),
        (["check"], "PATH"),
        (["check", "--frobnicate", "x"], "--frobnicate"),
        (["check", "missing.policy"], "missing.policy"),
        (["check", "empty"], "no `*.policy` file"),
        (["check", "binary.policy"], "UTF-8"),
        (["check", "good.policy", "--model-map", "missing.yaml"], "`missing.yaml`: no such file"),
        (["check", "good.policy", "--model-map", "binary.policy"], "UTF-8"),
        (["check", "good.policy", "--model-map", "broken.yaml"], "not valid YAML"),
        (["check", "good.policy", "--format", "xml"], "xml"),
        (["fmt", "missing.policy"], "no such file"),
        (["fmt", "-", "good.policy"], "stands alone"),
        (["fmt", "binary.policy"], "UTF-8"),
        (["test", "missing.policy"], "no such file"),
        (["test", "missing_test.yaml"], "no such file"),
        (["test", "binary_test.yaml"], "UTF-8"),
        (["test", "broken_test.yaml"], "not valid YAML"),
        (["test", "orphan_test.yaml"], "does not exist"),
        (["test", "good.policy", "--min-coverage", "200"], "200"),
        (["explain", "good.policy"], "--example"),
        (["explain", "missing.policy", "--example", "one.json"], "missing.policy"),
        (["explain", "good.policy", "--example", "missing.json"], "`missing.json`: no such file"),
        (["explain", "good.policy", "--example", "."], "directory"),
        (["explain", "good.policy", "--example", "bad.json"], "not valid JSON"),
        (["explain", "good.policy", "--example", "twice.json"], "repeats the key `a`"),
        (["explain", "good.policy", "--example", "list.json"], "gradwarden plan"),
        (["explain", "good.policy", "--example", "one.json", "--at", "soon"], "`soon` is not a date"),
        (["explain", "good.policy", "--example", "one.json", "--step", "-1"], "-1"),
        (["explain", "good.policy", "--example", "one.json", "--set", "loss"], "`loss` is not a signal"),
        (["explain", "good.policy", "--example", "one.json", "--set", "loss=1"], "no signal `loss`"),
        (["explain", "good.policy", "--example", "one.json", "--spent", "x"], "no privacy rule `x`"),
        (["explain", "list.json", "--example", "one.json"], "program"),
        (["plan", "good.policy", "--data", "missing.csv"], "no such file"),
        (["plan", "good.policy", "--data", "data.xlsx"], "ending"),
        (["plan", "good.policy", "--data", "fake.parquet"], "not a Parquet file"),
        (["plan", "good.policy", "--data", "binary.jsonl"], "not UTF-8"),
        (["plan", "good.policy", "--data", "empty.csv"], "is empty"),
        (["plan", "good.policy", "--data", "twice.csv"], "two columns named `kind`"),
        (["build", "good.policy"], "--output"),
        (["build", "good.policy", "-o", "out.bin"], "`.json`"),
        (["build", "good.policy", "-o", "nowhere/out.json"], "nowhere"),
        (["build", "good.policy", "-o", "out.json", "--sign", "missing.key"], "missing.key"),
        (["build", "good.policy", "-o", "out.json", "--sign", "good.policy"], "not a readable private key"),
        (["build", "bad.policy", "-o", "out.json"], "bad.policy:"),
        (["keygen", "a b"], "cannot name a key"),
        (["keygen", "nowhere/k"], "nowhere/k.key"),
        (["keygen", "k", "--passphrase-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["keygen", "k", "--passphrase-file", "missing"], "no such file"),
        (["keygen", "k", "--passphrase-file", "good.policy", "--passphrase"], "one way only"),
        (["map", "nothing", "-o", "m.yaml"], "MODULE:FACTORY"),
        (["log", "missing.ledger"], "missing.ledger"),
        (["log", "."], "directory"),
        (["log", "x", "-f", "--format", "json"], "jsonl"),
        (["verify", "missing.ledger", "--key", "missing.pub"], "missing.pub"),
        (["verify", "missing.ledger"], "--key"),
    ],
)
def test_misuse_and_unreadable_input_exit_2_and_say_what_is_wrong(
    run: Run, inputs: Path, arguments: list[str], told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "GW999" not in result.stderr
    assert result.stdout == "" or arguments[0] == "check"


POLICY = b"""
policy sample version 1 language 1
examples { kind : one of a, b }
model { everything = rest }
depth granted { when kind == a reach all because "a is ours" }
"""


@pytest.fixture
def inputs(here: Path) -> Path:
    """Files to be wrong with."""
    files = {
        "good.policy": POLICY,
        "bad.policy": POLICY.replace(b"kind == a", b"kind == c"),
        "binary.policy": b"\x00\xff\xfe\x01",
        "binary_test.yaml": b"\x00\xff\xfe\x01",
        "broken_test.yaml": b"cases: [",
        "broken.yaml": b"layers: [",
        "orphan_test.yaml": b"cases: []",
        "one.json": b'{"kind": "a"}',
        "bad.json": b'{"kind": ',
        "twice.json": b'{"a": 1, "a": 2}',
        "list.json": b"[1, 2]",
        "data.xlsx": b"",
        "fake.parquet": b"PAR1 no",
        "binary.jsonl": b"\xff\xfe\n",
        "empty.csv": b"",
        "twice.csv": b"kind,kind\na,b\n",
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    (here / "empty").mkdir()
    return here


@pytest.mark.parametrize("name", PROMISED)
def test_json_reports_are_one_document_and_nothing_else(run: Run, name: str) -> None:
    command = import_module(f"gradwarden.cli.commands.{name.replace('-', '_')}").command
    formats = [p.type.choices for p in command.params if "--format" in p.opts]
    if name in ("fmt", "lsp"):  # the one writes files, the other speaks a protocol
        assert formats == []
    else:
        assert "json" in formats[0]


def test_colours_only_for_terminals_and_only_if_wanted(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(*arguments: str, **environment: str) -> bool:
        result = CliRunner(env=environment).invoke(cli, ["check", "bad.policy", *arguments], color=True)
        return "\x1b[" in result.stderr

    assert coloured()
    assert not coloured("--no-color")
    assert not coloured(NO_COLOR="1")
    assert coloured(NO_COLOR="")
    assert "\x1b[" not in gradwarden("check", "bad.policy").stderr


def test_no_color_is_understood_before_and_after_the_verb(inputs: Path) -> None:
    for arguments in (["--no-color", "check", "bad.policy"], ["check", "--no-color", "bad.policy"]):
        result = CliRunner().invoke(cli, arguments, color=True)
        assert result.exit_code == 1
        assert "\x1b[" not in result.stderr


def broken(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("check", callback=callback)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ZeroDivisionError("division\nby zero"), 2, "internal error: ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "broken pipe"), 141, ""),
        (
            PermissionError(errno.EACCES, "Permission denied", "secret.policy"),
            2,
            "`secret.policy`: permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on device"),
        (MemoryError(), 2, "too large"),
        (RecursionError(), 2, "nested too deeply"),
    ],
)
def test_whatever_is_raised_ends_in_a_status_and_a_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, told: str
) -> None:
    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken(error))
    result = CliRunner().invoke(cli, ["check"])
    assert result.exit_code == status
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback_of_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken(ZeroDivisionError("x")))
    assert "Traceback" in CliRunner().invoke(cli, ["--debug", "check"]).stderr


def test_a_reader_that_goes_away_is_no_error(inputs: Path) -> None:
    many = "".join(f'{{"kind": "c{number}"}}\n' for number in range(20_000))
    (inputs / "many.jsonl").write_text(many)
    script = (
        f"{sys.executable} -m gradwarden.cli plan good.policy --data many.jsonl --show 20000 | head -n 1; "
        "echo status ${PIPESTATUS[0]}"
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "status 141"
    assert result.stderr == ""


def test_the_module_can_be_run_and_exits_with_the_status(inputs: Path) -> None:
    assert gradwarden("check", "good.policy").returncode == 0
    assert gradwarden("check", "bad.policy").returncode == 1
    assert gradwarden("check", "nothing.policy").returncode == 2


def test_check_imports_nothing_heavy(inputs: Path) -> None:
    script = (
        "import sys\nfrom gradwarden.cli.app import cli\n"
        "try:\n    cli(['check', 'good.policy'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "import json\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"rich", "numpy", "jsonschema", "cryptography", "torch", "yaml", "orjson"}
    verbs = {name.rpartition(".")[2] for name in loaded if name.startswith("gradwarden.cli.commands.")}
    assert verbs == {"check"}


def test_a_closed_standard_output_is_no_fault_of_ours(policy: Path) -> None:
    command = f"{sys.executable} -m gradwarden.cli check {policy} >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
