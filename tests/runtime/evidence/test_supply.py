"""Those who supply the data sign the manifest of its examples; the run records that before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import LedgerError, NoteError
from gradwarden.runtime.evidence.supply import Supply, describe_supply, read_supply, sign_supply, supply_of
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.note import open_note

CLINIC, LAB = Signer.generate("clinic"), Signer.generate("lab")
SUPPLY = Supply("ab" * 32, 17)


def test_a_manifest_is_signed_by_several(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"{}\n")
    supply = supply_of(path)
    note = sign_supply(supply, LAB, sign_supply(supply, CLINIC))
    assert sign_supply(supply, LAB, note) == note
    assert read_supply(note) == supply
    assert open_note(note, [CLINIC.public, LAB.public]).keys == (CLINIC.public, LAB.public)
    told = describe_supply(note)
    assert told["claimed_signers"] == [f"{one.name}+{one.public.key_id.hex()}" for one in (CLINIC, LAB)]
    with pytest.raises(NoteError, match="changed since"):
        sign_supply(Supply(supply.digest, supply.size + 1), LAB, note)


def vouches(note: bytes) -> bool:
    """Whether a note is about the manifest below, and the clinic has signed it."""
    try:
        return read_supply(note) == SUPPLY and bool(open_note(note, [CLINIC.public]).keys)
    except NoteError:
        return False


@given(st.data())
def test_no_other_note_is_about_a_manifest(data: st.DataObject) -> None:
    note = bytearray(sign_supply(SUPPLY, CLINIC))
    assert vouches(bytes(note))
    place = data.draw(st.integers(0, len(note) - 1))
    note[place] ^= 1 << data.draw(st.integers(0, 7))
    assert not vouches(bytes(note))


def test_a_run_records_it_before_its_first_step(lab: Any) -> None:
    note = sign_supply(SUPPLY, CLINIC)
    governor = lab.governor()
    with pytest.raises(NoteError):
        governor.supply(b"something else")
    governor.supply(note)
    lab.step(governor, lab.batch("a"))
    with pytest.raises(LedgerError, match="before the first step"):
        governor.supply(note)
    governor.close()
    report = lab.verify()
    assert report.ok
    assert [told["digest"] for told in report.facts["supplied"]] == ["ab" * 32]

    def late(entries: Any) -> None:
        place = next(at for at, (kind, _) in enumerate(entries) if kind == "supplied")
        entries.insert(-1, entries.pop(place))

    def odd(entries: Any) -> None:
        body = next(body for kind, body in entries if kind == "supplied")
        body["note"] = body["note"].replace("bytes 17", "bytes 017")

    for number, change in enumerate((late, odd)):
        (finding,) = lab.forge(change, target=str(number)).findings
        assert finding.code == "wrong_supply"
