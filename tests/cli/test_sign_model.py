"""A signed model: its files, and the ledger that names them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_verify import program, record

__all__ = ["program", "record"]  # fixtures


@pytest.fixture
def folder(here: Path) -> Path:
    """A folder with weights, and a key pair beside it, made by OpenSSL."""
    (here / "model").mkdir()
    (here / "model" / "weights.bin").write_bytes(b"weights")
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "model.pem"]
    subprocess.run(make, check=True, capture_output=True)
    public = ["openssl", "pkey", "-in", "model.pem", "-pubout", "-out", "model.pub.pem"]
    subprocess.run(public, check=True, capture_output=True)
    return here / "model"


CHECK = ("verify-model", "model", "--signature", "model/model.sig", "--key", "model.pub.pem")


def test_a_signed_model_holds_until_it_is_changed(run: Run, folder: Path) -> None:
    assert run("sign-model", folder, "--sign", "model.pem", "-o", "model/model.sig").exit_code == 0
    held = run(*CHECK)
    assert (held.exit_code, held.stdout.split()[0]) == (0, "OK")
    (folder / "weights.bin").write_bytes(b"other weights")
    changed = run(*CHECK, "--format", "json")
    assert changed.exit_code == 1
    assert [fault["code"] for fault in json.loads(changed.stdout)["faults"]] == ["wrong_file"]


def test_a_ledger_is_about_the_model_or_not(run: Run, folder: Path, record: Callable[..., Path]) -> None:
    ledger = record()
    run("sign-model", folder, "--sign", "model.pem", "-o", "model/model.sig")
    about = ("--ledger", ledger, "--ledger-key", "run.pub")
    assert "names one of them last" in run(*CHECK, *about).stdout
    (folder / "weights.bin").write_bytes(b"other weights")
    run("sign-model", folder, "--sign", "model.pem", "-o", "model/model.sig")
    assert run(*CHECK).exit_code == 0
    assert "unnamed_weights" in run(*CHECK, *about).stderr
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:3] + lines[4:]))
    assert "error[TAMPERED]" in run(*CHECK, *about).stderr


def test_what_was_not_signed_by_the_key_fails(run: Run, folder: Path, here: Path) -> None:
    run("sign-model", folder, "--sign", "model.pem", "-o", "model/model.sig")
    (folder / "model.sig").write_text("{}")
    assert (run(*CHECK).exit_code, "bad_signature" in run(*CHECK).stderr) == (1, True)
    for wrong in (
        ("sign-model", "nowhere", "--sign", "model.pem", "-o", "x"),
        ("sign-model", "model", "--sign", "model.pub.pem", "-o", "x"),
        ("verify-model", "nowhere", *CHECK[2:]),
        (*CHECK[:-1], "model.pem"),
        (*CHECK, "--ledger", "run.ledger"),
    ):
        assert run(*wrong).exit_code == 2
    assert not (here / "x").exists()
