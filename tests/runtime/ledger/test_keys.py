from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gradwarden.runtime.errors import KeyFileError
from gradwarden.runtime.ledger.keys import PublicKey, Signer


def test_wycheproof_verdicts(wycheproof: list[dict[str, Any]]) -> None:
    wrong = []
    for group in wycheproof:
        key = PublicKey("vector", bytes.fromhex(group["publicKey"]["pk"]))
        for case in group["tests"]:
            holds = key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
            if holds != (case["result"] == "valid"):
                wrong.append(case["tcId"])
    assert sum(len(group["tests"]) for group in wycheproof) == 151
    assert wrong == []


def test_a_saved_key_signs_as_before_and_is_private(tmp_path: Path) -> None:
    signer = Signer.generate("run")
    signer.save(tmp_path / "run.key")
    signer.public.save(tmp_path / "run.pub")
    loaded, public = Signer.load(tmp_path / "run.key"), PublicKey.load(tmp_path / "run.pub")
    assert public == loaded.public == signer.public
    assert public.verify(loaded.sign(b"text"), b"text")
    assert not public.verify(loaded.sign(b"text"), b"other")
    assert stat.S_IMODE((tmp_path / "run.key").stat().st_mode) == 0o600
    assert (tmp_path / "run.pub").read_text() == signer.public.vkey + "\n"


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    Signer.generate("run").save(tmp_path / "run.key")
    before = (tmp_path / "run.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        Signer.generate("run").save(tmp_path / "run.key")
    assert (tmp_path / "run.key").read_bytes() == before


def test_a_passphrase_is_needed_and_must_be_right(tmp_path: Path) -> None:
    path = tmp_path / "run.key"
    signer = Signer.generate("run")
    signer.save(path, passphrase="correct horse")
    assert Signer.load(path, "correct horse").public == signer.public
    with pytest.raises(KeyFileError, match="is protected by a passphrase"):
        Signer.load(path)
    with pytest.raises(KeyFileError, match="the passphrase does not open"):
        Signer.load(path, "wrong")
    Signer.generate("open").save(tmp_path / "open.key")
    with pytest.raises(KeyFileError, match="is not protected by a passphrase"):
        Signer.load(tmp_path / "open.key", "correct horse")


@pytest.mark.parametrize("passphrase", [None, "", "wrong", "correct horse"])
def test_a_damaged_protected_key_is_an_error_that_tells_no_passphrase(
    tmp_path: Path, passphrase: str | None
) -> None:
    path = tmp_path / "run.key"
    Signer.generate("run").save(path, passphrase="correct horse")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(KeyFileError) as failed:
        Signer.load(path, passphrase)
    assert "passphrase" in failed.value.message
    assert "horse" not in f"{failed.value.message}{failed.value.help}"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\n", b"x" * 20_000])
def test_files_that_are_no_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.key").write_bytes(content)
    with pytest.raises(KeyFileError):
        Signer.load(tmp_path / "bad.key")
    with pytest.raises(KeyFileError):
        PublicKey.load(tmp_path / "bad.key")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ec.key").write_bytes(pem)
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        Signer.load(tmp_path / "ec.key")


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "01" + "00" * 30 + "80",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "ff",
    ],
)
def test_points_of_small_order_are_refused(point: str) -> None:
    with pytest.raises(KeyFileError, match="safe point"):
        PublicKey("run", bytes.fromhex(point))


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "\u2003", "x" * 256])
def test_names_that_a_note_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(KeyFileError, match="cannot name a key"):
        Signer.generate(name)


def test_every_change_of_a_vkey_is_refused(signer: Signer) -> None:
    vkey = signer.public.vkey
    for at in range(len(vkey)):
        changed = vkey[:at] + ("A" if vkey[at] != "A" else "B") + vkey[at + 1 :]
        with pytest.raises(KeyFileError):
            PublicKey.from_vkey(changed)


def test_a_signer_does_not_show_its_key(signer: Signer) -> None:
    assert repr(signer) == "FileSigner('run')"
