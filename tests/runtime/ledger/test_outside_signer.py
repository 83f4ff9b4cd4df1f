"""Keys that are kept elsewhere: nothing that they hand over is believed before it is verified."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.errors import LedgerError, SigningError
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.keys import FileSigner
from gradwarden.runtime.ledger.outside_signer import CommandSigner
from gradwarden.runtime.ledger.reader import read_entries

SIGN = """
import sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
key = load_pem_private_key(open(sys.argv[1], "rb").read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))
"""


@pytest.fixture
def commanded(tmp_path: Path, signer: FileSigner) -> CommandSigner:
    """A signer that asks another process, which has the key."""
    signer.save(tmp_path / "far.key")
    return CommandSigner(signer.public, [sys.executable, "-c", SIGN, str(tmp_path / "far.key")])


def python(signer: Signer, text: str, seconds: float = 30) -> CommandSigner:
    return CommandSigner(signer.public, [sys.executable, "-S", "-c", text], seconds)


def test_a_command_signs_as_the_key_does(commanded: CommandSigner, signer: Signer) -> None:
    assert commanded.sign(b"message") == signer.sign(b"message")
    assert (commanded.name, commanded.public) == (signer.name, signer.public)


def test_a_ledger_that_a_command_signs_verifies(
    commanded: CommandSigner, signer: Signer, path: Path, cases: Any
) -> None:
    cases.build(path, commanded)
    assert verify_chain(path, [signer.public]).status == "OK"


BAD = {
    "not there": (["/nowhere/sign"], "cannot be run"),
    "fails": ("import sys; sys.exit('the token\\tis locked\\n\\n')", "status 1: the tokenis locked"),
    "silent": ("", "0 bytes"),
    "a newline too many": ("import sys; sys.stdout.buffer.write(bytes(65))", "65 bytes"),
    "not a signature": ("import sys; sys.stdout.buffer.write(bytes(64))", "no signature by that key"),
}


@pytest.mark.parametrize(("command", "told"), BAD.values(), ids=BAD)
def test_a_command_that_does_not_sign_is_an_error(
    signer: Signer, command: str | list[str], told: str
) -> None:
    bad = python(signer, command) if isinstance(command, str) else CommandSigner(signer.public, command)
    with pytest.raises(SigningError, match=told):
        bad.sign(b"message")


def test_a_signature_by_another_key_is_refused(
    commanded: CommandSigner, other: Signer, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SIGN, str(tmp_path / "far.key")]
    with pytest.raises(SigningError, match="no signature by that key"):
        CommandSigner(other.public, command).sign(b"message")


def test_a_signature_over_something_else_is_refused(signer: Signer) -> None:
    stale = signer.sign(b"another message").hex()
    text = f"import sys; sys.stdout.buffer.write(bytes.fromhex('{stale}'))"
    with pytest.raises(SigningError, match="no signature by that key"):
        python(signer, text).sign(b"message")


def test_a_command_that_hangs_is_ended_with_all_that_it_started(signer: Signer, tmp_path: Path) -> None:
    mark = tmp_path / "late"
    late = f"import time; time.sleep(1); open({str(mark)!r}, 'w')"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {late!r}])"
    with pytest.raises(SigningError, match=r"longer than 0\.5 s"):
        python(signer, text, 0.5).sign(b"message")
    time.sleep(1)
    assert not mark.exists()


@pytest.mark.parametrize("durability", ["every", "group", "os"])
def test_without_a_signature_there_is_no_head_and_no_further_entry(
    path: Path, cases: Any, signer: Signer, durability: str
) -> None:
    silent = python(signer, "")
    ledger = cases.begin(path, silent, durability=durability)
    with pytest.raises(LedgerError, match=r"no longer be written.*0 bytes"):
        ledger.close(cases.seal)
    assert "head" not in {entry.kind for entry in read_entries(path)}
    assert not Path(f"{path}.head").exists()
    with pytest.raises(LedgerError):
        ledger.append("step", cases.step(0))
    # what was written stands; the head is added once the key can be reached
    with pytest.raises(LedgerError, match="is sealed"):
        Ledger.open(path, signer)
    assert verify_chain(path, [signer.public]).status == "OK"
