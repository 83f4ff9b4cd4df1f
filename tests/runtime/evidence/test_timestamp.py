"""Time stamps, held against those of another authority and another implementation's requests."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence import der
from gradwarden.runtime.evidence.timestamp import _check_path, check_stamp, load_authorities, make_request

VECTORS = Path(__file__).parents[2] / "vectors" / "rfc3161"
STAMP = (VECTORS / "response.tsr").read_bytes()
LEAF, MIDDLE, ROOT = load_authorities((VECTORS / "ts_chain.pem").read_bytes())
TIME = datetime(2024, 10, 8, 15, 40, 32, tzinfo=UTC)
DATA = b"hello"
"""What the authority of the vectors stamped."""


@pytest.mark.parametrize(
    "trusted", [[LEAF], [MIDDLE], [ROOT, MIDDLE], [LEAF, MIDDLE, ROOT]], ids=["own", "issuer", "root", "all"]
)
def test_a_stamp_of_another_authority_holds(trusted: list[x509.Certificate]) -> None:
    stamp = check_stamp(STAMP, DATA, trusted)
    assert (stamp.time, stamp.authority) == (TIME, LEAF)
    assert stamp.name == "CN=Test TSA Timestamping,O=local"


def test_certificates_that_others_added_to_a_stamp_change_nothing() -> None:
    injected = (VECTORS / "response-injected-certs.tsr").read_bytes()
    assert len(injected) > len(STAMP)
    assert check_stamp(injected, DATA, [ROOT, MIDDLE]).authority == LEAF


@pytest.mark.parametrize(
    ("response", "data", "trusted", "told"),
    [
        (STAMP, b"hullo", [LEAF], "of other bytes"),
        (STAMP, DATA, [], "not trusted"),
        (STAMP, DATA, [ROOT], "not trusted"),  # who links it to the root is missing
        ((VECTORS / "other_response.tsr").read_bytes(), DATA, [LEAF, MIDDLE, ROOT], "not trusted"),
        (STAMP[:-1], DATA, [LEAF], "cannot be read"),
        (STAMP + b"\0", DATA, [LEAF], "cannot be read"),
        (b"", DATA, [LEAF], "cannot be read"),
        (bytes.fromhex("30053003020102"), DATA, [LEAF], "status 2"),
        (make_request(DATA), DATA, [LEAF], "cannot be read"),
    ],
)
def test_a_stamp_that_proves_nothing_is_refused(
    response: bytes, data: bytes, trusted: list[x509.Certificate], told: str
) -> None:
    with pytest.raises(EvidenceError, match=told):
        check_stamp(response, data, trusted)


def changed(*replacements: tuple[bytes, bytes]) -> bytes:
    """The stamp of the vectors, with parts replaced by others of their length."""
    out = STAMP
    for old, new in replacements:
        assert (out.count(old), len(old)) == (1, len(new))
        out = out.replace(old, new)
    return out


def test_a_time_that_was_changed_is_refused_even_where_its_hash_was_changed_too() -> None:
    start = STAMP.index(bytes.fromhex("3081cd020101"))
    info = STAMP[start : start + 208]
    earlier = info.replace(b"20241008", b"20240108")
    with pytest.raises(EvidenceError, match="changed after it was signed"):
        check_stamp(changed((info, earlier)), DATA, [LEAF])
    digests = hashlib.sha256(info).digest(), hashlib.sha256(earlier).digest()
    with pytest.raises(EvidenceError, match="signature of the time stamp does not hold"):
        check_stamp(changed((info, earlier), digests), DATA, [LEAF])


def test_a_signature_of_something_else_than_a_time_stamp_is_none() -> None:
    kind = bytes.fromhex("060b2a864886f70d0109100104")
    at = STAMP.rindex(kind)
    other = STAMP[:at] + kind[:-1] + b"\x05" + STAMP[at + len(kind) :]
    with pytest.raises(EvidenceError, match="signed as something else"):
        check_stamp(other, DATA, [LEAF])


def test_every_byte_of_the_signature_counts() -> None:
    for at in range(len(STAMP) - 64, len(STAMP)):
        with pytest.raises(EvidenceError):
            check_stamp(STAMP[:at] + bytes([STAMP[at] ^ 1]) + STAMP[at + 1 :], DATA, [LEAF])


def test_no_byte_of_a_stamp_can_be_changed_to_a_fault_of_another_kind() -> None:
    told = set()
    for at in range(len(STAMP)):
        try:
            check_stamp(STAMP[:at] + bytes([STAMP[at] ^ 1]) + STAMP[at + 1 :], DATA, [LEAF, MIDDLE, ROOT])
        except EvidenceError as error:
            told.add(str(error))
    assert "[GW612] the time stamp cannot be read: 3 is not a valid X509 version" in told


def test_a_certificate_of_no_version_is_refused_cleanly() -> None:
    whole = LEAF.public_bytes(serialization.Encoding.DER)
    version = whole.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)
    text = base64.encodebytes(version).decode()
    with pytest.raises(EvidenceError, match="no certificates"):
        load_authorities(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n".encode())


@given(st.data())
def test_no_change_of_a_stamp_gives_another_time(data: st.DataObject) -> None:
    spoilt = bytearray(STAMP)
    for _ in range(data.draw(st.integers(1, 2))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        stamp = check_stamp(bytes(spoilt), DATA, [LEAF, MIDDLE, ROOT])
    except EvidenceError:
        return
    assert (stamp.time, stamp.authority) == (TIME, LEAF)  # what is not signed says nothing


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\x30\x80", b"\x30\x03\x02\x01\0"])).map(b"".join))
def test_arbitrary_bytes_are_refused_cleanly(response: bytes) -> None:
    with pytest.raises(EvidenceError):
        check_stamp(response, DATA, [LEAF])
    with pytest.raises(EvidenceError):
        check_stamp(der.write(der.SEQUENCE, bytes.fromhex("3003020100"), response), DATA, [LEAF])


def issue(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None, **changes: object
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate: of a root, or with an issuer of a time-stamping authority."""
    key = changes.get("key", ec.generate_private_key(ec.SECP256R1()))
    length = changes.get("path_length")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert length is None or isinstance(length, int)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(TIME - timedelta(days=1))
        .not_valid_after(TIME + timedelta(days=1))
        .add_extension(x509.BasicConstraints(bool(changes.get("ca", issuer is None)), length), critical=True)
        .add_extension(
            x509.KeyUsage(
                True, False, False, False, False, bool(changes.get("signs", True)), False, False, False
            ),
            critical=True,
        )
    )
    usages = changes.get("usages", [ExtendedKeyUsageOID.TIME_STAMPING])
    if issuer is not None and isinstance(usages, list) and usages:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage(usages), critical=bool(changes.get("critical", True))
        )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def test_a_certificate_must_be_for_time_stamping_alone_and_valid_then() -> None:
    root = issue("root")
    both = [ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.CODE_SIGNING]
    good, _ = issue("good", root)
    _check_path(good, [root[0]], [root[0]], TIME)
    for bad in (
        issue("server", root, usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        issue("both", root, usages=both),
        issue("none", root, usages=[]),
        issue("lax", root, critical=False),
    ):
        with pytest.raises(EvidenceError, match="not for time stamping alone"):
            _check_path(bad[0], [root[0]], [root[0]], TIME)
    for late in (-2, 2):
        with pytest.raises(EvidenceError, match="not valid at the time"):
            _check_path(good, [root[0]], [root[0]], TIME + timedelta(days=late))
    for no_issuer in (
        issue("no CA", root, ca=False),
        issue("no signer", root, ca=True, signs=False),
        issue("x"),
    ):
        leaf, _ = issue("leaf", no_issuer)
        with pytest.raises(EvidenceError, match="not trusted"):
            _check_path(leaf, [no_issuer[0], root[0]], [root[0]], TIME)


def test_who_may_certify_no_other_issuer_certifies_none() -> None:
    root = issue("root")
    for length, holds in ((None, True), (1, True), (0, False)):
        first = issue("first", root, ca=True, path_length=length)
        second = issue("second", first, ca=True)
        leaf, _ = issue("leaf", second)
        if holds:
            _check_path(leaf, [second[0], first[0]], [root[0]], TIME)
            continue
        with pytest.raises(EvidenceError, match="not trusted"):
            _check_path(leaf, [second[0], first[0]], [root[0]], TIME)
        _check_path(issue("leaf", first)[0], [first[0]], [root[0]], TIME)


def test_a_root_that_is_trusted_goes_before_its_certificate_by_another() -> None:
    older, root = issue("older"), issue("root")
    crossed, _ = issue("root", older, ca=True, key=root[1])
    leaf, _ = issue("leaf", root)
    for known in ([crossed], [crossed, root[0]]):
        _check_path(leaf, known, [root[0]], TIME)
    _check_path(leaf, [crossed], [older[0]], TIME)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("size", [0, 1, 300])
def test_a_request_is_the_one_that_openssl_makes(tmp_path: Path, size: int) -> None:
    (tmp_path / "data").write_bytes(b"x" * size)
    command = [
        "openssl",
        "ts",
        "-query",
        "-data",
        "data",
        "-sha256",
        "-no_nonce",
        "-cert",
        "-out",
        "data.tsq",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert make_request(b"x" * size) == (tmp_path / "data.tsq").read_bytes()


@given(st.integers(0, 255).filter(lambda tag: tag & 0x1F != 0x1F), st.integers(0, 70_000))
def test_what_is_written_is_read_back(tag: int, size: int) -> None:
    assert der.read(der.write(tag, bytes(size)), tag).content == bytes(size)


@pytest.mark.parametrize(
    "text", ["0480", "0481057878787878", "04820005", "1f0100", "04", "0402ff", "048500000000"]
)
def test_other_forms_of_a_length_are_refused(text: str) -> None:
    with pytest.raises(der.DerError):
        der.read(bytes.fromhex(text), der.OCTETS)
