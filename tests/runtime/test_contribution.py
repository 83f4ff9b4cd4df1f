"""Attestations of contributors: what a bad, lapsed or weak one costs an example."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import Context, parse_policy
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.note import sign_note
from gradwarden.runtime.privacy.contribution import (
    Contribution,
    attested,
    open_contribution,
    sign_contribution,
)

CLINIC, LAB = Signer.generate("clinic-7"), Signer.generate("lab-2")
KEYS = {"clinic-7": CLINIC.public, "lab-2": LAB.public}
TERMS = Contribution("clinic-7", "phi", "1.5", date(2026, 1, 1), date(2027, 1, 1))
RECORD = {"contributor": "clinic-7", "class": "phi"}
NOTE = sign_contribution(TERMS, [CLINIC])

RULES = parse_policy(
    """policy clinics version 1 language 1
examples {
  contributor    : string
  class          : one of phi, genome
  attestation    : one of good, missing, bad, other
  attested_noise : number 0..1000000000 places 6 optional
  attested_from  : date optional
  attested_until : date optional
}
model { shallow = top 25%  deep = rest }
depth all { reach all }
suppress unattested { when attestation != good  because "no contributor stands for it" }
suppress lapsed {
  when has attested_from and has attested_until and (today < attested_from or today >= attested_until)
  because "its attestation is not in force"
}
suppress under_floor {
  when has attested_noise and attested_noise < 1
  because "its bound is below the floor of the corpus"
}
privacy patients { when class == phi  within shallow  epsilon 3 delta 1e-6 clip 1.0  noise at most 4 }
"""
).program


def verdict(note: bytes | None, on: date = date(2026, 6, 1), record: dict[str, str] = RECORD) -> str:
    """Return what the policy decides of an example on a day, or by which rule it refuses it."""
    decision = RULES.decide(attested(record, note, KEYS), Context(at=on))
    refusing = [rule for rule in decision.rules if rule in ("unattested", "lapsed", "under_floor")]
    return decision.verdict if decision.verdict != "refuse" else ", ".join(refusing)


def test_a_good_attestation_admits_from_its_first_day_until_its_last():
    assert verdict(NOTE) == "limit"
    assert verdict(NOTE, date(2026, 1, 1)) == verdict(NOTE, date(2026, 12, 31)) == "limit"
    assert verdict(NOTE, date(2025, 12, 31)) == verdict(NOTE, date(2027, 1, 1)) == "lapsed"


def test_one_that_is_missing_bad_or_for_other_data_is_refused():
    assert verdict(None) == "unattested"
    assert verdict(NOTE.replace(b"least 1.5", b"least 9.5")) == "unattested"
    assert verdict(NOTE, record={"contributor": "clinic-7", "class": "genome"}) == "unattested"
    assert verdict(NOTE, record={"contributor": "lab-2", "class": "phi"}) == "unattested"


def test_one_below_the_floor_of_the_corpus_is_refused():
    assert verdict(sign_contribution(replace(TERMS, noise="0.99"), [CLINIC])) == "under_floor"
    assert verdict(sign_contribution(replace(TERMS, noise="1"), [CLINIC])) == "limit"


def test_nobody_attests_for_another():
    by_the_lab = sign_contribution(TERMS, [LAB])
    with pytest.raises(NoteError, match="`clinic-7` did not sign"):
        open_contribution(by_the_lab, KEYS)
    assert open_contribution(sign_contribution(TERMS, [LAB, CLINIC]), KEYS) == TERMS
    stranger = sign_contribution(TERMS, [Signer.generate("clinic-7")])
    with pytest.raises(NoteError, match="no known key"):
        open_contribution(stranger, KEYS)


def test_what_a_record_says_of_its_own_attestation_does_not_count():
    claims = RECORD | {"attestation": "good", "attested_noise": 99.0, "attested_until": date(2099, 1, 1)}
    assert attested(claims, None, KEYS) == RECORD | {"attestation": "missing"}


@given(
    noise=st.decimals(0, 10**6, places=3).map(lambda value: f"{value:f}"),
    start=st.dates(date(1, 1, 1), date(9000, 1, 1)),
    days=st.integers(1, 400),
)
def test_what_was_signed_is_read_again(noise, start, days):
    terms = replace(TERMS, noise=noise, valid_from=start, valid_until=start + timedelta(days))
    assert open_contribution(sign_contribution(terms, [CLINIC]), KEYS) == terms


@given(at=st.integers(0, len(NOTE) - 1), byte=st.integers(0, 255))
def test_no_byte_can_be_changed(at, byte):
    changed = NOTE[:at] + bytes([byte]) + NOTE[at + 1 :]
    assert (attested(RECORD, changed, KEYS)["attestation"] == "good") == (changed == NOTE)


@pytest.mark.parametrize(
    "text",
    [
        TERMS.text().replace("1.5", "01.5"),
        TERMS.text().replace("1.5", "-1"),
        TERMS.text().replace("2026-01-01", "2026-02-30"),
        TERMS.text().replace("2027", "2026"),
        TERMS.text() + "class genome\n",
        TERMS.text().replace("class phi\n", ""),
    ],
)
def test_texts_of_another_form_are_refused_though_they_are_signed(text):
    with pytest.raises(NoteError, match=r"no attestation|ends before"):
        open_contribution(sign_note(text, [CLINIC]).encode(), KEYS)


def test_a_long_note_is_refused():
    with pytest.raises(NoteError, match="at most 4,096 bytes"):
        open_contribution(NOTE * 20, KEYS)
