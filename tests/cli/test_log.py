"""`gradwarden log`: every entry, filtered as asked, followed while it grows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradwarden.cli.commands import log
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.shapes import SHAPES
from tests.cli.conftest import OPENED, Run, committed

Write = Callable[..., Path]


def kinds(output: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines()[1:]]


def test_every_entry_is_shown(run: Run, write_ledger: Write) -> None:
    result = run("log", write_ledger())
    assert result.exit_code == 0
    shown = [kind for kind in kinds(result.stdout) if kind != "head"]
    assert shown == ["opened", "decisions", *["step", "committed"] * 3, "refused", "sealed"]
    assert "sample version 1, bands shallow, deep, gradwarden/test" in result.stdout
    assert "epoch 0, 2 examples: 1 admit, 1 refuse; admit" in result.stdout
    assert "gradient gate: not_finite: loss" in result.stdout
    assert "signed by run" in result.stdout


def test_every_kind_of_entry_has_a_filter_and_words() -> None:
    assert set(log.KINDS) == set(SHAPES)
    assert {*log._CONTENTS, "step"} == set(SHAPES)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--kind", "committed"], [3, 5, 7]),
        (["--kind", "opened", "--kind", "refused"], [0, 8]),
        (["--steps", "1..2"], [4, 5, 6, 7]),
        (["--steps", "2.."], [6, 7, 8]),
        (["--steps", "..0"], [2, 3]),
        (["--steps", "1"], [4, 5]),
        (["--rule", "rule_1"], [1, 4]),
        (["--rule", "open"], [1, 2, 4, 6]),
        (["--verdict", "refuse"], [1, 2, 4, 6]),
        (["--verdict", "defer"], []),
        (["--kind", "step", "--steps", "1..", "--rule", "open"], [4, 6]),
        (["--kind", "committed", "--tail", "2"], [5, 7]),
        (["--tail", "0"], []),
    ],
)
def test_filters(run: Run, write_ledger: Write, options: list[str], expected: list[int]) -> None:
    result = run("log", write_ledger(), "--format", "json", *options)
    document = json.loads(result.stdout)
    assert [e["index"] for e in document["entries"] if e["kind"] not in ("head", "sealed")] == expected


def test_json_lines_are_the_lines_of_the_ledger(run: Run, write_ledger: Write) -> None:
    path = write_ledger()
    result = run("log", path, "--format", "jsonl")
    assert result.stdout_bytes == path.read_bytes()


@pytest.mark.parametrize("steps", ["x", "..", "5..2", "-1..3", "1...3"])
def test_a_range_that_is_none_is_misuse(run: Run, write_ledger: Write, steps: str) -> None:
    assert run("log", write_ledger(), "--steps", steps).exit_code == 2


def test_a_damaged_ledger_is_shown_up_to_the_damage(run: Run, write_ledger: Write) -> None:
    path = write_ledger()
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"1.5", b"1.6")
    path.write_bytes(b"\n".join(lines))
    result = run("log", path, "--format", "json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [entry["index"] for entry in document["entries"]] == [0, 1, 2, 3]
    assert document["damage"] == {"index": 4, "code": "wrong_link"}
    assert "entry 4" in result.stderr


def test_an_unfinished_last_line_is_not_shown(run: Run, write_ledger: Write) -> None:
    path = write_ledger(sealed=False)
    before = kinds(run("log", path).stdout)
    with path.open("ab") as file:
        file.write(b'{"body":{"note"')
    result = run("log", path)
    assert (result.exit_code, kinds(result.stdout)) == (0, before)


@pytest.mark.parametrize("content", [b"hello\n", b"\x00\x01\x02\n", b"{}\n", b"x" * 70_000])
def test_what_is_no_ledger_is_damage_at_entry_0(run: Run, here: Path, content: bytes) -> None:
    (here / "x.ledger").write_bytes(content)
    result = run("log", "x.ledger")
    assert result.exit_code == 1
    assert "entry 0" in result.stderr


def test_control_characters_in_an_entry_are_not_sent_to_the_terminal(
    run: Run, here: Path, signer: Signer
) -> None:
    ledger = Ledger.open(here / "x.ledger", signer, durability="os", origin="gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    ledger.append("refused", {"step": 0, "gate": "commit", "reason": "a\x1b[31mb", "detail": "c\nd"})
    ledger.close(None)
    output = run("log", "x.ledger").stdout
    assert "\x1b" not in output
    assert "a\N{REPLACEMENT CHARACTER}[31mb: c\N{REPLACEMENT CHARACTER}d" in output


def test_a_note_of_suppliers_that_says_nothing_is_told(run: Run, here: Path, signer: Signer) -> None:
    ledger = Ledger.open(here / "x.ledger", signer, durability="os", origin="gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    ledger.append("supplied", {"note": "nothing"})
    ledger.close(None)
    shown = run("log", "x.ledger")
    assert (shown.exit_code, shown.stdout.splitlines()[2].split()[2:]) == (0, ["malformed"])


def test_following_shows_what_is_added_and_ends_with_the_seal(here: Path, signer: Signer) -> None:
    path = here / "live.ledger"
    ledger = Ledger.open(path, signer, durability="os", origin="gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    ledger.flush()
    command = [sys.executable, "-m", "gradwarden.cli", "log", str(path), "-f", "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["kind"] == "opened"
        ledger.append("committed", committed(0))
        ledger.flush()
        seen = [json.loads(process.stdout.readline())["kind"]]
        while "committed" not in seen:
            seen.append(json.loads(process.stdout.readline())["kind"])
        ledger.close({"steps": 1, "committed": 1, "refused": 0, "examples": 0})
        rest = [json.loads(line)["kind"] for line in process.stdout]
    assert rest[-2:] == ["sealed", "head"]
    assert process.returncode == 0


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """What runs in the background of a shell ignores them, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_while_following_is_clean(here: Path, signer: Signer) -> None:
    path = here / "live.ledger"
    ledger = Ledger.open(path, signer, durability="os", origin="gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    ledger.flush()
    command = [sys.executable, "-m", "gradwarden.cli", "log", str(path), "-f", "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    ledger.close(None)
    assert process.returncode == 130
    assert "Traceback" not in complaint
