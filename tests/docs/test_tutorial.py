"""The tutorial can be followed: every command is run, in order, and prints what the page shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gradwarden.cli.app import VERBS, cli
from tests.docs.pages import DOCS, ROOT, Block, blocks

PAGE = (DOCS / "tutorial.md").read_text("utf-8")
PLAIN_COMMANDS = ("cat", "cp")


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def pattern(shown: str) -> str:
    """Return the regular expression of an output: `…` is anything, on a line of its own any lines."""
    lines = shown.rstrip("\n").split("\n")
    parts = [
        r"(?:[^\n]*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + "\n"
        for line in lines
    ]
    return "".join(parts)


def run(command: str) -> tuple[int, str]:
    """Run one command of the page in the current folder; return its exit status and all that it prints."""
    line, _, target = command.partition(" > ")
    program, *arguments = shlex.split(line, comments=True)
    if program in PLAIN_COMMANDS:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    assert program == "gradwarden", command
    result = CliRunner().invoke(cli, arguments, prog_name="gradwarden")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if not target:
        return result.exit_code, result.output
    Path(target.split()[0]).write_text(result.stdout, "utf-8")
    return result.exit_code, result.stderr


def head(line: str) -> str:
    """Return what a declaration or an attribute is known by, such as `depth ideas`."""
    found = re.match(r" *\w+(?: +\w+(?= *\{)| *(?=:))", line)
    assert found, line
    return found[0].rstrip()


def changed(text: str, part: str) -> str:
    """Put the declarations of a part in place of those of the same name; the others come last."""
    if part.startswith("  "):
        [(start, end)] = [m.span() for m in re.finditer(rf"^{head(part)}\b.*\n", text, re.MULTILINE)]
        return text[:start] + part + text[end:]
    for declaration in re.findall(r"^\w.*?(?:\}\n)(?=\w|\n|\Z)", part, re.MULTILINE | re.DOTALL):
        old = re.search(rf"^{head(declaration)} \{{.*?\}}\n", text, re.MULTILINE | re.DOTALL)
        if old:
            text = text[: old.start()] + declaration + text[old.end() :]
        else:
            text = f"{text.rstrip()}\n{'' if declaration.count(chr(10)) == 1 else chr(10)}{declaration}"
    return text


def follow(block: Block) -> None:
    """Do what a block says: write a file, change it, or run commands and compare what they print."""
    if block.kind == "console":
        for command, shown in commands(block):
            status, output = run(command)
            wanted = re.search(r"# exit status (\d)$", command)
            assert status == (int(wanted[1]) if wanted else 0), f"{command}\n{output}"
            printed = re.sub(r"[ \t]+$", "", output, flags=re.MULTILINE).strip("\n") + "\n"
            expected = pattern(shown) if shown.strip() else "\n?"
            assert re.fullmatch(expected, printed), f"line {block.line}: {command}\n{output}"
        return
    for word in block.words:
        what, _, place = word.partition("=")
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "file":
            path.write_text(block.text, "utf-8")
        elif what == "append":
            path.write_text(path.read_text("utf-8") + block.text, "utf-8")
        elif block.kind == "policy":
            path.write_text(changed(path.read_text("utf-8"), block.text), "utf-8")
        else:
            old, new = block.text.splitlines()
            assert path.read_text("utf-8").count(old) == 1
            path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


def test_whoever_follows_the_page_sees_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE):
        follow(block)
    assert (tmp_path / "notes.ics").read_text().startswith("BEGIN:VCALENDAR")
    assert (tmp_path / "record.schema.json").read_text().startswith("{")


def written(place: str) -> Any:
    [text] = [block.text for block in blocks(PAGE) if f"file={place}" in block.words]
    return yaml.safe_load(text)


def test_the_ci_files_use_what_there_is() -> None:
    hooks = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    [repository] = written(".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in repository["hooks"]} <= hooks
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    steps = written(".github/workflows/policy.yml")["jobs"]["policy"]["steps"]
    [action] = [step["with"] for step in steps if "gradwarden" in step["uses"]]
    assert action.keys() <= inputs.keys()
    template = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())
    assert written(".gitlab-ci.yml")["variables"].keys() <= template["variables"].keys()


def test_the_verbs_of_an_author_are_all_in_it() -> None:
    used = {
        word
        for block in blocks(PAGE)
        if block.kind == "console"
        for command, _ in commands(block)
        for word in re.findall(r"^gradwarden ([a-z]+)", command)
    }
    evidence = {"log", "proof", "verify-proof", "witness", "export", "attest", "verify-attestation"}
    evidence |= {
        "timestamp",
        "rotate",
        "revoke",
        "approve",
        "trace",
        "history",
        "archive",
        "bind",
        "memorized",
        "report",
        "receipt",
        "replay",
        "sign-data",
        "sign-model",
        "verify-model",
    }
    elsewhere = {"lsp", "map"} | evidence  # editors.md, training.md, ledger.md
    assert used | elsewhere >= set(VERBS)
