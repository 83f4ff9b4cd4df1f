"""Keys in a device, by PKCS#11."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pkcs11
import pytest

from gradwarden.runtime import Signer
from gradwarden.runtime.errors import LedgerError, SigningError
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.token_signer import (
    TokenSigner,
    TokenUri,
    has_token_key,
    make_token_key,
    token_key,
)
from tests import softhsm

Make: TypeAlias = Callable[[str], TokenSigner]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a key of a given label in the device, to which nobody is logged in."""
    softhsm.make_token()
    pkcs11.lib(softhsm.MODULE).reinitialize()  # a login is the whole process's, and other tests log in too
    signers = []

    def made(label: str) -> TokenSigner:
        at = TokenUri.parse(softhsm.uri(label))
        signers.append(TokenSigner(make_token_key(at, label, softhsm.PIN.encode()), at, softhsm.PIN))
        return signers[-1]

    yield made
    for signer in signers:
        signer.close()


@softhsm.needed
def test_a_device_signs_ledgers_that_verify(path: Path, cases: Any, make: Make) -> None:
    signer = make("ledgers")
    cases.build(path, signer)
    signer.close()
    assert verify_chain(path, [signer.public]).status == "OK"


@softhsm.needed
def test_the_public_key_is_read_from_the_device_and_named_at_will(make: Make) -> None:
    signer, at = make("named"), TokenUri.parse(softhsm.uri("named"))
    read = token_key(at, "another", softhsm.PIN.encode())
    assert (read.raw, read.name) == (signer.public.raw, "another")
    assert has_token_key(at, softhsm.PIN.encode())
    assert not has_token_key(TokenUri.parse(softhsm.uri("absent")), softhsm.PIN.encode())


@softhsm.needed
def test_a_lost_session_is_opened_anew(make: Make) -> None:
    one, other = make("first"), make("second")
    assert one.public.verify(one.sign(b"a"), b"a")
    assert other.public.verify(other.sign(b"a"), b"a")
    one.close()  # logs the whole process out of the token
    assert other.public.verify(other.sign(b"b"), b"b")


@softhsm.needed
def test_signatures_by_another_key_of_the_device_are_refused(make: Make) -> None:
    signer, another = make("mine"), make("theirs")
    mistaken = TokenSigner(another.public, softhsm.uri("mine"), softhsm.PIN)
    with pytest.raises(SigningError, match="no signature by that key"):
        mistaken.sign(b"message")
    mistaken.close()
    assert signer.public.verify(signer.sign(b"message"), b"message")


@softhsm.needed
@pytest.mark.parametrize(
    ("at", "pin", "told"),
    [
        (softhsm.uri("missing"), softhsm.PIN, "it has no such key"),
        (softhsm.uri("kept", token="elsewhere"), softhsm.PIN, "there is no such token"),
        (softhsm.uri("kept", module="/nowhere/module.so"), softhsm.PIN, "cannot open shared object"),
        (softhsm.uri("kept"), "4712", "the PIN is wrong"),
        (softhsm.uri("kept"), None, "shows it only with a PIN"),
        (softhsm.uri("kept") + "&pin-source=file:/nowhere/pin", None, "cannot be read from `/nowhere/pin`"),
    ],
)
def test_what_keeps_a_device_from_signing_is_said(at: str, pin: str | None, told: str, make: Make) -> None:
    at = at.replace("kept", label := f"kept-{uuid4()}")
    public = make(label).public
    with pytest.raises(SigningError, match=told):
        TokenSigner(public, at, pin).sign(b"message")


@softhsm.needed
def test_a_run_stops_when_its_device_is_gone(path: Path, cases: Any, make: Make) -> None:
    gone = TokenSigner(make("pulled").public, softhsm.uri("pulled", token="gone"), softhsm.PIN)
    ledger = cases.begin(path, gone)
    with pytest.raises(LedgerError, match="no such token"):
        ledger.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("token=ward", "is no PKCS#11 URI"),
        ("pkcs11:token=ward;object=run", "`module-path`"),
        ("pkcs11:object=run?module-path=/m.so", "`token`"),
        ("pkcs11:token=ward?module-path=/m.so", "`object` or `id`"),
        ("pkcs11:token=ward;object=run;slot-id=3?module-path=/m.so", "`slot-id=3` cannot be read"),
        ("pkcs11:token=ward;token=other;object=run?module-path=/m.so", "`token=other` cannot be read"),
        ("pkcs11:token=ward;object=run?module-path=/m.so&pin-value=1", "can be read by other users"),
    ],
)
def test_a_uri_that_does_not_name_a_key_is_refused(text: str, told: str) -> None:
    with pytest.raises(SigningError, match=told):
        TokenUri.parse(text)


def test_a_uri_is_read_as_its_specification_says() -> None:
    text = "pkcs11:token=The%20ward;id=%00%ff;serial=7a?pin-source=/run/pin&module-path=/m%3d.so"
    assert TokenUri.parse(text) == TokenUri("/m=.so", "The ward", "", b"\x00\xff", b"7a", "/run/pin")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, signer: Signer) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11.exceptions", None)
    at = TokenUri.parse(softhsm.uri("run"))
    for use in (
        lambda: TokenSigner(signer.public, at, softhsm.PIN).sign(b"message"),
        lambda: make_token_key(at, "run"),
        lambda: token_key(at, "run"),
    ):
        with pytest.raises(SigningError) as refused:
            use()
        assert "gradwarden[pkcs11]" in (refused.value.help or "")
