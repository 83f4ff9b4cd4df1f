"""Whoever gives a verb the wrong file is told which file it is, and what to give instead."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwarden.cli.failures import InputError
from gradwarden.cli.options import read_passphrase
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import KeyFileError
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run

READERS = {
    "report": ["--key", "run.pub", "-o", "out.html"],
    "history": [],
    "proof": ["--entry", "0"],
    "export": ["out"],
    "memorized": [],
    "trace": [],
    "receipt": ["--id", "a", "--secret", "run.secret"],
    "witness": ["--key", "run.pub", "--sign", "w.key", "--record", "w.json"],
}
"""Verbs that read a ledger, and what else they are given."""

BEFORE = {"export": ["tiles"], "trace": ["index"], "receipt": ["make"]}

NO_LEDGERS = {
    "an empty file": b"",
    "a table": b"id,label\n1,a\n",
    "a program": b'{"assertions":[]}\n',
    "binary data": b"\x7fELF\x02\x00\x93\n\x00\n",
    "a first entry that was cut off": b'{"body":{"at":',
    "another encoding": "{}\n".encode("utf-16"),
}


@pytest.fixture(autouse=True)
def keys(here: Path, signer: Signer) -> None:
    signer.public.save(here / "run.pub")
    Signer.generate("w").save(here / "w.key")
    (here / "run.secret").write_text("ab" * 32 + "\n")


@pytest.mark.parametrize("content", NO_LEDGERS.values(), ids=NO_LEDGERS.keys())
@pytest.mark.parametrize("verb", READERS)
def test_a_file_that_is_no_ledger_is_misuse(run: Run, here: Path, verb: str, content: bytes) -> None:
    (here / "x.ledger").write_bytes(content)
    result = run(verb, *BEFORE.get(verb, []), "x.ledger", *READERS[verb])
    assert result.exit_code == 2
    assert "`x.ledger` holds no entry of a ledger" in result.stderr
    assert "= help: is it the right file?" in result.stderr


@pytest.mark.parametrize("content", [b"", NO_LEDGERS["a first entry that was cut off"]])
def test_a_log_of_nothing_is_misuse_and_no_empty_answer(run: Run, here: Path, content: bytes) -> None:
    (here / "x.ledger").write_bytes(content)
    result = run("log", "x.ledger")
    assert result.exit_code == 2
    assert "`x.ledger` holds no entry of a ledger" in result.stderr


def test_verify_asks_whether_it_is_the_right_file(run: Run, here: Path) -> None:
    (here / "x.ledger").write_bytes(NO_LEDGERS["a table"])
    result = run("verify", "x.ledger", "--key", "run.pub")
    assert result.exit_code == 1
    assert "the file does not begin as a ledger does: is it the right one?" in result.stderr


def test_weights_are_held_against_an_empty_ledger_without_a_negative_entry(run: Run, here: Path) -> None:
    (here / "x.ledger").write_bytes(b"")
    (here / "w.safetensors").write_bytes(b"")
    result = run("verify", "x.ledger", "--key", "run.pub", "--checkpoint-weights", "w.safetensors")
    assert result.exit_code == 1
    assert "entry -1" not in result.stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\xff\xfe\x00", b"a\n\n\xe2\x80\x94 b !\n"],
    ids=["none", "text", "bin", "odd"],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "run.ledger", "--key", "run.pub", "--checkpoint", "x.note"],
        ["proof", "run.ledger", "--from", "x.note"],
        ["proof", "run.ledger", "--entry", "0", "--head", "x.note"],
        ["timestamp", "x.note"],
        ["export", "tiles", "run.ledger", "out", "--head", "x.note"],
    ],
    ids=["verify", "proof from", "proof head", "timestamp", "export"],
)
def test_a_note_that_is_none_is_named(
    run: Run, here: Path, write_ledger: Callable[..., Path], arguments: list[str], content: bytes
) -> None:
    write_ledger()
    (here / "x.note").write_bytes(content)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "`x.note`" in result.stderr
    assert "= help:" in result.stderr


@pytest.mark.parametrize("content", [b"hello\n", b"", b"\xff\xfe\x00"])
@pytest.mark.parametrize("verb", [["verify-proof"], ["receipt", "check"], ["verify-attestation"]])
def test_evidence_that_cannot_be_read_is_named(run: Run, here: Path, verb: list[str], content: bytes) -> None:
    name = "x.evidence"
    (here / name).write_bytes(content)
    result = run(*verb, name, "--key", "run.pub")
    assert result.exit_code == 2
    assert f"`{name}`" in result.stderr
    assert "= help: give" in result.stderr


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 16, "ab" * 64, "p\u00e4tient"])
def test_a_secret_that_is_none_is_told_in_plain_words(
    run: Run, here: Path, write_ledger: Callable[..., Path], content: str
) -> None:
    write_ledger()
    (here / "x.secret").write_text(content, "utf-8")
    result = run("receipt", "make", "run.ledger", "--id", "a", "--secret", "x.secret")
    assert result.exit_code == 2
    assert "`x.secret` is no ledger's secret, which is one line of 64 hexadecimal digits" in result.stderr
    assert "LEDGER.secret" in result.stderr


def test_a_private_key_in_the_place_of_a_public_one_is_told_as_such(run: Run, here: Path) -> None:
    result = run("verify", "run.ledger", "--key", "w.key")
    assert result.exit_code == 2
    assert "`w.key` is a private key, where a public one is asked for" in result.stderr


def test_of_several_keys_the_bad_one_is_named(run: Run, here: Path) -> None:
    (here / "x.pub").write_text("hello\n")
    result = run("verify", "run.ledger", "--key", "run.pub", "--key", "x.pub")
    assert result.exit_code == 2
    assert "`x.pub` is not a usable public key file" in result.stderr


def test_a_public_key_that_went_through_windows_is_read(
    run: Run, here: Path, write_ledger: Callable[..., Path]
) -> None:
    write_ledger()
    (here / "x.pub").write_bytes((here / "run.pub").read_bytes().replace(b"\n", b"\r\n"))
    assert "signed heads by run" in run("verify", "run.ledger", "--key", "x.pub").stdout


def test_endless_files_are_not_read_into_memory(here: Path) -> None:
    """A line without an end, of a file that takes no room on the disk."""
    with (here / "huge").open("wb") as file:
        file.truncate(8 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(KeyFileError, match="no ledger's secret"):
            Committer.load(here / "huge")
        with pytest.raises(InputError, match="longer than a passphrase"):
            read_passphrase(here / "huge")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_index_that_cannot_be_made_says_where_it_would_be(
    run: Run, here: Path, write_ledger: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write_ledger()
    monkeypatch.setattr(Path, "mkdir", refuse)
    result = run("trace", "index", "run.ledger")
    assert result.exit_code == 2
    assert "no index can be made beside `run.ledger`: permission denied" in result.stderr
    assert "copy the ledger, or link to it" in result.stderr


@pytest.mark.parametrize(("content", "told"), [(b"\xff", "not UTF-8 text"), (b"hello", "expecting value")])
def test_a_program_that_is_none_says_what_to_give(run: Run, here: Path, content: bytes, told: str) -> None:
    (here / "x.json").write_bytes(content)
    result = run("verify", "x.json", "--key", "run.pub")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "codec" not in result.stderr
    assert "= help: give a policy, or what `gradwarden build -o` wrote" in result.stderr
