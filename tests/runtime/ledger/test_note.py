from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_note, sign_note

FAULTS = {
    "unverified": "unknown_key",
    "ambiguous": "ambiguous_key",
    "invalid signature": "bad_signature",
    "malformed": "malformed",
}


def test_published_notes(vectors: Path) -> None:
    tests = json.loads((vectors / "signed-note" / "note.json").read_text())["tests"]
    assert len(tests) == 16
    for test in tests:
        keys = [PublicKey.from_vkey(vkey) for vkey in test["vkeys"]]
        note = b64decode(test["note_b64"])
        if test["expect"] == "ok":
            assert [key.name for key in open_note(note, keys).keys] == test["verified"], test["name"]
            continue
        with pytest.raises(NoteError) as caught:
            open_note(note, keys)
        assert caught.value.fault == FAULTS[test["expect"]], test["name"]


def test_published_checkpoints(vectors: Path) -> None:
    for test in json.loads((vectors / "signed-note" / "checkpoint_text.json").read_text()):
        if test["ok"]:
            assert parse_checkpoint(test["text"]).size == test["size"]
        else:
            with pytest.raises(NoteError):
                parse_checkpoint(test["text"])


@pytest.mark.parametrize(
    "text",
    [
        "origin\n01\n{root}\n",
        "origin\n-1\n{root}\n",
        "origin\n1_0\n{root}\n",
        "origin\n1\n{root}",
        "origin\n1\n{root}\nextension\n",
        "\n1\n{root}\n",
        "origin\n1\n {root}\n",
        "origin\n1\nAA==\n",
        "origin\n99999999999999999\n{root}\n",
    ],
)
def test_other_spellings_of_a_checkpoint_are_refused(text: str) -> None:
    root = "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0="
    assert parse_checkpoint(f"origin\n1\n{root}\n").size == 1
    with pytest.raises(NoteError):
        parse_checkpoint(text.format(root=root))


@given(st.integers(0, 2**53 - 1), st.binary(min_size=32, max_size=32))
def test_a_signed_checkpoint_opens_to_itself(signer: Signer, other: Signer, size: int, root: bytes) -> None:
    checkpoint = Checkpoint("gradwarden/ab", size, root)
    note = sign_note(checkpoint.text(), [signer, other]).encode()
    opened = open_note(note, [other.public])
    assert parse_checkpoint(opened.text) == checkpoint
    assert opened.keys == (other.public,)
    assert [line.name for line in opened.unverified] == ["run"]


@given(st.data())
def test_no_changed_note_opens(signer: Signer, data: st.DataObject) -> None:
    note = bytearray(sign_note("a text\n\nof two paragraphs\n", [signer]).encode())
    at = data.draw(st.integers(0, len(note) - 1))
    note[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(NoteError):
        open_note(bytes(note), [signer.public])


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        note = parse_note(data)
    except NoteError:
        return
    assert note.text.endswith("\n")


@pytest.mark.parametrize(
    "space", ["\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\N{LINE SEPARATOR}", "\x85"]
)
def test_no_name_of_a_signer_holds_a_space_of_any_sort(signer: Signer, space: str) -> None:
    note = sign_note("a text\n", [signer])
    *_, line = note.splitlines()
    added = line.replace(" run ", " an{}other ")
    assert len(parse_note(f"{note}{added.format('-')}\n".encode()).signatures) == 2
    with pytest.raises(NoteError, match="malformed signature line"):
        parse_note(f"{note}{added.format(space)}\n".encode())


@pytest.mark.parametrize("text", ["no newline", "a\ttab\n", "a\rreturn\n"])
def test_texts_that_no_note_holds_are_not_signed(signer: Signer, text: str) -> None:
    with pytest.raises(NoteError):
        sign_note(text, [signer])
