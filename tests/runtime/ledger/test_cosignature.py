"""Cosignatures are those of C2SP tlog-cosignature: the ones that public witnesses make hold here."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import KeyFileError, NoteError
from gradwarden.runtime.ledger.cosignature import cosign, cosignatures, witness_key
from gradwarden.runtime.ledger.keys import PublicKey, Signer, WitnessKey
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_note, sign_note


@pytest.fixture(scope="module")
def published(vectors: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((vectors / "cosignature" / "checkpoint.json").read_text())
    return loaded


def test_cosignatures_of_public_witnesses_hold(published: dict[str, Any]) -> None:
    note = published["note"].encode()
    witnesses = [WitnessKey.from_vkey(vkey) for vkey in published["witnesses"]]
    found = cosignatures(note, witnesses)
    assert {one.witness for one in found} == set(witnesses)
    assert {one.seconds for one in found} == {published["time"]}
    log = PublicKey.from_vkey(published["log"])
    assert open_note(note, [log]).keys == (log,)
    assert len(open_note(note, [log, *witnesses]).keys) == 5


def test_of_another_head_they_do_not_hold(published: dict[str, Any]) -> None:
    note = published["note"].replace("1432088532", "1432088533").encode()
    for vkey in published["witnesses"]:
        with pytest.raises(NoteError) as caught:
            cosignatures(note, [WitnessKey.from_vkey(vkey)])
        assert caught.value.fault == "bad_signature"


@given(st.integers(0, 2**63 - 1))
def test_a_cosignature_is_what_the_specification_says(signer: Signer, other: Signer, seconds: int) -> None:
    text = Checkpoint("example.com/log", 7, b"\x05" * 32).text()
    note = cosign(sign_note(text, [other]).encode(), signer, seconds)
    line = parse_note(note).signatures[-1]
    raw = signer.public.raw
    assert line.key_id == sha256(b"run\n\x04" + raw).digest()[:4]
    assert line.signature[:8] == seconds.to_bytes(8, "big")
    message = f"cosignature/v1\ntime {seconds}\n{text}".encode()
    Ed25519PublicKey.from_public_bytes(raw).verify(line.signature[8:], message)
    assert [(one.witness, one.seconds) for one in cosignatures(note, [witness_key(signer)])] == [
        (witness_key(signer), seconds)
    ]


def test_a_witness_signs_a_head_once(signer: Signer, other: Signer) -> None:
    head = sign_note(Checkpoint("example.com/log", 7, b"\x05" * 32).text(), [other]).encode()
    note = cosign(cosign(head, signer, 1), signer, 2)
    assert [line.name for line in parse_note(note).signatures] == ["other", "run"]
    assert cosignatures(note, [witness_key(signer)])[0].seconds == 2


@pytest.mark.parametrize("seconds", [2**63, 2**64 - 1])
def test_times_out_of_range_do_not_hold(signer: Signer, seconds: int) -> None:
    text = Checkpoint("example.com/log", 7, b"\x05" * 32).text()
    note = cosign(sign_note(text, [signer]).encode(), signer, seconds)
    with pytest.raises(NoteError):
        cosignatures(note, [witness_key(signer)])


@given(st.data())
def test_no_changed_cosignature_holds(signer: Signer, data: st.DataObject) -> None:
    text = Checkpoint("example.com/log", 7, b"\x05" * 32).text()
    note = bytearray(cosign(sign_note(text, [signer]).encode(), signer, 1_700_000_000))
    at = data.draw(st.integers(0, len(note) - 1))
    note[at] ^= data.draw(st.integers(1, 255))
    key = witness_key(signer)
    try:
        found = cosignatures(bytes(note), [key])
    except NoteError:
        return
    # What remains is a change of the log's own line, or of the name or key id of the witness's.
    assert not found or parse_note(bytes(note)).text == text


def test_the_two_kinds_of_keys_are_not_taken_for_each_other(signer: Signer, tmp_path: Path) -> None:
    text = Checkpoint("example.com/log", 7, b"\x05" * 32).text()
    plain = sign_note(text, [signer]).encode()
    key = witness_key(signer)
    assert cosignatures(plain, [key]) == ()
    with pytest.raises(NoteError):
        open_note(plain, [key])
    both = cosign(plain, signer, 9)
    assert open_note(both, [signer.public]).keys == (signer.public,)
    key.save(tmp_path / "witness.pub")
    assert WitnessKey.load(tmp_path / "witness.pub") == key
    with pytest.raises(KeyFileError, match="--witness"):
        PublicKey.load(tmp_path / "witness.pub")
    with pytest.raises(KeyFileError, match="keygen NAME --witness"):
        WitnessKey.from_vkey(signer.public.vkey)
